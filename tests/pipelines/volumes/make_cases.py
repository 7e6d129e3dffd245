"""Labelled volumes for tests: balls whose voxels hold their class, so that a picture shows its own labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.volume import VolumeRules

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def adapter(kinds: Sequence[str] = ("thing", "stuff"), **settings: Any) -> DomainAdapter:
    """Channel `image` as it is; classes `class0`, `class1`, ... of label values 1, 2, ...; axial slices."""
    classes = tuple(Class(f"class{k}", kind, (k + 1,)) for k, kind in enumerate(kinds))  # type: ignore[arg-type]
    rules = settings.pop("volume", VolumeRules(planes=("axial",)))
    defaults = {"context_slices": 1, "overlap": "free"}
    return DomainAdapter(
        "test", ChannelSet((Channel("image", (1,)),)), ClassSet(classes), volume=rules, **{**defaults, **settings}
    )


def balls(shape: Sequence[int] = (24, 28, 10), seed: int = 0) -> np.ndarray:
    """Two balls of class 1 and one of class 2, at random places of their own."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    grid = np.indices(shape)
    for value, corner in ((1, (5, 6, 3)), (1, (5, 21, 6)), (2, (17, 14, 5))):
        centre = np.array(corner) + random.integers(-1, 2, 3)
        labels[sum((g - c) ** 2 * s for g, c, s in zip(grid, centre, (1, 1, 4))) <= 16] = value
    return labels


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def decathlon(folder: Path, count: int = 4, shape: Sequence[int] = (24, 28, 10)) -> Path:
    """A folder of `count` cases, image equal to label but for a little noise."""
    for number in range(count):
        labels = balls(shape, number)
        noise = np.random.default_rng(100 + number).normal(0, 0.05, shape)
        save(folder / "imagesTr" / f"case_{number}.nii.gz", (labels + noise).astype(np.float32))
        save(folder / "labelsTr" / f"case_{number}.nii.gz", labels)
    (folder / "dataset.json").write_text('{"modality": {"0": "MRI"}}')
    return folder
