"""Grid: tiles cover the scene, strips are all the intersections."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.grid import Grid, Strip, Tile, shared_window


@st.composite
def grids(draw):
    axes = draw(st.integers(2, 3))
    longest = 40 if axes == 2 else 14
    shape = tuple(draw(st.integers(1, longest)) for _ in range(axes))
    tile = tuple(draw(st.integers(1, longest)) for _ in range(axes))
    return Grid(shape, tile, tuple(draw(st.integers(0, size - 1)) for size in tile))


@settings(max_examples=60, deadline=None)
@given(grids())
def test_tiles_cover_the_scene_at_one_size(grid):
    seen = np.zeros(grid.shape, int)
    for tile in grid:
        assert tile.shape == tuple(min(t, n) for t, n in zip(grid.tile, grid.shape))
        seen[tile.window] += 1
    assert seen.min() >= 1
    assert len(grid) == len(grid.tiles) == len({tile.index for tile in grid})
    assert [grid.number(tile) for tile in grid] == list(range(len(grid)))


@settings(max_examples=60, deadline=None)
@given(grids())
def test_neighbouring_tiles_share_at_least_the_overlap(grid):
    for axis, starts in enumerate(grid.starts):
        for a, b in itertools.pairwise(starts):
            assert a < b and a + grid.tile[axis] - b >= grid.overlap[axis]


@settings(max_examples=40, deadline=None)
@given(grids())
def test_strips_are_all_the_intersections(grid):
    expected = set()
    for one, other in itertools.combinations(grid, 2):
        if all(max(a.start, b.start) < min(a.stop, b.stop) for a, b in zip(one.window, other.window)):
            expected.add((one.index, other.index))
            assert other in grid.neighbours(one) and one in grid.neighbours(other)
    strips = list(grid.strips())
    assert {(strip.first.index, strip.second.index) for strip in strips} == expected
    assert len(strips) == len(expected)
    for strip in strips:
        assert strip.window == shared_window(strip.first.window, strip.second.window)


@settings(max_examples=40, deadline=None)
@given(grids())
def test_cores_share_the_scene_out_by_the_nearest_centre(grid):
    for axis, borders in enumerate(grid.cores):
        centres = [start + min(grid.tile[axis], grid.shape[axis]) / 2 for start in grid.starts[axis]]
        for pixel in range(grid.shape[axis]):
            owner = int(np.searchsorted(borders, pixel, "right")) - 1
            window = grid[tuple(owner if n == axis else 0 for n in range(len(grid.shape)))].window[axis]
            assert window.start <= pixel < window.stop
            distances = [abs(pixel + 0.5 - centre) for centre in centres]
            assert distances[owner] == min(distances)


def test_the_last_tile_is_shifted_inside():
    grid = Grid((100, 10), 40, 10)
    assert grid.starts == ((0, 30, 60), (0,))
    assert Grid((101, 10), 40, 10).starts[0] == (0, 30, 60, 61)
    pairs = {(strip.first.index[0], strip.second.index[0]) for strip in Grid((101, 10), 40, 10).strips()}
    assert (1, 3) in pairs and (0, 2) not in pairs  # the last meets the last but two, as it was shifted


def test_a_tile_as_long_as_the_axis_gives_one():
    grid = Grid((30, 200), (64, 64), 16)
    assert grid.counts == (1, 4)
    assert grid[0, 0].window == (slice(0, 30), slice(0, 64))
    assert len(Grid((64, 64), 64, 63)) == 1


def test_values_are_values():
    assert Grid((9, 9), 4, 1) == Grid((9, 9), (4, 4), (1, 1))
    assert len({*Grid((9, 9), 4, 1), *Grid((9, 9), 4, 1)}) == 9
    tile = Tile((0, 1), (slice(0, 4), slice(3, 7)))
    assert tile == Grid((9, 9), 4, 1)[0, 1] and tile.offset == (0, 3)
    assert isinstance(next(Grid((9, 9), 4, 1).strips()), Strip)
    with pytest.raises(AttributeError):
        tile.index = (1, 1)


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [((9, 9), 4, 4), ((9, 9), 4, 5), ((9, 9), 0, 0), ((9, 9), 4, -1), ((0, 9), 4, 1), ((9, 9), (4,), 1), ((), 4, 1)],
)
def test_senseless_grids_are_refused(shape, tile, overlap):
    with pytest.raises(ValueError, match="expected"):
        Grid(shape, tile, overlap)


def test_places_outside_are_refused():
    grid = Grid((9, 9), 4, 1)
    with pytest.raises(IndexError, match="inside the grid"):
        grid[3, 0]
    with pytest.raises(ValueError, match="expected a tile of the grid"):
        grid.number(Tile((0, 0), (slice(0, 5), slice(0, 4))))
