"""Losses of the maps a located decoder draws for training: where objects are, and where their centres lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer.targets import Target

SPREAD = 0.14  # of a bump, in box sides: σ of about 6 px for a crown of 40 px
LEAST_SPREAD = 0.4  # cells


def semantic_loss(logits: Tensor, targets: list[Target]) -> Tensor:
    """Binary cross-entropy + dice of logits (B, K, h, w) with the union of each class' objects; valid pixels only.

    Classes may overlap. Targets are averaged down to the size of the logits.
    """
    classes, step = logits.shape[1], targets[0].valid.shape[0] // logits.shape[2]
    union = torch.stack(
        [torch.stack([target.masks[target.labels == k].any(0) for k in range(classes)]) for target in targets]
    )  # (B, K, H, W)
    valid = torch.stack([target.valid for target in targets])[:, None].float()
    share = F.avg_pool2d(valid, step)  # (B, 1, h, w)
    wanted = F.avg_pool2d(union * valid, step) / share.clamp(min=1e-6)
    pixel = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * share
    p, t = logits.sigmoid() * share, wanted * share
    both, either = (p * wanted).sum((0, 2, 3)), (p + t).sum((0, 2, 3))
    return pixel.sum() / (share.sum() * classes).clamp(min=1) + (1 - (2 * both + 1) / (either + 1)).mean()


def centre_loss(logits: Tensor, targets: list[Target], count: Tensor) -> Tensor:
    """Penalty-reduced focal loss (CenterNet, arXiv 1904.07850: α 2, β 4) of logits (B, K, h, w), Σ / count."""
    size = (logits.shape[2], logits.shape[3])
    wanted = torch.stack([bumps(target, logits.shape[1], size) for target in targets])
    step = targets[0].valid.shape[0] // size[0]
    valid = F.avg_pool2d(torch.stack([target.valid for target in targets])[:, None].float(), step) > 0.5
    p = logits.sigmoid()
    at_centre = F.softplus(-logits) * (1 - p).square()
    elsewhere = F.softplus(logits) * p.square() * (1 - wanted) ** 4
    return (torch.where(wanted == 1, at_centre, elsewhere) * valid).sum() / count


def bumps(target: Target, classes: int, size: tuple[int, int]) -> Tensor:
    """(K, *size): of each class, the highest Gaussian bump of its objects; exactly 1 in the cell of a box' middle."""
    masks = target.masks & target.valid
    heat = torch.zeros(classes, *size, device=masks.device)
    down, height = _bump(masks.any(2), size[0])
    across, _ = _bump(masks.any(1), size[1])
    one = down[:, :, None] * across[:, None, :] * height[:, None, None]  # (N, h, w), 0 for objects nobody can see
    return heat.scatter_reduce_(0, target.labels[:, None, None].expand_as(one), one, "amax")


def _bump(occupied: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """occupied (N, length) bool → a bump along that axis (N, cells), and 1 or 0 where an object has any pixel (N,)."""
    length = occupied.shape[1]
    step = length // cells
    first = occupied.float().argmax(1)
    last = length - occupied.flip(1).float().argmax(1)  # half-open
    cell = (first + last).div(2 * step, rounding_mode="floor").clamp(max=cells - 1)
    spread = ((last - first) * (SPREAD / step)).clamp(min=LEAST_SPREAD)
    place = torch.arange(cells, device=occupied.device)
    return torch.exp(-((place - cell[:, None]) / spread[:, None]).square() / 2), occupied.any(1).float()
