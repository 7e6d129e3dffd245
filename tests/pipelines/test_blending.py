"""Blending: consistent tiles come back as they were, in bands, with little kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.blending import Blender, column_blocks, window_weights
from pipelines.grid import Grid


def blend(grid, scene):
    """The scene (K, *shape) cut into tiles and blended again; checks that the bands follow each other."""
    blender = Blender(grid, len(scene))
    result, row, most = np.full(scene.shape, np.nan, np.float32), 0, 0
    for tile in grid:
        for window, band, seen in blender.add(tile, scene[(slice(None), *tile.window)]):
            assert seen.all()
            assert window[0].start == row and band.shape[1] == window[0].stop - row
            assert window[1:] == tuple(slice(0, n) for n in grid.shape[1:])
            result[(slice(None), *window)] = band
            row = window[0].stop
        most = max(most, blender.open_rows)
    assert blender.finish() == [] and row == grid.shape[0]
    return result, most


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.integers(1, 20),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_tiles_that_agree_come_back(shape, tile, share, seed):
    scene = np.random.default_rng(seed).random((3, *shape)).astype(np.float32)
    grid = Grid(shape, tile, int(share * tile))
    result, most = blend(grid, scene)
    np.testing.assert_allclose(result, scene, atol=1e-6, rtol=0)
    assert most <= min(tile, shape[0])


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 50)),
    tile=st.integers(1, 20),
    share=st.floats(0, 0.99),
    width=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_blocks_of_columns_are_the_whole_to_the_bit(shape, tile, share, width, seed):
    """Whatever the tiles say of each other, and of pixels they did not see."""
    random = np.random.default_rng(seed)
    grid = Grid(shape, tile, int(share * tile))
    views = [(random.random((2, *one.shape)).astype(np.float32), random.random(one.shape) < 0.8) for one in grid]

    def blended(columns=None):
        blender, skipped = Blender(grid, 2, columns), 0
        values, seen = np.full((2, *shape), np.nan, np.float32), np.zeros(shape, bool)
        for one, view in zip(grid, views, strict=True):
            skipped += not blender.sees(one)
            for window, band, known in blender.add(one, *view) if blender.sees(one) else blender.skip(one):
                values[(slice(None), *window)], seen[window] = band, known
        return values, seen, skipped

    whole, known, _ = blended()
    blocks = column_blocks(grid, width)
    assert [n for block in blocks for n in range(block.start, block.stop)] == list(range(shape[1]))
    for block in blocks:
        values, seen, skipped = blended(block)
        assert np.array_equal(values[..., block], whole[..., block]) and np.array_equal(seen[:, block], known[:, block])
        assert np.isnan(values[..., : block.start]).all() and np.isnan(values[..., block.stop :]).all()
        assert skipped or block.stop - block.start > shape[1] - 2 * tile, "tiles beside the block are not needed"


def test_result_does_not_depend_on_the_tile():
    scene = np.random.default_rng(0).random((2, 70, 90)).astype(np.float32)
    results = [blend(Grid((70, 90), tile, overlap), scene)[0] for tile, overlap in ((16, 4), (33, 20), (90, 0))]
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, atol=1e-6, rtol=0)


def test_a_volume_is_blended_too():
    scene = np.random.default_rng(1).random((2, 9, 14, 11)).astype(np.float32)
    np.testing.assert_allclose(blend(Grid((9, 14, 11), (4, 6, 5), 2), scene)[0], scene, atol=1e-6, rtol=0)


def test_memory_follows_the_tile_not_the_scene():
    for height in (200, 2000):
        grid = Grid((height, 50), 32, 8)
        blender = Blender(grid, 1)
        for tile in grid:
            blender.add(tile, np.ones((1, *tile.shape), np.float32))
            held = sum(a.nbytes for a in vars(blender).values() if isinstance(a, np.ndarray))
            assert blender.open_rows <= 32
            assert held <= 4 * (2 * 32 * 50 + 32 * 32)
            if tile.index[1] == grid.counts[1] - 1 and tile.index[0] < grid.counts[0] - 2:
                assert blender.open_rows == 8


def test_disagreeing_tiles_fade_into_each_other():
    grid = Grid((16, 28), 16, 4)
    blender = Blender(grid, 1)
    blender.add(grid[0, 0], np.zeros((1, 16, 16), np.float32))
    ((_, band, _),) = blender.add(grid[0, 1], np.ones((1, 16, 16), np.float32))
    seam = band[0, 8, 10:18]
    assert seam[0] == 0 and seam[-1] == 1
    assert (np.diff(seam[1:7]) > 0).all() and abs(seam[2] + seam[5] - 1) < 1e-6


def test_a_skipped_tile_counts_for_nothing():
    grid = Grid((8, 14), 8, 2)
    blender = Blender(grid, 1)
    blender.add(grid[0, 0], np.full((1, 8, 8), 0.5, np.float32))
    ((_, band, _),) = blender.skip(grid[0, 1])
    np.testing.assert_allclose(band[0, :, :8], 0.5, atol=1e-6)
    assert (band[0, :, 8:] == 0).all()


def test_weights_are_positive_and_symmetric():
    weights = window_weights((7, 10))
    assert weights.min() > 0 and weights.max() <= 1
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-5)


def test_wrong_input_says_what_was_expected():
    grid = Grid((8, 14), 8, 2)
    blender = Blender(grid, 2)
    with pytest.raises(ValueError, match=r"row-major order, tile \(0, 0\) now, got tile \(0, 1\)"):
        blender.add(grid[0, 1], np.zeros((2, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"expected an array \(2, 8, 8\)"):
        blender.add(grid[0, 0], np.zeros((1, 8, 8), np.float32))
    with pytest.raises(ValueError, match="expected all 2 tiles"):
        blender.finish()
    with pytest.raises(ValueError, match="tile of the grid"):
        blender.add(Grid((8, 14), 7, 2)[0, 0], np.zeros((2, 7, 7), np.float32))
    with pytest.raises(ValueError, match="at least one column"):
        column_blocks(grid, 0)
    with pytest.raises(ValueError, match="at least one channel"):
        Blender(grid, 0)


def test_what_one_tile_did_not_see_comes_from_the_other():
    grid = Grid((8, 14), 8, 2)
    scene = np.random.default_rng(0).random((1, 8, 14)).astype(np.float32)
    blender = Blender(grid, 1)
    blind = np.ones((8, 8), bool)
    blind[2:5, 3:] = False  # damaged in the first tile only; columns 6 and 7 lie in both
    blender.add(grid[0, 0], scene[:, :, :8] * blind, blind)
    ((_, band, seen),) = blender.add(grid[0, 1], scene[:, :, 6:])
    assert (~seen).sum() == 3 * 3 and not seen[2:5, 3:6].any()
    np.testing.assert_allclose(band[0][seen], scene[0][seen], atol=1e-6)
    assert (band[0][~seen] == 0).all()
