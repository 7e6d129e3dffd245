"""Models for tests: one that knows the answer, and a real one small enough to build in a blink."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from maskformer.prediction import DensePrediction


def adapter(classes: int = 1, channels: tuple[str, ...] = ("value",), **settings) -> DomainAdapter:
    """An adapter whose channels are not scaled and whose classes are things `a`, `b`, ..."""
    names = tuple(Class(chr(ord("a") + index)) for index in range(classes))
    planes = tuple(Channel(name, (index + 1,)) for index, name in enumerate(channels))
    return DomainAdapter("test", ChannelSet(planes), ClassSet(names), **{"overlap": "free", **settings})


class Oracle(nn.Module):
    """Reads the truth off the first channel: value k says class k, 0 says nothing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> DensePrediction:
        logits = [20.0 * (x[:, 0] == k + 1) for k in range(self.classes)]
        return DensePrediction(torch.stack([*logits, 20.0 * (x[:, 0] == 0)], 1))


def tiny_bundle(folder: Path, adapter: DomainAdapter, seed: int = 0, **settings) -> Path:
    """A real MaskFormer with random weights, saved as a bundle; `settings` go to `save_bundle`."""
    from maskformer.config import ModelConfig
    from maskformer.model import build_model
    from pipelines.bundle import save_bundle

    config = ModelConfig.from_preset(
        "mfenet-efficientnet-lite0",
        in_channels=len(adapter.channels),
        num_classes=len(adapter.classes),
        num_queries=8,
        pixel_dim=32,
        mask_dim=16,
        hidden_dim=32,
        num_heads=2,
        decoder_layers=1,
        feedforward_dim=32,
    )
    torch.manual_seed(seed)
    return save_bundle(folder, build_model(config), adapter, **settings)
