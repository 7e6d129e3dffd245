"""One mask from the views of several tiles: which tile's word counts for which pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskformer import runs as rle
from maskformer.masks import MaskSet
from pipelines.grid import Grid
from pipelines.linking import Fragment


def free(
    shape: tuple[int, ...], low: NDArray, high: NDArray, tile_low: NDArray, tile_high: NDArray
) -> NDArray[np.bool_]:
    """Axis by axis (the last axis): whether boxes lie in tiles and touch no border of them but the scene's."""
    inner_low, inner_high = tile_low + (tile_low > 0), tile_high - (tile_high < np.array(shape))
    return (low >= inner_low) & (high <= inner_high)


def unite(
    grid: Grid,
    fragments: Sequence[Fragment],
    runs_of: Sequence[NDArray[np.int32]],
    owners: NDArray[np.int64],
    count: int,
) -> MaskSet:
    """One mask for each of `count` objects from its fragments (sorted by tile) and their runs, `owners` (F,) telling
    whose each is.

    Where a tile saw all of an object, its fragment alone is the object: two noisy views cut together are worse than
    either (by 0.01 of panoptic quality at 1.5 px of jitter). Else a pixel is decided by the tile whose centre is
    nearest, if the object has a fragment there, else by the fragments it has. Score: the area-weighted mean, summed
    in tile order.
    """
    if not fragments:
        return MaskSet.empty(grid.shape)
    runs = np.concatenate(runs_of)
    piece_of = np.repeat(np.arange(len(fragments)), [len(one) for one in runs_of])
    tiles = np.array([one.tile for one in fragments], np.int64)
    labels = np.zeros(count, np.int64)
    labels[owners] = [one.label for one in fragments]
    area = np.array([one.area for one in fragments], np.float64)
    score = np.array([one.score for one in fragments], np.float64)
    scores = np.bincount(owners, area * score, count) / np.bincount(owners, area, count)
    several = np.bincount(owners, minlength=count)[owners] > 1
    best, settled = _whole_views(grid, runs, runs_of, tiles, owners, several)
    runs, piece_of = runs[(~settled | best)[piece_of]], piece_of[(~settled | best)[piece_of]]
    shared = (several & ~settled)[piece_of]
    line_runs, line_piece = _owned(grid, runs[shared], piece_of[shared], tiles, owners, count)
    emptied = np.bincount(owners[line_piece], minlength=count)[owners[piece_of]] == 0
    plain = ~shared | (shared & emptied)  # nobody's centre claims it: the plain union keeps the object
    all_runs = np.concatenate([line_runs, runs[plain]])
    all_owner = owners[np.concatenate([line_piece, piece_of[plain]])]
    start, stop = rle.to_flat(grid.shape, all_runs)
    return MaskSet.from_flat(grid.shape, all_owner, start, stop, labels, scores.astype(np.float32))


def _whole_views(
    grid: Grid,
    runs: NDArray,
    runs_of: Sequence[NDArray],
    tiles: NDArray,
    owners: NDArray,
    several: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(F,) whether a fragment is the best view of its whole object, and whether its object has one.

    A view of the whole is one in whose tile all the object's fragments lie, clear of its borders; the best is that
    of the tile whose centre is nearest to the object's middle.
    """
    best = np.zeros(len(tiles), bool)
    pieces = np.flatnonzero(several)
    if not len(pieces):
        return best, best
    axes = len(grid.shape)
    lengths = np.array([len(one) for one in runs_of])
    boxes = rle.bounding_boxes(runs, np.concatenate([[0], np.cumsum(lengths)]))[pieces]
    _, owner = np.unique(owners[pieces], return_inverse=True)
    first = np.searchsorted(owner, np.arange(owner[-1] + 1))  # an object's fragments follow each other
    low = np.minimum.reduceat(boxes[:, :axes], first)[owner]
    high = np.maximum.reduceat(boxes[:, axes:], first)[owner]
    tile_low, tile_high = grid.windows(tiles[pieces])
    whole = np.logical_and.reduce(free(grid.shape, low, high, tile_low, tile_high), axis=1)
    away = (np.abs(tile_low + tile_high - low - high)).sum(axis=1).astype(np.float64)
    away[~whole] = np.inf
    order = np.lexsort((tiles[pieces], away, owner))
    nearest = order[first]
    nearest = nearest[whole[nearest]]
    best[pieces[nearest]] = True
    return best, np.isin(owners, owners[best])


def _owned(
    grid: Grid, runs: NDArray, piece_of: NDArray, tiles: NDArray, owners: NDArray, count: int
) -> tuple[NDArray, NDArray]:
    """Cut runs where the nearest tile centre changes, and drop the pieces a nearer tile's fragment decides."""
    if not len(runs):
        return runs, piece_of
    borders = np.array(grid.cores[-1])
    low = np.searchsorted(borders, runs[:, -2], "right") - 1
    pieces = np.searchsorted(borders, runs[:, -1] - 1, "right") - low
    core = np.zeros(len(runs), np.int64)
    for axis in range(runs.shape[1] - 2):
        core = core * grid.counts[axis] + np.searchsorted(grid.cores[axis], runs[:, axis], "right") - 1
    source = np.repeat(np.arange(len(runs)), pieces)
    column = rle.expand(low, pieces)
    core = core[source] * grid.counts[-1] + column
    cut = runs[source]
    cut[:, -2] = np.maximum(cut[:, -2], borders[column])
    cut[:, -1] = np.minimum(cut[:, -1], borders[column + 1])
    piece = piece_of[source]
    present = np.sort(owners * len(grid) + tiles)
    wanted = owners[piece] * len(grid) + core
    found = np.searchsorted(present, wanted)
    elsewhere = (present[np.minimum(found, len(present) - 1)] == wanted) & (core != tiles[piece])
    return cut[~elsewhere], piece[~elsewhere]
