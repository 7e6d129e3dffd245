"""Class probabilities from masks, block by block: where a query cannot matter, it is not drawn.

A trained query is sure of a small place and says nothing elsewhere, so most of Q full-size masks is work for zeros.
Bilinear interpolation never leaves the range of its neighbours. The largest logit around a block, times the query's
class probabilities, is therefore a bound of what the query can add to any pixel there. The weakest queries of a block
are left out as long as their bounds together stay under `LEFT_OUT`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer.prediction import STRIDE

BLOCK = 16  # cells a side: 64 pixels
LEFT_OUT = 2.0**-11  # of a probability, all queries left out together: half the spacing of float16 below 1


def class_map(classes: Tensor, masks: Tensor, size: tuple[int, int], combine: str) -> Tensor:
    """Evidence (K, *size) float32 for each class, before any division; `size` is cropped from the top-left corner.

    classes: probabilities (Q, K) without "no object"; masks: logits (Q, h, w), upsampled `STRIDE` times.
    combine: "sum" is Σ_q p_q(class)·m_q, "noisy-or" 1 − Π_q (1 − p_q(class)·m_q); both to within `LEFT_OUT`.
    """
    masks = masks.float()
    total = classes.new_zeros(classes.shape[1], *size)
    for rows, columns, queries in _blocks(classes, masks):
        place = total[:, slice(*(STRIDE * at for at in rows)), slice(*(STRIDE * at for at in columns))]
        if place.numel() == 0 or len(queries) == 0:
            continue
        m = _upsampled(masks, queries, rows, columns)[:, : place.shape[1], : place.shape[2]].sigmoid()
        p = classes[queries]
        if combine == "sum":
            place.copy_((p.T @ m.flatten(1)).view(place.shape))
        else:
            for one, weights in zip(place, p.T, strict=True):
                one.copy_(1 - (1 - weights[:, None, None] * m).prod(0))
    return total


def _blocks(classes: Tensor, masks: Tensor) -> Iterator[tuple[tuple[int, int], tuple[int, int], Tensor]]:
    """Rows, columns (in cells) and the queries that matter of every block."""
    around = F.max_pool2d(masks[None], BLOCK + 2, BLOCK, padding=1, ceil_mode=True)[0]
    bounds, order = (around.sigmoid() * classes.sum(1)[:, None, None]).sort(0)
    matters = torch.zeros_like(bounds, dtype=torch.bool).scatter_(0, order, bounds.cumsum(0) > LEFT_OUT)
    height, width = masks.shape[-2:]
    for i, j in torch.cartesian_prod(*(torch.arange(n) for n in matters.shape[1:])).tolist():
        rows, columns = ((at * BLOCK, min((at + 1) * BLOCK, end)) for at, end in ((i, height), (j, width)))
        if rows[0] < rows[1] and columns[0] < columns[1]:
            yield rows, columns, matters[:, i, j].nonzero()[:, 0]


def _upsampled(masks: Tensor, queries: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Logits (len(queries), rows, columns) at `STRIDE` times the size: those of the whole picture, cut out."""
    halo = [(max(0, low - 1), min(end, high + 1)) for (low, high), end in zip((rows, columns), masks.shape[1:])]
    cells = masks[queries, slice(*halo[0]), slice(*halo[1])]
    wide = F.interpolate(cells[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    top, left = STRIDE * (rows[0] - halo[0][0]), STRIDE * (columns[0] - halo[1][0])
    return wide[:, top : top + STRIDE * (rows[1] - rows[0]), left : left + STRIDE * (columns[1] - columns[0])]
