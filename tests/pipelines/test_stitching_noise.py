"""Stitching what a model that is not perfect sees: no worse than one untiled look with the same noise."""

import numpy as np
import pytest

from maskformer.masks import MaskSet
from pipelines.grid import Grid
from pipelines.stitching import Stitcher, stitch
from tests.noise import NoisyModel, quality
from tests.scenes import FAMILIES, box, cut, disc, from_rows, path, shuffled


def loss(name, size, tile, overlap, jitter, miss, draws):
    """Panoptic quality lost by tiling: mean over draws, untiled minus tiled."""
    truth = FAMILIES[name](np.random.default_rng(7), size)
    model = NoisyModel(truth, jitter, miss, draws)
    grid, whole = Grid((size, size), tile, overlap), Grid((size, size), size, 0)
    tiled = [quality(stitch(grid, parts), truth) for parts in model.views(grid, 0)]
    untiled = [quality(parts[0][1], truth) for parts in model.views(whole, 0)]
    return np.mean(untiled) - np.mean(tiled)


SCENES = [
    ("disjoint", 400, 0.005),
    ("parcels", 400, 0.005),
    ("nested", 400, 0.005),
    ("crowns", 400, 0.005),
    ("lakes", 400, 0.02),
    ("linear", 400, 0.02),
    ("linear", 800, 0.02),
]
QUICK = ("disjoint", "lakes")


def marked(name, *values):
    return pytest.param(name, *values, marks=[] if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("name", "size", "margin"), [marked(*one) for one in SCENES])
def test_jitter_of_borders_costs_no_more_than_untiled(name, size, margin):
    assert loss(name, size, 200, 40, jitter=1.5, miss=0, draws=8) <= margin


@pytest.mark.parametrize(("name", "size", "margin"), [marked(name, size, 0.02) for name, size, _ in SCENES])
def test_misses_cost_no_more_than_untiled(name, size, margin):
    assert loss(name, size, 200, 40, jitter=0, miss=0.05, draws=20) <= margin


def test_gaps_do_not_depend_on_the_order_of_tiles():
    truth = FAMILIES["linear"](np.random.default_rng(7), 400)
    rng = np.random.default_rng(0)
    for parts in NoisyModel(truth, 0, 0.2, 5).views(Grid((400, 400), 100, 20), 0):
        found = stitch(Grid((400, 400), 100, 20), parts)
        assert all(stitch(Grid((400, 400), 100, 20), shuffled(rng, parts)) == found for _ in range(4))


def without(parts, missing):
    """The parts with nothing in the tiles at some positions."""
    return [(tile, MaskSet.empty(tile.shape) if tile.index in missing else seen) for tile, seen in parts]


def test_a_river_that_one_tile_missed_is_one_river_with_a_gap():
    truth = from_rows(400, [box(190, 0, 200, 400), box(20, 20, 60, 60)], [0, 0]).canonical()
    grid = Grid((400, 400), (400, 130), 30)
    parts = without(cut(truth, grid), {(0, 1)})
    stitcher = Stitcher(grid)
    found = MaskSet.concatenate([*(stitcher.add(*part) for part in parts), stitcher.finish()]).canonical()
    assert len(found) == 2 and stitcher.ambiguous_links == 1
    assert found.areas.tolist() == [1600, 10 * (400 - (200 - 130))]
    rng = np.random.default_rng(0)
    assert all(stitch(grid, shuffled(rng, parts)) == found for _ in range(8))


def joined(truth, missing):
    """Objects of 3 x 3 tiles in any order where some objects are missed in some tiles, and the links that are guesses.

    missing: (object, tile index) pairs.
    """
    grid = Grid((400, 400), 160, 40)
    parts = []
    for tile in grid:
        seen = truth.crop(tile.window)
        gone = [truth.labels[n] * 10 + truth.scores[n] for n, index in missing if index == tile.index]
        parts.append((tile, seen[~np.isin(seen.labels * 10 + seen.scores, gone)]))
    found = stitch(grid, parts)
    rng = np.random.default_rng(0)
    for _ in range(8):
        stitcher = Stitcher(grid)
        closed = [stitcher.add(*part) for part in shuffled(rng, parts)]
        assert MaskSet.concatenate([*closed, stitcher.finish()]).canonical() == found
    return len(found), stitcher.ambiguous_links


ACROSS, DOWN = box(195, 0, 205, 400), box(0, 195, 400, 205)


def test_two_rivers_that_one_tile_missed_go_straight_on():
    truth = from_rows(400, [ACROSS, DOWN], [0, 0], [0.25, 0.5])
    assert joined(truth, [(0, (1, 1)), (1, (1, 1))]) == (2, 2)


def test_a_river_that_two_neighbouring_tiles_missed_is_one():
    truth = from_rows(400, [box(190, 0, 200, 400), box(20, 20, 60, 60)], [0, 0], [0.25, 0.5])
    assert joined(truth, [(0, (1, 0)), (0, (1, 1))])[0] == 2  # what is left is at one side of both
    diagonal = path(np.array([[0.0, 399.0], [399.0, 0.0]]), 3)
    steps = from_rows(
        400, [np.concatenate([box(60, 0, 64, 204), box(60, 200, 340, 204), box(336, 200, 340, 400)])], [0]
    )
    assert joined(steps, [(0, (0, 1)), (0, (1, 1))]) == (1, 1)
    assert joined(from_rows(400, [diagonal], [0]), [(0, (1, 1))])[0] == 1


def test_a_river_that_dips_into_a_tile_below_one_that_missed_it_is_one():
    dip = np.array([[200.0, 0], [200, 170], [380, 185], [380, 215], [200, 230], [200, 399]])
    assert joined(from_rows(400, [path(dip, 6), box(20, 20, 30, 30)], [0, 0]), [(0, (1, 1))])[0] == 2


def test_houses_on_either_side_of_a_tile_that_missed_them_stay_two():
    truth = from_rows(400, [box(190, 90, 200, 140), box(190, 190, 200, 240)], [0, 0])
    grid = Grid((400, 400), (400, 130), 30)
    assert len(stitch(grid, without(cut(truth, grid), {(0, 1)}))) == 2


def test_views_too_different_for_the_threshold_are_linked_where_nothing_else_claims_them():
    grid = Grid((50, 90), (50, 60), 30)
    left, right = grid.tiles
    small, large = disc(25, 45, 2), disc(25, 45, 8)  # IoU 0.06, one inside the other

    def see(rows):
        return from_rows(90, [rows], [0]).crop((slice(0, 50), slice(0, 90)))

    found = stitch(grid, [(left, see(small).crop(left.window)), (right, see(large).crop(right.window))])
    assert len(found) == 1


def test_an_object_that_a_tile_sees_whole_is_that_tiles_view():
    grid = Grid((100, 180), 100, 20)
    left, right = grid.tiles
    whole, part = disc(50, 85, 10), disc(50, 86, 11)

    def see(rows, tile):
        return from_rows(180, [rows], [0]).crop((slice(0, 100), slice(0, 180))).crop(tile.window)

    found = stitch(grid, [(left, see(whole, left)), (right, see(part, right))])
    assert len(found) == 1 and found.runs.tolist() == whole.tolist()
