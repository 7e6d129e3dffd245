"""The multi-scale deformable pixel decoder of Mask2Former (arXiv 2112.01527), in plain PyTorch.

Six encoder layers of deformable attention over strides 32, 16 and 8, then one FPN step to stride 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskformer.config import ModelConfig
from maskformer.deformable_attention import DeformableAttention
from maskformer.deformable_sampling import Sizes
from maskformer.fast_linear import fast_linear
from maskformer.pixel_decoders import PixelFeatures, biased_conv, conv_norm
from maskformer.position import sine_position

LEVELS = 3  # strides 32, 16, 8


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over the tokens of all levels, then feed-forward; post-norm."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, heads, LEVELS)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor, position: Tensor, sizes: Sizes) -> Tensor:
        """x (B, N, d) and position (1, N, d): tokens of the levels of these sizes, one level after another."""
        x = self.norm1(x + self.dropout(self.self_attn(x + position, x, sizes)))
        hidden = self.dropout(fast_linear(self.linear1, x, "relu"))
        return self.norm2(x + self.dropout(fast_linear(self.linear2, hidden)))


class DeformablePixelDecoder(nn.Module):
    """Backbone features → mask features at stride 4, and memory: the encoded maps at strides 32, 16 and 8."""

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        dim = config.pixel_dim
        self.checkpointing = False
        self.input_proj = nn.ModuleList(_project(width, dim) for width in channels[:-4:-1])  # res5, res4, res3
        self.level_embed = nn.Parameter(torch.empty(LEVELS, dim).normal_())
        self.encoder = nn.ModuleList(
            DeformableEncoderLayer(dim, config.num_heads, config.encoder_feedforward_dim, config.dropout)
            for _ in range(config.encoder_layers)
        )
        self.adapter_1 = conv_norm(channels[0], dim, 1, activation=False)
        self.layer_1 = conv_norm(dim, dim, 3)
        self.mask_features = biased_conv(dim, config.mask_dim, 1)
        self.memory_channels: tuple[int, ...] = (dim,) * LEVELS

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each encoder layer in the backward pass instead of keeping what it made: less memory, more time."""
        self.checkpointing = enable

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        """features: maps (B, C, h, w) at strides 4, 8, 16, 32, finest first."""
        maps = [project(x) for project, x in zip(self.input_proj, features[:-4:-1], strict=True)]
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, N, d)
        position = self._position(sizes, tokens)
        for layer in self.encoder:
            if self.checkpointing and self.training:
                tokens = checkpoint(layer, tokens, position, sizes, use_reentrant=False)
            else:
                tokens = layer(tokens, position, sizes)
        levels = tokens.split([h * w for h, w in sizes], dim=1)
        memory = tuple(x.transpose(1, 2).unflatten(2, size) for x, size in zip(levels, sizes, strict=True))
        beside = self.adapter_1(features[0])
        x = beside + F.interpolate(memory[-1], size=beside.shape[-2:], mode="bilinear")
        return PixelFeatures(self.mask_features(self.layer_1(x)), memory)

    def _position(self, sizes: Sizes, tokens: Tensor) -> Tensor:  # (1, N, d)
        encodings = [
            sine_position(h, w, tokens.shape[2], tokens.device).flatten(2).transpose(1, 2) + embed
            for (h, w), embed in zip(sizes, self.level_embed, strict=True)
        ]
        return torch.cat(encodings, dim=1).to(tokens.dtype)


def _project(inputs: int, dim: int) -> nn.Sequential:
    """1×1 convolution with bias, GroupNorm of 32 groups (fewer where 32 does not divide)."""
    conv = nn.Conv2d(inputs, dim, 1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(32, dim), dim))
