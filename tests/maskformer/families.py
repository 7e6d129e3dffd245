"""Every family of models in small: for what must hold of all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskformer.config import ModelConfig
from maskformer.model import build_model

SIDE = 64
SMALL: dict[str, Any] = {
    "num_classes": 3,
    "num_queries": 6,
    "hidden_dim": 32,
    "pixel_dim": 32,
    "mask_dim": 32,
    "num_heads": 4,
    "decoder_layers": 3,
    "encoder_layers": 1,
    "feedforward_dim": 48,
    "encoder_feedforward_dim": 48,
    "dropout": 0.0,
    "num_points": 64,
}
SWIN = {"backbone_options": {"embed_dim": 16, "depths": (1, 1, 2, 1), "heads": (1, 2, 2, 4), "window": 4}}
RESNET = {"backbone": "resnet10t"}
VIT = {
    "hidden_dim": 64,
    "mask_dim": 64,
    "backbone_options": {"patch_size": 16, "img_size": SIDE, "depth": 4, "embed_dim": 64, "num_heads": 4},
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "maskformer-resnet": ("maskformer-resnet50", RESNET),
    "maskformer-resnet-panoptic": ("maskformer-resnet50-panoptic", RESNET),
    "maskformer-swin": ("maskformer-swin-tiny", SWIN),
    "mask2former-resnet": ("mask2former-resnet50", RESNET),
    "mask2former-swin": ("mask2former-swin-tiny", SWIN),
    "maskformer-v2": ("maskformer-v2-swin-tiny", SWIN),
    "pem-resnet": ("pem-resnet50", RESNET),
    "pem-stdc": ("pem-stdc1", {"backbone_options": {"width": 16}}),
    "mfenet": ("mfenet-efficientnet-lite0", {}),
    "eomt": ("eomt-small", VIT),
    "unet": ("unet-efficientnet-lite0", {}),
}
# Where one graph serves every height and width; a Swin's windows belong to one size.
ANY_SIZE = [name for name in FAMILIES if name not in ("maskformer-swin", "mask2former-swin", "maskformer-v2")]


# Wide enough to learn a batch by heart, and no wider.
_LEARNING: dict[str, Any] = {
    **SMALL,
    "num_classes": 2,
    "num_queries": 8,
    "hidden_dim": 64,
    "pixel_dim": 64,
    "num_heads": 8,
    "decoder_layers": 2,
    "feedforward_dim": 128,
    "encoder_feedforward_dim": 128,
    "freeze_batch_norm": False,
    "num_points": 1024,
}
_LEARNING_SWIN = {"backbone_options": {"embed_dim": 24, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4), "window": 4}}
_LEARNING_PEM = {"pixel_dim": 32, "decoder_layers": 3}  # fewer than its three levels would leave parameters unused


def learner(family: str, **changes: Any) -> ModelConfig:
    """The family's config for tests that train: two classes, eight queries, batch norms that move."""
    preset, options = FAMILIES[family]
    options = _LEARNING_SWIN if options is SWIN else options
    pem = _LEARNING_PEM if preset.startswith("pem") else {}
    return ModelConfig.from_preset(preset, **{**_LEARNING, **options, **pem, **changes})


def build(family: str, **changes: Any) -> nn.Module:
    """The family's small model in evaluation mode, the same weights every time."""
    preset, options = FAMILIES[family]
    torch.manual_seed(0)
    return build_model(ModelConfig.from_preset(preset, **{**SMALL, **options, **changes})).eval()


def pictures(batch: int = 1, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """(B, 3, height, width) normal noise, the same every time."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))
