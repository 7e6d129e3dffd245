"""Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159) in plain PyTorch: no extension to compile.

A token looks at a few learned places of every level. Exact semantics: bilinear, zero outside, pixel centres at halves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskformer.deformable_sampling import Sizes, sample
from maskformer.fast_linear import fast_affine, fast_linear

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
        mixed = sample(fast_linear(self.value_proj, value), self._places(query), sizes, self.heads)
        return fast_linear(self.output_proj, mixed.to(value.dtype))

    def _places(self, query: Tensor) -> Tensor:
        """(B, N, 3 · samples): x offsets, y offsets and weight logits as three planes, by one matrix product."""
        offsets, logits = self.sampling_offsets, self.attention_weights
        weight = torch.cat((offsets.weight[0::2], offsets.weight[1::2], logits.weight))
        bias = torch.cat((offsets.bias[0::2], offsets.bias[1::2], logits.bias))
        return fast_affine(weight, bias, query)
