"""What a model that is not perfect sees: every object's border moved in or out in every tile, and some objects missed.

Draws are Latin hypercubes: over `draws` draws every object meets every quantile of the noise once in every tile, so
that a few draws tell tiled from untiled apart to a thousandth.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

from maskformer.masks import MaskSet
from pipelines.grid import Grid, Tile

REACH = 12  # pixels, beyond every draw's border

Parts = list[tuple[Tile, MaskSet]]


class NoisyModel:
    """Sees `truth` through noise: border offsets of deviation `jitter` pixels, and a share `miss` of objects missed."""

    def __init__(self, truth: MaskSet, jitter: float, miss: float, draws: int) -> None:
        self.truth = truth
        offsets = jitter * norm.ppf((np.arange(draws) + 0.5) / draws)
        missed = np.arange(draws) < round(miss * draws)
        self.draws = draws
        self.offsets, self.missed = offsets, missed
        self.boxes = truth.boxes.copy()
        self.boxes[:, :2] = (self.boxes[:, :2] - REACH).clip(0)
        self.boxes[:, 2:] = np.minimum(self.boxes[:, 2:] + REACH, truth.shape)
        self.distances = [self._distance(n) for n in range(len(truth))]

    def views(self, grid: Grid, seed: int) -> Iterator[Parts]:
        """All draws of what the tiles of a grid show."""
        rng = np.random.default_rng(seed)
        shape = (len(grid), len(self.truth), self.draws)
        moved = self.offsets[rng.permuted(np.broadcast_to(np.arange(self.draws), shape), axis=2)]
        gone = self.missed[rng.permuted(np.broadcast_to(np.arange(self.draws), shape), axis=2)]
        for draw in range(self.draws):
            yield [(t, self._seen(t, moved[n, :, draw], gone[n, :, draw])) for n, t in enumerate(grid)]

    def _distance(self, n: int) -> NDArray[np.float64]:
        """Signed distance to an object's border, positive inside, on its box."""
        top, left, bottom, right = self.boxes[n].tolist()
        mask = self.truth[n : n + 1].crop((slice(top, bottom), slice(left, right))).to_dense()[0]
        if mask.all():
            return np.full(mask.shape, 2.0 * REACH)
        return distance_transform_edt(mask) - distance_transform_edt(~mask)

    def _seen(self, tile: Tile, moved: NDArray, gone: NDArray) -> MaskSet:
        found = [MaskSet.empty(tile.shape)]
        low, high = np.array(tile.offset), np.array(tile.offset) + tile.shape
        for n in np.flatnonzero(~gone):
            start, stop = np.maximum(self.boxes[n, :2], low), np.minimum(self.boxes[n, 2:], high)
            if (start < stop).all():
                part = tuple(slice(a, b) for a, b in zip(start - self.boxes[n, :2], stop - self.boxes[n, :2]))
                mask = self.distances[n][part] + moved[n] > 0
                if mask.any():
                    one = MaskSet.from_dense(mask[None], self.truth.labels[n : n + 1])
                    found.append(one.place(tile.shape, (start - low).tolist()))
        return MaskSet.concatenate(found)


def quality(found: MaskSet, truth: MaskSet) -> float:
    """Panoptic quality over all classes: masks of one class matched above an IoU of 0.5, one to one."""
    iou = found.iou(truth) * (found.labels[:, None] == truth.labels[None, :])
    iou[iou <= 0.5] = 0
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return float(iou[rows, columns].sum() / ((len(found) + len(truth)) / 2))
