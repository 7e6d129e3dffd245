"""Focal (or BCE) and dice of matched masks at the input's resolution, without ever holding them all at that size.

MaskFormer upsamples every matched mask to the input and compares it with a binary target: with 100 objects in 512² that
is 100 MB a tensor, and autograd keeps a dozen. Upsampling is linear, so the gradient at a quarter of the size is all
that is needed: a few masks at a time are upsampled, loss and gradient computed in one pass, the gradient brought back
through the transpose of the upsampling, the rest forgotten. Targets are compared to a label map, never stacked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = 0.25  # of the focal loss, with γ = 2 (Lin et al. 2017)
CHUNK_PIXELS = 1 << 19  # upsampled at once: 2 MiB a temporary in float32, which the caches hold


class MaskLosses(torch.autograd.Function):
    """Losses of M masks: logits (M, h, w), numbers (M,) of their objects in layers (L, H, W), valid (H, W) bool.

    `apply` → (focal or BCE (M,), dice (M,)), means over valid pixels. ⌈H/4⌉ = h: what upsampling adds beyond H is cut.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, numbers: Tensor, layers: Tensor, valid: Tensor, focal: bool
    ) -> tuple[Tensor, Tensor]:
        height, width = valid.shape
        chunk = max(1, CHUNK_PIXELS // (height * width))
        pixel, dice = logits.new_empty(len(logits)), logits.new_empty(len(logits))
        pixel_slope, dice_slope = torch.empty_like(logits), torch.empty_like(logits)
        everywhere = bool(valid.all()) if valid.device.type == "cpu" else False
        weight = None if everywhere else valid.to(logits.dtype)
        for start in range(0, len(logits), chunk):
            part = slice(start, start + chunk)
            inside = _inside(numbers[part], layers, logits.dtype)
            results = _compare(_upsample(logits[part], (height, width)), inside, weight, focal)
            pixel[part], dice[part] = results[0], results[2]
            pixel_slope[part] = _downsample(results[1], logits.shape[-2:])
            dice_slope[part] = _downsample(results[3], logits.shape[-2:])
        ctx.save_for_backward(pixel_slope, dice_slope)
        return pixel, dice

    @staticmethod
    def backward(ctx: Any, pixel: Tensor, dice: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pixel_slope, dice_slope = ctx.saved_tensors
        slope = pixel_slope * pixel[:, None, None] + dice_slope * dice[:, None, None]
        return slope, None, None, None, None


def _inside(numbers: Tensor, layers: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, H, W): 1 inside the object, 0 outside."""
    found = layers[:1] == numbers[:, None, None] + 1
    for layer in layers[1:]:
        found |= layer == numbers[:, None, None] + 1
    return found.to(dtype)


def _compare(x: Tensor, inside: Tensor, weight: Tensor | None, focal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and inside (M, H, W) → per mask pixel loss (M,), its slope (M, H, W), dice (M,), its slope (M, H, W).

    Every line is a pass over the pixels, and passes are what it costs: hence few, in place, and sums as dot products.
    """
    s = torch.addcmul(x, x, inside, value=-2)  # −x inside: how wrong a pixel is
    wrong = s.sigmoid()  # 1 − p_t
    penalty = F.softplus(s)
    if focal:
        square = wrong.square()
        slope = torch.addcmul(penalty, penalty, wrong, value=-1).mul_(2).add_(wrong).mul_(square)
        slope = torch.addcmul(slope * (1 - ALPHA), slope, inside, value=-1)
        value = penalty.mul_(square)
    else:
        value, slope = penalty, torch.addcmul(wrong, wrong, inside, value=-2)
    steep = torch.addcmul(wrong, wrong, wrong, value=-1)
    if weight is None:
        area: Tensor | int = x.shape[-1] * x.shape[-2]
        size = inside.sum((1, 2))
    else:
        area = weight.sum().clamp(min=1)
        for each in (value, slope, wrong, steep):
            each.mul_(weight)
        size = (inside * weight).sum((1, 2))
    missed = _dot(wrong, inside)
    hit = size - missed  # Σ p inside
    below = size + hit + (wrong.sum((1, 2)) - missed) + 1
    # dice = 1 − (2·hit + 1)/below; p moves `below` everywhere and `hit` inside
    ratio = (2 * hit + 1) / below
    outward = (ratio / below)[:, None, None]
    dice_slope = torch.addcmul(outward, inside, (-2 / below)[:, None, None]).mul_(steep)
    pixel = value.sum((1, 2))
    if focal:
        pixel = (1 - ALPHA) * pixel - (1 - 2 * ALPHA) * _dot(value, inside)
    return pixel / area, slope.div_(area), 1 - ratio, dice_slope


def _dot(a: Tensor, b: Tensor) -> Tensor:  # (M, H, W) twice -> (M,)
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))  # bmm of rows and columns takes 14 times as long


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, h, w) → (M, H, W): ×4 bilinear, cut to `size`."""
    whole = F.interpolate(x[:, None], size=(4 * x.shape[1], 4 * x.shape[2]), mode="bilinear", align_corners=False)
    return whole[:, 0, : size[0], : size[1]]


def _downsample(gradient: Tensor, size: torch.Size) -> Tensor:
    """The transpose of `_upsample`: gradient (M, H, W) → (M, h, w).

    Axis by axis: rows as sums of every fourth one, columns as a product with the matrix of the upsampling. PyTorch's
    own backward scatters one number at a time: 20 ms for 8 masks of 512², this 5 (one thread).
    """
    missing = (0, 4 * size[1] - gradient.shape[2], 0, 4 * size[0] - gradient.shape[1])
    whole = F.pad(gradient, missing) if any(missing) else gradient
    identity = torch.eye(size[1], dtype=whole.dtype, device=whole.device)
    columns = F.interpolate(identity[None], size=4 * size[1], mode="linear", align_corners=False)[0]  # (w, W)
    return _gather_rows(whole) @ columns.T


def _gather_rows(x: Tensor) -> Tensor:
    """(M, 4h, W) → (M, h, W): what each row of cells gave to its own pixels, to those before and to those after it.

    What would have come from beyond the picture came from the border itself.
    """
    first, second, third, fourth = x.unflatten(1, (-1, 4)).unbind(2)
    own = (first + fourth).mul_(0.625).add_(second + third, alpha=0.875)
    for near, far, giver, taker in (
        (first, second, slice(1, None), slice(None, -1)),
        (fourth, third, slice(None, -1), slice(1, None)),
        (first, second, slice(None, 1), slice(None, 1)),
        (fourth, third, slice(-1, None), slice(-1, None)),
    ):
        own[:, taker].add_(near[:, giver], alpha=0.375).add_(far[:, giver], alpha=0.125)
    return own
