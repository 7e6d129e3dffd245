"""Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159) in plain PyTorch: no extension to compile.

A token looks at a few learned places of every level. Exact semantics: bilinear, zero outside, pixel centres at halves.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sizes = tuple[tuple[int, int], ...]  # (height, width) of each level

POINTS = 4  # places a head looks at on each level


class DeformableAttention(nn.Module):
    """Every token of every level looks at POINTS places of each level, per head, round its own place."""

    def __init__(self, dim: int, heads: int, levels: int) -> None:
        super().__init__()
        self.heads, self.levels = heads, levels
        samples = heads * levels * POINTS
        self.sampling_offsets = nn.Linear(dim, 2 * samples)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._initialise()

    def _initialise(self) -> None:
        """Head h looks in the direction 2πh/heads, point i at i + 1 pixels (measured along the longer axis)."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ring = torch.stack((angle.cos(), angle.sin()), dim=1)  # (heads, 2): x, y
        ring = ring / ring.abs().amax(dim=1, keepdim=True)
        reach = torch.arange(1, POINTS + 1, dtype=torch.float32)
        bias = ring[:, None, None] * reach[:, None]  # (heads, 1, POINTS, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).reshape(-1))
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, value: Tensor, sizes: Sizes) -> Tensor:
        """query (with position) and value (B, N, d): tokens of levels of these sizes, one after another → (B, N, d)."""
        batch, tokens, dim = query.shape
        offsets = self.sampling_offsets(query).float().view(batch, tokens, self.heads, self.levels, POINTS, 2)
        weights = self.attention_weights(query).float().view(batch, tokens, self.heads, -1).softmax(-1)
        values = self.value_proj(value).view(batch, tokens, self.heads, dim // self.heads)
        return self.output_proj(sample_grid(values, offsets, weights, sizes).to(values.dtype))


def sample_grid(values: Tensor, offsets: Tensor, weights: Tensor, sizes: Sizes) -> Tensor:
    """Weighted sum of bilinear samples, by grid_sample: for GPUs, compilation and export.

    values (B, N, heads, d), offsets (B, N, heads, levels, points, 2) in pixels of the level sampled, x first,
    weights (B, N, heads, levels · points) → (B, N, heads · d). Zero outside the maps.
    """
    batch, tokens, heads, _ = values.shape
    places = reference_points(sizes, values.device)  # (N, 2)
    sampled = []
    for level, (part, (height, width)) in enumerate(
        zip(values.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
    ):
        scale = torch.tensor((width, height), device=values.device, dtype=torch.float32)
        grid = 2 * (places[:, None, None] + offsets[:, :, :, level] / scale) - 1  # (B, N, heads, points, 2)
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width)
        grid = grid.transpose(1, 2).reshape(batch * heads, tokens, -1, 2)
        sampled.append(F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    stacked = torch.cat(sampled, dim=3)  # (B · heads, d, N, levels · points)
    by_head = weights.transpose(1, 2).reshape(batch * heads, 1, tokens, -1)
    mixed = (stacked * by_head).sum(3)  # (B · heads, d, N)
    return mixed.view(batch, -1, tokens).transpose(1, 2)


def reference_points(sizes: Sizes, device: torch.device) -> Tensor:
    """Pixel centres of every level in [0, 1], (N, 2), x first, levels one after another."""
    if torch.compiler.is_compiling():
        return _reference_points(sizes, device)
    return _cached_reference_points(sizes, device)


@functools.lru_cache(maxsize=64)
def _cached_reference_points(sizes: Sizes, device: torch.device) -> Tensor:
    # Made outside inference mode: a cached inference tensor could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return _reference_points(sizes, device)


def _reference_points(sizes: Sizes, device: torch.device) -> Tensor:
    levels = []
    for height, width in sizes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        levels.append(torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=2).flatten(0, 1))
    return torch.cat(levels)
