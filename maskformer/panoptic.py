"""The panoptic merge at full size: who wins each pixel, by tiles, drawn only where a mask's range leaves it open.

Queries compete for a pixel by p·m (class probability × mask probability). In a tile, a query whose greatest p·m is
below another's least cannot win a pixel; where one query is left and its mask covers the tile, or misses it, nothing is
drawn. Source of the rule: MaskFormer (arXiv 2107.06278), section 3.4, and Mask2Former's code for `inside_mask`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskformer import label_maps, tiles
from maskformer.masks import MaskSet


class Rule(NamedTuple):
    """`overlap`: share of its own mask a query must win; `inside_mask`: only pixels with m ≥ 0.5 go to the winner."""

    overlap: float
    inside_mask: bool


class Queries(NamedTuple):
    """What competes: masks (N, h, w) logits in float32, labels (N,), scores (N,), in query order."""

    masks: Tensor
    labels: Tensor
    scores: Tensor


def merge(queries: Queries, real: tiles.Size, size: tiles.Size, thing: Sequence[bool] | None, rule: Rule) -> MaskSet:
    """Segments in query order that share no pixel; stuff of one class is one segment."""
    count = len(queries.labels)
    if not count:
        return MaskSet.empty(size)
    winners, mask_area = _winners(tiles.Tiles(queries.masks, real, size), queries.scores, rule.inside_mask)
    names, owner, line, start, stop = label_maps.read(winners)
    outside, query = np.divmod(names.astype(np.int64)[owner] - 1, count)
    won = np.bincount(query, stop - start, count)
    held = np.bincount(query, (stop - start) * (outside == 0), count)
    accepted = (won > 0) & (mask_area > 0) & (held > 0) & (won >= rule.overlap * mask_area)
    segment, labels, scores = _segments(accepted, queries.labels.cpu().numpy(), queries.scores.cpu().numpy(), thing)
    owner = segment[query]
    used = (owner >= 0) & (outside == 0)
    base = line[used] * (size[1] + 1)
    return MaskSet.from_flat(size, owner[used], base + start[used], base + stop[used], labels, scores)


def _winners(
    picture: tiles.Tiles, scores: Tensor, inside_mask: bool
) -> tuple[NDArray[np.int16 | np.int32], NDArray[np.int64]]:
    """1 + winner of each pixel (height, width), + N where `inside_mask` and m < 0.5; and each mask's area (m ≥ 0.5)."""
    least, greatest = picture.bounds()
    side, count = tiles.TILE, len(scores)
    low, high = ((x.sigmoid() * scores[:, None, None]) for x in (least, greatest))
    may_win = high >= low.amax(0) * (1 - 1e-6)  # what rounding may add to a value between the bounds
    candidates, leader = may_win.sum(0), may_win.to(torch.uint8).argmax(0, keepdim=True)
    # The bounds are those of exact arithmetic: what is nearer to 0 than rounding reaches counts as crossed.
    covers, misses = least > 1e-4, greatest < -1e-4
    crossed = ~(covers | misses)
    settled = (candidates == 1) & (~crossed.gather(0, leader)[0] | (not inside_mask))
    beyond = misses.gather(0, leader)[0] & inside_mask
    code = (1 + leader[0] + count * beyond).to(torch.int16 if 2 * count < 2**15 else torch.int32)
    rows, columns = picture.shape
    winners = code[:, None, :, None].expand(rows, side, columns, side).clone()
    area = (covers * picture.areas).sum((1, 2))
    contested = may_win & ~settled
    for query, row, column in _contests(contested):
        pairs = [x.reshape(-1) for x in torch.broadcast_tensors(query, row[:, None], column[:, None])]
        m = picture.upsample(*pairs).sigmoid_()
        edge = crossed[tuple(pairs)].nonzero()[:, 0]
        area.index_add_(0, pairs[0][edge], _pixels(m[edge]))
        names = (1 + query).to(winners.dtype)
        m = m.view(*query.shape, side, side)
        winners[row, :, column] = _first_greatest(m, scores[query], names, count if inside_mask else 0)
    for place in (crossed & ~contested).nonzero().split(tiles.AT_ONCE):
        query, row, column = place.unbind(1)
        area.index_add_(0, query, _pixels(picture.upsample(query, row, column).sigmoid_()))
    flat = winners.view(rows * side, columns * side)[: picture.size[0], : picture.size[1]]
    return flat.cpu().numpy(), area.cpu().numpy()


def _pixels(m: Tensor) -> Tensor:
    """Mask probabilities (T, height, width) → how many are at least one half (T,)."""
    return (m >= 0.5).flatten(1).sum(1)


def _contests(contested: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs (N, ny, nx) bool → tiles with equally many: queries (T, k) ascending, and rows and columns (T,)."""
    among = contested.sum(0)
    for k in among.unique().tolist():
        if not k:
            continue
        for place in (among == k).nonzero().split(max(1, tiles.AT_ONCE // k)):
            row, column = place.unbind(1)
            yield contested[:, row, column].T.nonzero()[:, 1].view(-1, k), row, column


def _first_greatest(m: Tensor, scores: Tensor, names: Tensor, outside: int) -> Tensor:
    """Of k mask probabilities (T, k, height, width) × scores (T, k), the name of the greatest (the first of equals).

    Names are (T, k); `outside` is added where the greatest one's m < 0.5.
    """
    top = torch.full_like(m[:, 0], -1.0)
    winner = torch.zeros_like(top, dtype=names.dtype)
    for k in range(m.shape[1]):
        name, value = names[:, k, None, None], m[:, k] * scores[:, k, None, None]
        if outside:
            name = torch.where(m[:, k] >= 0.5, name, name + outside)
        winner = torch.where(value > top, name, winner)
        torch.maximum(top, value, out=top)
    return winner


def _segments(
    accepted: NDArray[np.bool_], labels: NDArray[np.int64], scores: NDArray[np.float32], thing: Sequence[bool] | None
) -> tuple[NDArray[np.int64], list[int], list[float]]:
    """Segment of each query (N,) or -1, and the segments' classes and scores; stuff of one class shares one segment."""
    segment = np.full(len(accepted), -1)
    segment_labels: list[int] = []
    segment_scores: list[float] = []
    stuff: dict[int, int] = {}
    for query in np.flatnonzero(accepted).tolist():
        label, score = int(labels[query]), float(scores[query])
        if thing is not None and not thing[label] and label in stuff:
            segment[query] = stuff[label]
            segment_scores[stuff[label]] = max(segment_scores[stuff[label]], score)
            continue
        segment[query] = stuff[label] = len(segment_labels)
        segment_labels.append(label)
        segment_scores.append(score)
    return segment, segment_labels, segment_scores
