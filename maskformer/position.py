"""Sine position encoding over a feature map, as DETR and MaskFormer use it; cached, since it depends on shape only."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def sine_position(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Encoding (1, dim, height, width), float32: y in the first half of the channels, x in the second.

    Positions count from 1 and are scaled so that the last row (column) is at 2π; sine and cosine are interleaved.
    ValueError where `dim` is not a multiple of 4. Source: Carion et al. 2020 with `normalize=True`.
    """
    if torch.compiler.is_compiling():  # inlined and folded there; a cache would only break the graph
        return _encode(height, width, dim, device)
    return _cached(height, width, dim, device)


@functools.lru_cache(maxsize=16)
def _cached(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    # Made outside inference mode: a cached inference tensor could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return _encode(height, width, dim, device)


def pixel_position(height: int, width: int, dim: int, stride: int, device: torch.device) -> Tensor:
    """Encoding (1, dim, height, width), float32, of pixel distances: cells of `stride` pixels, counted from the corner.

    Unlike `sine_position`, the distance between two encodings does not depend on the size of the picture.
    """
    half = dim // 2
    frequency = 1000.0 ** (-torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)

    def axis(length: int) -> Tensor:  # (half, length)
        place = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) * (stride / 16)
        angle = frequency[:, None] * place
        return torch.cat((angle.sin(), angle.cos()))

    rows = axis(height)[:, :, None].expand(half, height, width)
    columns = axis(width)[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns))[None]


def _encode(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    if dim % 4:
        raise ValueError(f"position encoding: {dim} channels, expected a multiple of 4")
    half = dim // 2
    exponent = torch.arange(half, device=device, dtype=torch.float32).div(2, rounding_mode="floor") * (2 / half)
    frequency = TEMPERATURE ** (-exponent)

    def axis(length: int) -> Tensor:  # (length, half)
        place = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        angle = (place * (2 * math.pi / (length + 1e-6)))[:, None] * frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    rows = axis(height).T[:, :, None].expand(half, height, width)
    columns = axis(width).T[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns))[None]
