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
CHUNK_PIXELS = 1 << 21  # upsampled at once: 8 MiB a temporary in float32


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
            sign = _signs(numbers[part], layers, logits.dtype)
            results = _compare(_upsample(logits[part], (height, width)), sign, weight, focal)
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


def _signs(numbers: Tensor, layers: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, H, W): −1 inside the object, 1 outside, so that sign·logit is how wrong a pixel is."""
    inside = (layers[None] == numbers[:, None, None, None] + 1).any(1)
    return 1 - 2 * inside.to(dtype)


def _compare(x: Tensor, sign: Tensor, weight: Tensor | None, focal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and sign (M, H, W) → per mask pixel loss (M,), its slope (M, H, W), dice (M,), its slope (M, H, W)."""
    s = x * sign
    wrong = s.sigmoid()  # 1 − p_t
    penalty = F.softplus(s)
    inside = sign < 0
    if focal:
        share = torch.where(inside, ALPHA, 1 - ALPHA)
        square = wrong.square()
        value = share * penalty * square
        slope = share * sign * square * (wrong + 2 * penalty * (1 - wrong))
    else:
        value, slope = penalty, sign * wrong
    p = torch.where(inside, 1 - wrong, wrong)
    steep = wrong * (1 - wrong)
    if weight is None:
        area = torch.tensor(float(x.shape[-1] * x.shape[-2]), dtype=x.dtype, device=x.device)
        both = torch.where(inside, p, 0).sum((1, 2))
        total = p.sum((1, 2)) + inside.sum((1, 2))
    else:
        area = weight.sum().clamp(min=1)
        value, slope, p, steep = value * weight, slope * weight, p * weight, steep * weight
        both = torch.where(inside, p, 0).sum((1, 2))
        total = p.sum((1, 2)) + (inside * weight).sum((1, 2))
    # dice = 1 − (2·both + 1)/(total + 1); p moves `total` everywhere and `both` inside
    below = total + 1
    toward = (2 * both + 1) / below.square()
    dice_slope = steep * torch.where(inside, (toward - 2 / below)[:, None, None], toward[:, None, None])
    return value.sum((1, 2)) / area, slope / area, 1 - (2 * both + 1) / below, dice_slope


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, h, w) → (M, H, W): ×4 bilinear, cut to `size`."""
    whole = F.interpolate(x[:, None], size=(4 * x.shape[1], 4 * x.shape[2]), mode="bilinear", align_corners=False)
    return whole[:, 0, : size[0], : size[1]]


def _downsample(gradient: Tensor, size: torch.Size) -> Tensor:
    """The transpose of `_upsample`: gradient (M, H, W) → (M, h, w)."""
    height, width = 4 * size[0], 4 * size[1]
    missing = (0, width - gradient.shape[2], 0, height - gradient.shape[1])
    whole = F.pad(gradient, missing) if any(missing) else gradient
    shape = [len(gradient), 1, size[0], size[1]]
    return torch.ops.aten.upsample_bilinear2d_backward(whole[:, None], [height, width], shape, False)[:, 0]
