"""Losses of the maps a located decoder draws for training: where objects are, and where their centres lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer.targets import Target

SPREAD = 0.14  # of a bump, in box sides: σ of about 6 px for a crown of 40 px
LEAST_SPREAD = 0.4  # cells


def averaged(target: Target, step: int) -> tuple[Tensor, Tensor]:
    """Every object's share of the valid pixels of each cell (N, h, w), and the share of pixels that is valid (h, w).

    Cells of step × step pixels; sides are rounded up.
    """
    height, width = target.valid.shape
    size = (-(-height // step), -(-width // step))
    cells = size[0] * size[1]
    row = torch.arange(height, device=target.valid.device) // step
    column = torch.arange(width, device=target.valid.device) // step
    cell = row[:, None] * size[1] + column
    count = len(target.labels) + 1
    pixels = torch.zeros(count * cells, device=target.valid.device)
    weight = target.valid.float().flatten()
    for layer in target.layers:
        pixels.scatter_add_(0, (layer.long() * cells + cell).flatten(), weight)
    valid = torch.zeros(cells, device=target.valid.device).scatter_add_(0, cell.flatten(), weight)
    inside = pixels.view(count, cells)[1:] / valid.clamp(min=1e-6)
    return inside.unflatten(1, size), (valid / step**2).unflatten(0, size)


def semantic_loss(logits: Tensor, targets: list[Target]) -> Tensor:
    """Binary cross-entropy + dice of logits (B, K, h, w) with the union of each class' objects; valid pixels only.

    Classes may overlap. Targets are averaged down to the size of the logits.
    """
    classes, step = logits.shape[1], -(-targets[0].valid.shape[0] // logits.shape[2])
    union = torch.stack([class_maps(target, classes) for target in targets])  # (B, K, H, W)
    valid = torch.stack([target.valid for target in targets])[:, None].float()
    share = F.avg_pool2d(valid, step, ceil_mode=True)  # (B, 1, h, w)
    wanted = F.avg_pool2d(union * valid, step, ceil_mode=True) / share.clamp(min=1e-6)
    pixel = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * share
    p, t = logits.sigmoid() * share, wanted * share
    both, either = (p * wanted).sum((0, 2, 3)), (p + t).sum((0, 2, 3))
    return pixel.sum() / (share.sum() * classes).clamp(min=1) + (1 - (2 * both + 1) / (either + 1)).mean()


def class_maps(target: Target, classes: int) -> Tensor:
    """(K, H, W) bool: where an object of each class lies."""
    label = torch.cat((torch.full((1,), -1, device=target.labels.device), target.labels))
    maps = label[target.layers.long()]  # (L, H, W)
    return torch.stack([(maps == k).any(0) for k in range(classes)])


def centre_loss(logits: Tensor, targets: list[Target], count: Tensor) -> Tensor:
    """Penalty-reduced focal loss (CenterNet, arXiv 1904.07850: α 2, β 4) of logits (B, K, h, w), Σ / count."""
    size = (logits.shape[2], logits.shape[3])
    wanted = torch.stack([bumps(target, logits.shape[1], size) for target in targets])
    step = -(-targets[0].valid.shape[0] // size[0])
    valid = F.avg_pool2d(torch.stack([target.valid for target in targets])[:, None].float(), step, ceil_mode=True) > 0.5
    p = logits.sigmoid()
    at_centre = F.softplus(-logits) * (1 - p).square()
    elsewhere = F.softplus(logits) * p.square() * (1 - wanted) ** 4
    return (torch.where(wanted == 1, at_centre, elsewhere) * valid).sum() / count


def bumps(target: Target, classes: int, size: tuple[int, int]) -> Tensor:
    """(K, *size): of each class, the highest Gaussian bump of its objects; exactly 1 in the cell of a box' middle."""
    heat = torch.zeros(classes, *size, device=target.valid.device)
    rows, columns = occupied(target)
    down, height = _bump(rows, size[0])
    across, _ = _bump(columns, size[1])
    one = down[:, :, None] * across[:, None, :] * height[:, None, None]  # (N, h, w), 0 for objects nobody can see
    return heat.scatter_reduce_(0, target.labels[:, None, None].expand_as(one), one, "amax")


def occupied(target: Target) -> tuple[Tensor, Tensor]:
    """Rows (N, H) and columns (N, W) bool in which an object has a valid pixel."""
    height, width = target.valid.shape
    count, device = len(target.labels) + 1, target.valid.device
    rows = torch.zeros(count, height, dtype=torch.bool, device=device)
    columns = torch.zeros(count, width, dtype=torch.bool, device=device)
    row = torch.arange(height, device=device)[:, None].expand(height, width)
    column = torch.arange(width, device=device).expand(height, width)
    for layer in target.layers:
        number = (layer * target.valid).long()
        rows[number, row] = True
        columns[number, column] = True
    return rows[1:], columns[1:]


def _bump(occupied: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """occupied (N, length) bool → a bump along that axis (N, cells), and 1 or 0 where an object has any pixel (N,)."""
    length = occupied.shape[1]
    step = -(-length // cells)
    first = occupied.float().argmax(1)
    last = length - occupied.flip(1).float().argmax(1)  # half-open
    cell = (first + last).div(2 * step, rounding_mode="floor").clamp(max=cells - 1)
    spread = ((last - first) * (SPREAD / step)).clamp(min=LEAST_SPREAD)
    place = torch.arange(cells, device=occupied.device)
    return torch.exp(-((place - cell[:, None]) / spread[:, None]).square() / 2), occupied.any(1).float()
