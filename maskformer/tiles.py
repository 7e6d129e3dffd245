"""Masks at full size, tile by tile and only where something is decided.

A mask is drawn at a quarter of the padded input; full size is twice bilinear (to the input's size, then, after the
padding is cut off, to the wanted one). Both steps are linear along each axis, so a tile of the answer is
rows (TILE, p) · patch (p, p) · columns (p, TILE) of a small patch of the mask: what lies between is never made.
Weights are positive and sum to 1, so no value in a tile leaves the range of its patch: what that range decides
(outside of a mask, inside of it, beaten by another) needs no pixels at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskformer.prediction import STRIDE

Size = tuple[int, int]

TILE = 32  # pixels a side of the answer; at 64 instances are quicker by a third, panoptic slower by as much
AT_ONCE = 1024  # tiles in memory: 4 MiB an array


class Axis(NamedTuple):
    """How tiles along one axis come from cells of the mask: tile t is weights[t] (TILE, p) · cells first[t] … + p."""

    first: Tensor
    weights: Tensor
    lengths: Tensor  # pixels of each tile that lie in the picture


class Tiles:
    """Mask logits (N, h, w) float32 seen at `size`, of which `real` (height, width) of the padded input is picture."""

    def __init__(self, masks: Tensor, real: Size, size: Size) -> None:
        self.masks, self.size = masks, size
        axes = [axis(masks.shape[d + 1], real[d], size[d], TILE) for d in (0, 1)]
        self.rows, self.columns = (Axis(*(x.to(masks.device) for x in one)) for one in axes)
        self.shape = len(self.rows.first), len(self.columns.first)
        self.areas = self.rows.lengths[:, None] * self.columns.lengths  # (ny, nx) pixels
        self._ragged = any(side % TILE for side in size)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and greatest logit each mask can have in each tile, (N, ny, nx) both."""
        return self._extreme(torch.amin), self._extreme(torch.amax)

    def _extreme(self, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        x, span = self.masks, self.rows.weights.shape[2]
        x = torch.stack([function(x[:, y : y + span], 1) for y in self.rows.first.tolist()], 1)
        span = self.columns.weights.shape[2]
        return torch.stack([function(x[..., c : c + span], 2) for c in self.columns.first.tolist()], 2)

    def upsample(self, masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits (T, TILE, TILE) of mask `masks[t]` in tile (`rows[t]`, `columns[t]`); -inf beyond the picture."""
        y = self.rows.first[rows, None] + torch.arange(self.rows.weights.shape[2], device=rows.device)
        x = self.columns.first[columns, None] + torch.arange(self.columns.weights.shape[2], device=rows.device)
        patches = self.masks[masks[:, None, None], y[:, :, None], x[:, None, :]]
        across = torch.bmm(patches, self.columns.weights[columns].mT)
        values = torch.bmm(self.rows.weights[rows], across)
        if self._ragged:
            place = torch.arange(TILE, device=rows.device)
            below = place >= self.rows.lengths[rows, None]
            right = place >= self.columns.lengths[columns, None]
            values.masked_fill_(below[:, :, None] | right[:, None, :], -torch.inf)
        return values


@lru_cache(maxsize=64)
def axis(cells: int, real: int, size: int, tile: int) -> Axis:
    """`cells` of a mask → `STRIDE * cells` pixels → the first `real` of them → `size` pixels, in tiles."""
    low, high, share = _linear(cells, STRIDE * cells)
    a, b, second = _linear(real, size) if real != size else (np.arange(size), np.arange(size), np.zeros(size))
    cell = np.stack([low[a], high[a], low[b], high[b]], 1)
    weight = np.stack([1 - share[a], share[a], 1 - share[b], share[b]], 1)
    weight *= np.stack([1 - second, 1 - second, second, second], 1)
    count = -(-size // tile)
    place = np.minimum(np.arange(count * tile), size - 1)
    cell, weight = cell[place].reshape(count, tile, 4), weight[place].reshape(count, tile, 4)
    first = cell.min((1, 2))
    span = int((cell.max((1, 2)) - first).max()) + 1
    first = np.minimum(first, cells - span)
    weights = np.zeros((count, tile, span))
    t, row = np.indices((count, tile))
    for k in range(4):
        np.add.at(weights, (t, row, cell[..., k] - first[:, None]), weight[..., k])
    lengths = np.minimum(tile, size - tile * np.arange(count))
    return Axis(torch.from_numpy(first), torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(lengths))


def _linear(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Of each of `size` places between `length` values: the two neighbours and the share of the second.

    Centres aligned, places in float32: what torch's interpolate does, so that masks agree with it to the pixel.
    """
    scale = np.float32(length) / np.float32(size)
    place = np.maximum(scale * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = np.minimum(place.astype(np.int64), length - 1)
    return low, np.minimum(low + 1, length - 1), np.clip(place - low, 0, 1).astype(np.float64)
