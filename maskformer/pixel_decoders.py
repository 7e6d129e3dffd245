"""Pixel decoders: backbone features → mask features at stride 4 and memory for the query decoder.

Source: MaskFormer (arXiv 2107.06278): "fpn" of the semantic models, "transformer_fpn" of the R50/R101 panoptic ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from maskformer.attention import EncoderLayer
from maskformer.config import ModelConfig
from maskformer.position import sine_position

MEMORY_STRIDES = (32, 16, 8)


class PixelFeatures(NamedTuple):
    """mask_features (B, mask_dim, H/4, W/4); memory: maps the queries may look at, MEMORY_STRIDES."""

    mask_features: Tensor
    memory: tuple[Tensor, ...]


def conv_norm(inputs: int, outputs: int, kernel: int, activation: bool = True) -> nn.Sequential:
    """Convolution without bias, GroupNorm of 32 groups (fewer where 32 does not divide), ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    norm = nn.GroupNorm(math.gcd(32, outputs), outputs)
    return nn.Sequential(conv, norm, nn.ReLU()) if activation else nn.Sequential(conv, norm)


def biased_conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """Convolution with a bias that starts at 0, weights kaiming-uniform with a = 1 (Caffe2's "xavier")."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.constant_(conv.bias, 0.0)  # type: ignore[arg-type]  # it has one
    return conv


class FPN(nn.Module):
    """Feature pyramid: top 3×3, then lateral 1×1 (no ReLU) + nearest ×2 + 3×3; a 3×3 with bias gives mask features.

    Memory is the stride-32 backbone feature itself, then the pyramid's stride-16 and stride-8 maps.
    """

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        dim = config.pixel_dim
        self.top = conv_norm(channels[-1], dim, 3)
        self.lateral = nn.ModuleList(conv_norm(width, dim, 1, activation=False) for width in channels[-2::-1])
        self.output = nn.ModuleList(conv_norm(dim, dim, 3) for _ in channels[:-1])
        self.mask_features = biased_conv(dim, config.mask_dim, 3)
        self.memory_channels: tuple[int, ...] = (channels[-1], dim, dim)

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        return self.pyramid(features, memory=features[-1])

    def pyramid(self, features: Sequence[Tensor], memory: Tensor) -> PixelFeatures:
        x = self.top(features[-1])
        levels = []
        for lateral, output, feature in zip(self.lateral, self.output, features[-2::-1], strict=True):
            beside = lateral(feature)
            x = output(beside + F.interpolate(x, size=beside.shape[-2:], mode="nearest"))
            levels.append(x)
        return PixelFeatures(self.mask_features(x), (memory, levels[0], levels[1]))


class TransformerFPN(FPN):
    """The FPN over a transformer encoder: stride 32 goes through 1×1 and `encoder_layers` self-attention layers first.

    The queries look at the encoder's output.
    """

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        dim = config.pixel_dim
        super().__init__((*channels[:-1], dim), config)
        self.input_proj = biased_conv(channels[-1], dim, 1)
        self.encoder = nn.ModuleList(
            EncoderLayer(dim, config.num_heads, config.encoder_feedforward_dim, config.dropout)
            for _ in range(config.encoder_layers)
        )

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        x = self.input_proj(features[-1])
        batch, dim, height, width = x.shape
        position = sine_position(height, width, dim, x.device).to(x.dtype).flatten(2).transpose(1, 2)  # (1, hw, d)
        tokens = x.flatten(2).transpose(1, 2)  # (B, hw, d)
        for layer in self.encoder:
            tokens = layer(tokens, position)
        encoded = tokens.transpose(1, 2).reshape(batch, dim, height, width)
        return self.pyramid((*features[:-1], encoded), memory=encoded)
