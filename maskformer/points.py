"""Values at points of the plane: logits by bilinear sampling, targets straight from label maps.

Points are (x, y) in 0..1 of the whole picture, and lie in valid ground alone. Sampling is bilinear between pixel
centres, 0 outside (`grid_sample(align_corners=False)`). Sampling N binary masks is looking up the label at the four
corners: no mask is made, and the cost does not depend on N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer.prediction import STRIDE
from maskformer.targets import Target


class Sampled(NamedTuple):
    """A picture at P points: inside (N, P) float in 0..1, the objects' masks; valid (P,) float, 0 or 1."""

    inside: Tensor
    valid: Tensor


def draw(count: int, valid: Tensor) -> Tensor:
    """(count, 2) points, uniform over the pixels of valid (H, W) bool (over all of them where none is).

    So padding and ignored ground take no points away: how many a mask is asked at, and which share of them where it is
    uncertain, do not depend on them. From torch's generator: a resumed training draws the same.
    """
    height, width = valid.shape
    known = valid.flatten().cumsum(0)
    random = torch.rand(3, count, device=valid.device)
    # The n-th valid pixel, without waiting for a GPU to say how many there are.
    pixel = torch.searchsorted(known, (random[0] * known[-1]).long(), right=True).clamp(max=height * width - 1)
    pixel = torch.where(known[-1] > 0, pixel, (random[0] * height * width).long())
    return torch.stack(((pixel % width + random[1]) / width, (pixel // width + random[2]) / height), 1)


def on_logits(places: Tensor, size: Sequence[int], logits: Sequence[int]) -> Tensor:
    """Points of a picture of `size` (H, W) as points of its mask logits (h, w), which cover 4h × 4w pixels."""
    share = (size[1] / (STRIDE * logits[1]), size[0] / (STRIDE * logits[0]))
    return places if share == (1.0, 1.0) else places * places.new_tensor(share)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """maps (..., h, w) at points (P, 2) → (..., P); differentiable in the maps."""
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    grid = F.pad(2 * points - 1, (0, 0, 0, len(points) % 2)).unflatten(0, (2, -1))
    # In two halves: PyTorch's processors share sampling out by pictures, and of these there is one.
    halves = F.grid_sample(flat.expand(2, -1, -1, -1), grid[:, None], align_corners=False)[:, :, 0]
    return torch.cat(tuple(halves), 1)[:, : len(points)].unflatten(0, maps.shape[:-2])


def sample_own(maps: Tensor, points: Tensor) -> Tensor:
    """maps (M, h, w), each at points of its own (M, P, 2) → (M, P); differentiable in the maps."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def sample_target(target: Target, points: Tensor) -> Sampled:
    """The objects' masks at points (P, 2), as `grid_sample` would find them in N binary masks.

    A point is valid where every pixel that has weight in it is; what is beside the picture has the value 0, as there.
    """
    height, width = target.valid.shape
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    left, top = x.floor(), y.floor()
    inside = points.new_zeros(len(target.labels) + 1, len(points))
    valid = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for row, column, weight in (
        (top, left, (top + 1 - y) * (left + 1 - x)),
        (top, left + 1, (top + 1 - y) * (x - left)),
        (top + 1, left, (y - top) * (left + 1 - x)),
        (top + 1, left + 1, (y - top) * (x - left)),
    ):
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        valid &= target.valid.flatten()[index] | ~there | (weight <= 0)
        share = weight * there
        for layer in target.layers:
            inside.scatter_add_(0, layer.flatten()[index].long()[None], share[None])
    return Sampled(inside[1:], valid.to(points.dtype))


def most_uncertain(logits: Tensor, valid: Tensor, count: int) -> Tensor:
    """logits (M, P), valid (P,) → (M, count) numbers of the points nearest to the edge of each mask (logit 0)."""
    uncertainty = torch.where(valid > 0, -logits.abs(), -torch.inf)
    return uncertainty.topk(count, dim=1, sorted=False).indices
