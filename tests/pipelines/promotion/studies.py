"""The colours' world in three dimensions: studies of red and blue blocks in green tissue, and models that see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import nn

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.volume import VolumeRules
from pipelines.bundle import save_bundle
from pipelines.config import DataItem, PredictOptions, RunConfig, SplitOptions, save_config
from tests.pipelines.promotion import colours

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (48, 64, 8)  # i, j, k; slices are across k


def adapter(**changes) -> DomainAdapter:
    planes = tuple(Channel(name, (index + 1,), 0.0, 255.0) for index, name in enumerate(("red", "green", "blue")))
    classes = ClassSet((Class("brick", "thing", (1,)), Class("pool", "thing", (2,))))
    settings = {"overlap": "exclusive", "volume": VolumeRules(orientation=None, planes=("axial",)), **changes}
    return DomainAdapter("blocks", ChannelSet(planes), classes, **settings)


def study(folder: Path, name: str, seed: int) -> None:
    """`name.nii.gz`, three channels, and `name-labels.nii.gz`; every fourth block is faint, some are of no class."""
    rng = np.random.default_rng(seed)
    picture = np.empty((*SHAPE, 3))
    picture[:] = colours.GREEN
    labels = np.zeros(SHAPE, np.uint8)
    for number, (row, column) in enumerate(np.ndindex(2, 3)):
        top, left = 20 * row + 2 * rng.integers(1, 4), 20 * column + 2 * rng.integers(1, 3)
        high, wide, low = 2 * rng.integers(4, 8), 2 * rng.integers(4, 8), rng.integers(0, 3)
        kind = rng.choice(["brick", "pool", "patch"], p=[0.4, 0.4, 0.2])
        faint = number % 4 == 0
        colour = {
            "brick": colours.FAINT_RED if faint else colours.RED,
            "pool": colours.FAINT_BLUE if faint else colours.BLUE,
            "patch": colours.MAGENTA if number % 2 else colours.YELLOW,
        }[kind]
        block = (slice(top, top + high), slice(left, left + wide), slice(low, low + rng.integers(3, 6)))
        picture[block] = colour
        labels[block] = {"brick": 1, "pool": 2, "patch": 0}[kind]
    picture += rng.normal(0, 0.01, picture.shape)
    values = np.clip(255 * picture, 0, 255).round().astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), folder / f"{name}-labels.nii.gz")


def frozen(folder: Path, name: str, count: int, seed: int) -> Path:
    """A run config of `count` held-out patients, in a file."""
    place = folder / name
    place.mkdir(parents=True)
    items = []
    for number in range(count):
        study(place, f"patient{number}", seed + number)
        source, labels = place / f"patient{number}.nii.gz", place / f"patient{number}-labels.nii.gz"
        items.append(DataItem(source=str(source), labels=str(labels), role="test"))
    config = RunConfig(
        name=name,
        adapter=adapter().to_dict(),
        data=tuple(items),
        split=SplitOptions(test=0.0),
        predict=PredictOptions(device="cpu", precision="fp32"),
    )
    save_config(config, folder / f"{name}.yaml")
    return folder / f"{name}.yaml"


def bundle(
    folder: Path, change: Callable[[nn.Module], None] | None = None, *, against: float = colours.KEEN, **settings
) -> Path:
    """The colours' network as a model of volumes; see `colours.bundle`."""
    provenance = settings.pop("provenance", None)
    model = colours.network(against)
    if change:
        with torch.no_grad():
            change(model)
    return save_bundle(folder, model, adapter(**settings), provenance=provenance)
