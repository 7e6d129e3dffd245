"""STDC: a backbone of short-term dense concatenation for real-time segmentation (arXiv 2104.13188).

A block halves its width from convolution to convolution and concatenates all of them, so that receptive fields of
several sizes sit side by side in one map. stdc1 has (2, 2, 2) blocks at strides 8, 16 and 32, stdc2 (4, 5, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

LAYERS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class DenseConcatenation(nn.Module):
    """The STDC block: 1×1 to half the width, then 3×3 to a quarter, an eighth, an eighth; all four concatenated.

    With stride 2 the second convolution reads a strided depthwise convolution of the first, and the first itself is
    average-pooled (padding counts as zeros in the mean, as published) to sit beside the others.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        widths = (outputs // 2, outputs // 4, outputs // 8, outputs // 8)
        first = ConvNorm(inputs, widths[0], kernel=1)
        rest = (ConvNorm(a, b) for a, b in pairwise(widths))
        self.conv_list = nn.ModuleList((first, *rest))
        self.avd_layer: nn.Module = nn.Identity()
        self.skip: nn.Module = nn.Identity()
        if stride == 2:
            half = widths[0]
            depthwise = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
            nn.init.kaiming_normal_(depthwise.weight, mode="fan_out", nonlinearity="relu")
            self.avd_layer = nn.Sequential(depthwise, nn.BatchNorm2d(half))  # no ReLU
            self.skip = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, H, W) → (B, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        first = self.conv_list[0](x)
        parts = [self.skip(first)]
        x = self.avd_layer(first)
        for conv in self.conv_list[1:]:
            x = conv(x)
            parts.append(x)
        return torch.cat(parts, dim=1)


class STDC(nn.Module):
    """Image (B, C, H, W) → features at strides 4, 8, 16, 32, finest first; widths (1, 4, 8, 16) × `width`, `channels`.

    Submodules are named as the published state dicts name theirs (features.i.conv, conv_list, avd_layer). `layers`
    and `width` are for experiments. ValueError for an unknown name or a width the blocks cannot halve.
    """

    def __init__(
        self, name: str, in_channels: int = 3, *, layers: Sequence[int] | None = None, width: int = 64
    ) -> None:
        super().__init__()
        if name not in LAYERS:
            raise ValueError(f"backbone: {name!r} is not one of {', '.join(LAYERS)}")
        if width < 2 or width % 2:
            raise ValueError(f"backbone_options: STDC's width {width} is not a positive even number")
        layers = LAYERS[name] if layers is None else tuple(layers)
        if len(layers) != 3 or min(layers) < 1:
            raise ValueError(f"backbone_options: STDC's layers {layers} are not three positive numbers")
        self.channels = (width, 4 * width, 8 * width, 16 * width)
        blocks: list[nn.Module] = [ConvNorm(in_channels, width // 2, stride=2), ConvNorm(width // 2, width, stride=2)]
        self.ends = [len(blocks)]  # a stage ends before this block
        for (inputs, outputs), depth in zip(pairwise(self.channels), layers, strict=True):
            blocks.append(DenseConcatenation(inputs, outputs, stride=2))
            blocks.extend(DenseConcatenation(outputs, outputs, stride=1) for _ in range(depth - 1))
            self.ends.append(len(blocks))
        self.features = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, block in enumerate(self.features, start=1):
            x = block(x)
            if i in self.ends:
                maps.append(x)
        return maps
