"""Instances at full size: run lengths and mean probabilities of masks, without a stack of masks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer import runs, tiles
from maskformer.masks import MaskSet


def draw(masks: Tensor, real: tiles.Size, size: tiles.Size, threshold: float) -> tuple[MaskSet, Tensor]:
    """Mask logits (N, h, w) float32 → N masks (logit > `threshold`) at `size`, and the mean of sigmoid in each (N,).

    Only tiles in which a mask can be above the threshold are made, AT_ONCE of them at a time. Empty masks have mean 0.
    """
    picture = tiles.Tiles(masks, real, size)
    total = torch.zeros(len(masks), dtype=torch.float64, device=masks.device)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    active = (picture.bounds()[1] > threshold).nonzero()
    for chunk in active.split(tiles.AT_ONCE):
        mask, row, column = chunk.unbind(1)
        values = picture.upsample(mask, row, column)
        inside = values > threshold
        in_tile = F.threshold(values, threshold, -torch.inf, inplace=True).sigmoid_().sum((1, 2))
        total.index_add_(0, mask, in_tile.double())
        found.append(_runs(inside.cpu().numpy(), chunk.cpu().numpy(), size[1]))
    owner, start, stop = (np.concatenate(part) for part in zip(*found, strict=True)) if found else _NOTHING
    drawn = MaskSet.from_flat(size, owner, start, stop, np.zeros(len(masks), np.int64))
    area = torch.from_numpy(drawn.areas.copy()).to(total)
    return drawn, (total / (area + 1e-6)).float()


_NOTHING = (np.zeros(0, np.int64),) * 3


def _runs(inside: np.ndarray, places: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Owner, flat start, flat stop of the runs in tiles (T, TILE, TILE) bool at places (T, 3): mask, row, column."""
    side = inside.shape[-1]
    line, start, stop = runs.lines_to_runs(inside.reshape(-1, side))
    tile, line = np.divmod(line, side)
    owner, row, column = places[tile].T
    base = (row * side + line) * (width + 1) + column * side
    return owner, base + start, base + stop
