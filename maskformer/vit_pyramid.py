"""A plain ViT through a simple feature pyramid (Li et al. 2022, ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

PATCH = 16
# Where timm keeps plain ViTs: one map, class and register tokens before it.
_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")


def is_plain_vit(name: str) -> bool:
    """Whether timm's model `name` is a ViT without a feature pyramid of its own."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__ in _MODULES


class ViTPyramid(nn.Module):
    """Image (B, C, H, W) → maps (B, 256, ⌈H/s⌉, ⌈W/s⌉) at strides s = 4, 8, 16, 32, all from the ViT's last map.

    Any H and W: sides are padded with 0 to the patch, position embeddings resampled. `options` are timm's for the ViT
    (img_size, depth, drop_path_rate, ...). The patch is 16, whatever the ViT was trained with; ValueError for another.
    """

    network: Any  # timm's ViT

    def __init__(self, name: str, in_channels: int = 3, width: int = 256, **options: Any) -> None:
        super().__init__()
        fixed: dict[str, Any] = {"pretrained": False, "num_classes": 0, "global_pool": "", "dynamic_img_size": True}
        try:
            self.network = timm.create_model(name, in_chans=in_channels, **fixed, **{"patch_size": PATCH, **options})
        except TypeError as error:
            raise ValueError(f"backbone_options: {name} does not take {options}: {error}") from None
        if tuple(self.network.patch_embed.patch_size) != (PATCH, PATCH):
            raise ValueError(f"backbone_options: patch_size {options['patch_size']}, the pyramid needs {PATCH}")
        dim = self.network.embed_dim
        self.channels = (width,) * 4
        self.levels = nn.ModuleList(
            (
                nn.Sequential(
                    nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
                    LayerNorm2d(dim // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2),
                    *_projection(dim // 4, width),
                ),
                nn.Sequential(nn.ConvTranspose2d(dim, dim // 2, 2, stride=2), *_projection(dim // 2, width)),
                nn.Sequential(*_projection(dim, width)),
                nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), *_projection(dim, width)),
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % PATCH, 0, -height % PATCH))
        grid = (x.shape[-2] // PATCH, x.shape[-1] // PATCH)
        tokens = self.network.forward_features(x)[:, self.network.num_prefix_tokens :]
        last = tokens.transpose(1, 2).unflatten(2, grid)
        maps = (level(last) for level in self.levels)
        return [m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, (4, 8, 16, 32), strict=True)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.network.set_grad_checkpointing(enable)


def _projection(dim: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(dim, width, 1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width),
    ]
