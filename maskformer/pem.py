"""The light pixel decoder of PEM (arXiv 2402.19422): gated 1×1 laterals, one deformable convolution a level.

Built from a written description of the published behaviour, not from its code. What one would not guess from the paper
is kept as published and marked QUIRK.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.deform_conv import deform_conv
from maskformer.pixel_decoders import PixelFeatures

KERNEL_POINTS = 9  # of a 3×3 kernel


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    """1×1 convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class ContextGate(nn.Module):
    """Context-based self-modulation: x + x · gate, one gate a channel from the picture's mean through a small MLP.

    QUIRK: the gate goes through two sigmoids, so that it lies within (0.5, 0.731): it never closes a channel, x is
    scaled by 1.5 to 1.731.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.squeeze = conv_norm(dim, dim // 2)
        self.excite = nn.Conv2d(dim // 2, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, d, h, w) → (B, d, h, w)."""
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x + x * gate.sigmoid().sigmoid()


class DeformLayer(nn.Module):
    """Modulated deformable 3×3 convolution (DCNv2, arXiv 1811.11168), and its result at twice the size.

    The offset convolution starts at zero: at first this is a plain convolution at half weight (the modulation of 0 is
    sigmoid(0)).
    QUIRK: the 27 raw channels are 18 offsets and 9 modulations; the published code names the first nine x and the next
    nine y, but hands them on unpermuted, and the kernel reads (y, x) pairs: channels 2k and 2k + 1 are kernel point k.
    QUIRK: the transposed convolution starts as bilinear upsampling in its output channel 0 only, summed over all input
    channels; the other channels start random.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(dim, 3 * KERNEL_POINTS, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]  # it has one
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)  # its weight is used at the offset places
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        self.norm = nn.BatchNorm2d(dim)
        self.up = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1, bias=False)
        with torch.no_grad():
            self.up.weight[:, 0] = bilinear_kernel()
        self.up_norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, d, h, w) → (B, d, h, w) for the queries, (B, d, 2h, 2w) for the next finer level."""
        raw = self.offset(x)
        offset, modulation = raw[:, : 2 * KERNEL_POINTS], raw[:, 2 * KERNEL_POINTS :].sigmoid()
        x = torch.relu(self.norm(deform_conv(x, offset, modulation, self.conv.weight)))
        return x, torch.relu(self.up_norm(self.up(x)))


def bilinear_kernel() -> Tensor:
    """(4, 4): what a transposed convolution of stride 2 needs to upsample bilinearly; sums to 4."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    return line[:, None] * line


class PEMPixelDecoder(nn.Module):
    """Backbone maps → mask features at stride 4 and the deformable layers' outputs at strides 32, 16, 8 as memory.

    A transposed convolution doubles sizes exactly. Where the finer map is smaller (sides that are no multiple of 32
    round up at every stride) the surplus last row or column is cut off.

    The context branch and the gates are batch-normalised over one value a picture, so training needs two pictures in a
    batch: ValueError with one, unless those norms are in evaluation mode or synchronised over processes.
    """

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        dim = config.pixel_dim
        if dim % 2:
            raise ValueError(f"pixel_dim: {dim} is odd, PEM's gates have half of it")
        coarse_first = tuple(reversed(channels))  # strides 32, 16, 8, 4
        self.context = conv_norm(coarse_first[0], dim)
        self.lateral = nn.ModuleList(conv_norm(width, dim) for width in coarse_first)
        self.gate = nn.ModuleList(ContextGate(dim) for _ in coarse_first)
        self.deform = nn.ModuleList(DeformLayer(dim) for _ in coarse_first[:-1])
        self.out = conv_norm(dim, config.mask_dim)
        self.memory_channels: tuple[int, ...] = (dim, dim, dim)

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        """features: (B, C, ⌈H/s⌉, ⌈W/s⌉) at strides 4, 8, 16, 32."""
        norm = self.context[1]
        if norm.training and type(norm) is nn.BatchNorm2d and features[0].shape[0] == 1:
            raise ValueError("training PEM needs at least 2 pictures in a batch: its gates normalise over the batch")
        coarsest, *finer = reversed(features)
        x = self.lateral[0](coarsest) + self.context(coarsest.mean((2, 3), keepdim=True))
        x = self.gate[0](x)
        memory = []
        for feature, lateral, gate, deform in zip(finer, self.lateral[1:], self.gate[1:], self.deform, strict=True):
            seen, up = deform(x)
            memory.append(seen)
            level = gate(lateral(feature))
            height, width = level.shape[-2:]
            x = level + up[:, :, :height, :width]
        return PixelFeatures(self.out(x), (memory[0], memory[1], memory[2]))
