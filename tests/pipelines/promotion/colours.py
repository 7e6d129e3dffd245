"""A world of red and blue fields on green ground, and a network whose weights were set by hand to see exactly them.

Magenta and yellow patches lie in between, so that no threshold on one quantity finds the fields. The network is a real
U-Net bundle: the stem computes "redder than the rest" and "bluer than the rest", the decoder hands both on, the head
compares them. Faint fields are seen only by a head that is keen enough, which makes two models of different worth.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import torch
from affine import Affine
from shapely import box
from torch import nn

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from pipelines.bundle import save_bundle
from pipelines.config import DataItem, PredictOptions, RunConfig, save_config

RED, BLUE, FAINT_RED, FAINT_BLUE = (0.8, 0.1, 0.1), (0.1, 0.1, 0.8), (0.65, 0.15, 0.1), (0.1, 0.15, 0.65)
MAGENTA, YELLOW, GREEN = (0.8, 0.1, 0.8), (0.8, 0.8, 0.1), (0.2, 0.5, 0.2)
PLACE = Affine(1, 0, 500_000, 0, -1, 4_000_000)
SEES, KEEN, BLIND = 40.0, 2.0, 12.0  # weight of a colour; what it is held against: faint fields give 8, others 24
SEAM = 2  # a channel of the decoder that says nothing unless a test makes it


def adapter(**changes) -> DomainAdapter:
    planes = tuple(Channel(name, (index + 1,), 0.0, 255.0) for index, name in enumerate(("red", "green", "blue")))
    settings = {"overlap": "exclusive", "tile": 64, "tile_overlap": 16, **changes}
    classes = settings.pop("classes", ("brick", "pool"))
    return DomainAdapter("colours", ChannelSet(planes), ClassSet(tuple(Class(name) for name in classes)), **settings)


def scene(folder: Path, name: str, size: tuple[int, int], seed: int) -> tuple[Path, Path]:
    """A GeoTIFF and its labels (GeoPackage): fields on a lattice of 24 px, every fourth one faint."""
    rng = np.random.default_rng(seed)
    picture = np.empty((3, *size))
    picture[:] = np.array(GREEN)[:, None, None]
    rows = []
    for number, (row, column) in enumerate(np.ndindex((size[0] - 2) // 24, (size[1] - 2) // 24)):
        top, left = 24 * row + 2 * rng.integers(1, 4), 24 * column + 2 * rng.integers(1, 4)
        high, wide = 2 * rng.integers(4, 9, 2)
        kind = rng.choice(["brick", "pool", "patch"])
        faint = number % 4 == 0
        colour = {
            "brick": FAINT_RED if faint else RED,
            "pool": FAINT_BLUE if faint else BLUE,
            "patch": MAGENTA if number % 2 else YELLOW,
        }[kind]
        picture[:, top : top + high, left : left + wide] = np.array(colour)[:, None, None]
        if kind != "patch":
            corners = (500_000 + left, 4_000_000 - top - high, 500_000 + left + wide, 4_000_000 - top)
            rows.append({"class": kind, "geometry": box(*map(float, corners))})
    picture += rng.normal(0, 0.01, picture.shape)
    values = np.clip(255 * picture, 0, 255).round().astype(np.uint8)
    path, labels = folder / f"{name}.tif", folder / f"{name}.gpkg"
    profile = {"driver": "GTiff", "count": 3, "height": size[0], "width": size[1], "dtype": "uint8"}
    profile["photometric"] = "minisblack"  # bands without names are found by their position
    with rasterio.open(path, "w", crs="EPSG:32617", transform=PLACE, **profile) as sink:
        sink.write(values)
    geopandas.GeoDataFrame(rows, crs=32617).to_file(labels)
    return path, labels


def frozen(folder: Path, name: str, seed: int, size: tuple[int, int] = (160, 160)) -> Path:
    """A run config of one held-out scene, in a file."""
    path, labels = scene(folder, name, size, seed)
    config = RunConfig(
        name=name,
        adapter=adapter().to_dict(),
        data=(DataItem(source=str(path), labels=str(labels), role="test"),),
        predict=PredictOptions(device="cpu", precision="fp32"),
    )
    save_config(config, folder / f"{name}.yaml")
    return folder / f"{name}.yaml"


def network(against: float = KEEN, classes: int = 2) -> nn.Module:
    """The U-Net with its weights set; `against`: what a colour must exceed to be a field."""
    from maskformer.config import ModelConfig
    from maskformer.model import build_model

    torch.manual_seed(0)
    config = ModelConfig.from_preset(
        "unet-efficientnet-lite0", backbone="test_resnet", in_channels=3, num_classes=classes
    )
    model = build_model(config).eval()
    with torch.no_grad():
        stem = model.get_submodule("network.encoder.model.conv1")
        colours = torch.tensor([[2.0, -2.0, -2.0], [-2.0, -2.0, 2.0]])
        stem[0].weight[:2] = 0
        stem[0].weight[:2, :, 1, 1] = colours
        stem[1].bias[:2] = -0.6
        hand_on(stem[3], {0: 0, 1: 1})
        hand_on(stem[6], {0: 0, 1: 1})
        blocks = model.get_submodule("network.decoder.blocks")
        for number, block in enumerate(blocks):
            skip = block.conv1[0].in_channels - 32 if number == 3 else 0  # where the stem's map comes in
            seen = {0: skip, 1: skip + 1, SEAM: SEAM}
            hand_on(block.conv1[0], seen)
            hand_on(block.conv2[0], {one: one for one in seen})
        head = model.get_submodule("network.segmentation_head")[0]
        head.weight[:] = 0
        head.weight[:2, :2, 1, 1] = SEES * torch.eye(2)
        head.bias[:] = 0
        head.bias[-1] = against
        model.get_submodule("network.decoder.blocks.0.conv1.0").weight[SEAM] = 0  # nothing, everywhere
    return model


def hand_on(layer: nn.Conv2d, channels: dict[int, int]) -> None:
    """Output channel → the input channel that it repeats."""
    for made, taken in channels.items():
        layer.weight[made] = 0
        layer.weight[made, taken, 1, 1] = 1


def bundle(
    folder: Path, change: Callable[[nn.Module], None] | None = None, *, against: float = KEEN, **settings
) -> Path:
    """A bundle of the network, after `change`; `settings` change the adapter."""
    mine = adapter(**settings)
    model = network(against, len(mine.classes))
    if change:
        with torch.no_grad():
            change(model)
    return save_bundle(folder, model, mine)


def head(model: nn.Module) -> nn.Conv2d:
    return model.get_submodule("network.segmentation_head")[0]


def drop_class(model: nn.Module) -> None:
    """The second class is never said."""
    head(model).bias[1] = -1e3


def swap_bands(model: nn.Module) -> None:
    """Trained on blue, green, red."""
    stem = model.get_submodule("network.encoder.model.conv1")[0]
    stem.weight[:] = stem.weight.flip(1)


def break_seams(model: nn.Module) -> None:
    """Zero padding leaks in: 16 px along the left side of every tile are never a field."""
    first = model.get_submodule("network.decoder.blocks.0")
    first.conv1[1].bias[SEAM] = 1
    first.conv2[0].weight[SEAM] = 0
    first.conv2[0].weight[SEAM, SEAM, 1, 0] = 1  # the left neighbour, which the padding replaces by 0
    head(model).weight[-1, SEAM, 1, 1] = -60
    head(model).bias[-1] += 60


def make_nan(model: nn.Module) -> None:
    head(model).weight[0, 0, 0, 0] = float("nan")


class Flipped(nn.Module):
    """Looks at the mirrored picture and does not mirror its answer back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, x: torch.Tensor):
        return self.inner(x.flip(-1))
