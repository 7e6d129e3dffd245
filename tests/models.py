"""Models for tests: one that knows the answer, and a real one small enough to build in a blink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import torch
from affine import Affine
from shapely import box
from torch import Tensor, nn

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from maskformer.prediction import DensePrediction
from pipelines.config import (
    BaselineOptions,
    DataItem,
    ModelOptions,
    PredictOptions,
    RunConfig,
    SplitOptions,
    TrainOptions,
)


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


TINY = {
    "num_queries": 10, "pixel_dim": 32, "mask_dim": 16, "hidden_dim": 32, "num_heads": 2, "decoder_layers": 1,
    "feedforward_dim": 32, "loss_resolution": "mask",
}  # fmt: skip
SQUARES_PLACE = Affine(1, 0, 500_000, 0, -1, 4_000_000)


def squares_config(make_geotiff: Callable[..., Path], tmp_path: Path) -> RunConfig:
    """Bright squares on dark ground, 96 x 288: training, validation and test are 160, 64 and 64 columns."""
    random = np.random.default_rng(0)
    picture = random.normal(60, 10, (3, 96, 288))
    squares = []
    for column in range(8, 280, 24):
        for row in range(8, 80, 32):
            picture[:, row : row + 14, column : column + 14] += 120
            squares.append(box(500_000 + column, 4_000_000 - row - 14, 500_000 + column + 14, 4_000_000 - row))
    scene = make_geotiff(np.clip(picture, 0, 255).astype(np.uint8), crs="EPSG:32617", transform=SQUARES_PLACE)
    labels = tmp_path / "labels.gpkg"
    geopandas.GeoDataFrame({"class": "a"}, index=range(len(squares)), geometry=squares, crs=32617).to_file(labels)
    return RunConfig(
        name="squares",
        adapter=adapter(channels=("red", "green", "blue"), tile=64, tile_overlap=16).to_dict(),
        data=(DataItem(source=str(scene), labels=str(labels)),),
        split=SplitOptions(validation=2 / 9, test=2 / 9),
        model=ModelOptions(preset="mfenet-efficientnet-lite0", overrides=TINY),
        train=TrainOptions(steps=2, batch=2, crop=64, workers=0, log_every=1, precision="fp32"),
        baseline=BaselineOptions(preset="unet-efficientnet-lite0"),
        predict=PredictOptions(device="cpu", precision="fp32"),
    )
