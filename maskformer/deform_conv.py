"""Modulated deformable 3×3 convolution (DCNv2, arXiv 1811.11168) as one bilinear sampling and one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = 3


def deform_conv(x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor) -> Tensor:
    """Stride 1, padding 1, one offset group: the same numbers as torchvision.ops.deform_conv2d, to rounding.

    x (B, C, H, W); offset (B, 18, H, W) in pixels, (y, x) of each kernel point in row-major order; modulation
    (B, 9, H, W); weight (O, C, 3, 3) → (B, O, H, W). Corners outside the map count as zero. Places are computed and
    sampled in float32 under autocast, the product runs in autocast's precision.
    """
    batch, channels, height, width = x.shape
    with torch.autocast(x.device.type, enabled=False):
        shift = offset.float().unflatten(1, (KERNEL * KERNEL, 2))  # (B, 9, 2, H, W)
        point = torch.arange(KERNEL * KERNEL, device=x.device)
        tap_y = (point // KERNEL - 1)[:, None, None]
        tap_x = (point % KERNEL - 1)[:, None, None]
        rows = torch.arange(height, device=x.device)[:, None]
        columns = torch.arange(width, device=x.device)
        y = shift[:, :, 0] + (rows + tap_y)  # (B, 9, H, W), pixels
        x_ = shift[:, :, 1] + (columns + tap_x)
        # grid_sample's -1 and 1 are the outer edges of the first and last pixel.
        grid = torch.stack(((2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1).flatten(1, 2)
        taps = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        taps = taps.view(batch, channels, KERNEL * KERNEL, height * width) * modulation.float().flatten(2)[:, None]
    return (weight.flatten(1) @ taps.flatten(1, 2)).unflatten(2, (height, width))
