"""Training crops of slices with context (2.5-D), drawn evenly over classes and patients.

Sample k is a function of (seed, k) alone, as in `pipelines.datasets`: the number of workers does not matter, and a
resumed run sees what the interrupted one would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.base import DomainAdapter
from adapters.errors import InputError
from maskformer.targets import Target
from pipelines.checkpoints import sha256_of
from pipelines.datasets import without_specks
from pipelines.volumes.augmentation import SliceAugmentation, mirrored
from pipelines.volumes.prepared import PreparedCase

ATTEMPTS = 8  # draws of a window before a crop without a single labelled pixel is accepted


@dataclass(frozen=True)
class SliceSampling:
    """How slices are drawn, and which objects a crop teaches.

    content: share of the crops that show a class drawn at random: class first, then patient, then slice, so that rare
    classes and small volumes come as often as others; the rest are any slices of any patient, for what is not there has
    to be learned too. min_visible, min_pixels: as in `pipelines.datasets.Sampling`.
    """

    content: float = 2 / 3
    min_visible: float = 0.1
    min_pixels: int = 4


class SliceDataset:
    """Random crops of slices. Item k: (x (C (2 n + 1), crop, crop) float32, Target of that size), for any k."""

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        adapter: DomainAdapter,
        crop: int,
        augment: Sequence[str] = (),
        seed: int = 0,
        sampling: SliceSampling | None = None,
    ) -> None:
        """Raises InputError where there is no case, or an augmentation is not known."""
        if not cases:
            raise InputError("training data: no case to draw slices from")
        self.cases, self.adapter, self.crop, self.seed = list(cases), adapter, crop, seed
        self.augment = SliceAugmentation(augment)
        self.sampling = sampling or SliceSampling()
        self._thing = np.array(adapter.classes.is_thing, bool)
        holders: dict[int, dict[str, list[int]]] = {}
        patients: dict[str, list[int]] = {}
        for number, case in enumerate(self.cases):
            patients.setdefault(case.patient, []).append(number)
            for label in case.content[case.axes[0]]:
                holders.setdefault(label, {}).setdefault(case.patient, []).append(number)
        self._all = list(patients.values())
        self._holders = [(label, list(groups.values())) for label, groups in sorted(holders.items())]

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        generator = np.random.default_rng([self.seed, index])
        for _ in range(ATTEMPTS):
            case, axis, position, anchor = self._draw(generator)
            image, planes, present, labels = self._read(case, axis, position, anchor, generator)
            if planes[-1].any():
                break
        if "mirror" in self.augment.names and generator.random() < 0.5:
            across = case.mirror_axis(axis)
            image, planes, present = mirrored(image, planes, present, across, self.adapter.context_slices)
        seed = int(generator.integers(2**32))
        image, planes, present = self.augment(image, planes, present, self.crop, seed)
        target = target_of(planes[:-1], labels, planes[-1].bool() & present)
        return image, without_specks(target, self.sampling.min_pixels)

    def fingerprint(self) -> str:
        """SHA-256 of what samples depend on: images, labels, adapter, crop, seed, sampling."""
        return sha256_of(
            {
                "cases": [[case.digest, _digest(case)] for case in self.cases],
                "adapter": self.adapter.to_dict(),
                "crop": self.crop,
                "seed": self.seed,
                "augment": list(self.augment.names),
                "sampling": asdict(self.sampling),
            }
        )

    def _draw(self, generator: np.random.Generator) -> tuple[PreparedCase, int, int, NDArray[np.int64] | None]:
        """A case, the axis across its slices, a slice, and the pixel (row, column) a crop is laid over, if any."""

        def one(choices: Any) -> Any:
            return choices[int(generator.integers(len(choices)))]

        if self._holders and generator.random() < self.sampling.content:
            label, groups = one(self._holders)
            case = self.cases[one(one(groups))]
            axis = one(case.axes)
            position = int(one(case.content[axis][label]))
            numbers = np.flatnonzero(case.labels == label) + 1
            seen = np.argwhere(np.isin(case.labels_of(axis, position), numbers).any(axis=0))
            return case, axis, position, one(seen)
        case = self.cases[one(one(self._all))]
        axis = one(case.axes)
        return case, axis, int(generator.integers(case.shape[axis])), None

    def _read(
        self,
        case: PreparedCase,
        axis: int,
        position: int,
        anchor: NDArray[np.int64] | None,
        generator: np.random.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, NDArray[np.int64]]:
        """image, planes (label maps, and last what may be looked at), present: a window of a slice and its margin."""
        picture, valid = case.slices(axis)[position]
        maps = case.labels_of(axis, position).astype(np.int32)
        known = valid & ~case.ignored(axis, position)
        if self.adapter.covers:
            known &= (maps > 0).any(axis=0)
        extent = self.augment.extent(self.crop)
        margin = (extent - self.crop) // 2
        starts = [
            self._start(length, None if anchor is None else int(place), generator) - margin
            for length, place in zip(valid.shape, anchor if anchor is not None else (0, 0))
        ]
        window = [(start, start + extent) for start in starts]
        hidden = self._mostly_hidden(maps, _cut(maps, window), case.labels)
        planes = _cut(np.concatenate([maps, known[None].astype(np.int32)]), window)
        if len(hidden):
            away = np.isin(planes[:-1], hidden)
            planes[-1] &= ~away.any(axis=0)
            planes[:-1][away] = 0
        image = torch.from_numpy(_cut(picture, window))
        return image, torch.from_numpy(planes), torch.from_numpy(_cut(valid, window)), case.labels

    def _start(self, length: int, anchor: int | None, generator: np.random.Generator) -> int:
        """Where a crop begins along an axis of `length` pixels; before 0 where the picture is smaller than the crop.

        Over an anchor it lies a quarter of the crop off centre at most: always in view, not always in the middle.
        """
        low, high = min(0, length - self.crop), max(0, length - self.crop)
        if anchor is None or low < 0:
            return int(generator.integers(low, high + 1))
        jitter = int(generator.integers(-self.crop // 4, self.crop // 4 + 1))
        return int(np.clip(anchor + jitter - self.crop // 2, low, high))

    def _mostly_hidden(self, whole: NDArray, seen: NDArray, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the things of which the window shows less than `min_visible` of what it could."""
        if not len(labels):
            return np.zeros(0, np.int64)
        areas = np.bincount(whole.ravel(), minlength=len(labels) + 1)[1:]
        visible = np.bincount(seen.ravel(), minlength=len(labels) + 1)[1:]
        little = visible < self.sampling.min_visible * np.minimum(areas, self.crop**2)
        return np.flatnonzero(self._thing[labels] & (visible > 0) & little) + 1


def target_of(layers: Tensor, labels: NDArray[np.int64], valid: Tensor) -> Target:
    """Target of label maps (L, h, w) whose values are positions in `labels` plus 1; numbers close up.

    Objects without a valid pixel are dropped, and so are maps without an object (one stays).
    """
    seen = torch.unique(layers * valid)
    seen = seen[seen > 0]
    number = torch.zeros(len(labels) + 1, dtype=torch.int32)
    number[seen.long()] = torch.arange(1, len(seen) + 1, dtype=torch.int32)
    layers = number[layers.long()]
    used = layers.flatten(1).any(1)
    used[0] |= not used.any()
    return Target(torch.from_numpy(labels)[seen.long() - 1], layers[used], valid)


def _cut(array: NDArray, window: Sequence[tuple[int, int]]) -> NDArray:
    """(..., h, w) -> the window, which may reach beyond; 0 there."""
    inside: list[Any] = [...]
    pads = [(0, 0)] * (array.ndim - 2)
    for (start, stop), length in zip(window, array.shape[-2:]):
        low, high = min(max(start, 0), length), min(max(stop, 0), length)
        inside.append(slice(low, high))
        pads.append((low - start if high > low else 0, stop - high if high > low else stop - start))
    return np.ascontiguousarray(np.pad(array[tuple(inside)], pads))


def _digest(case: PreparedCase) -> str:
    digest = hashlib.sha256(str([case.shape, case.axes, case.labels.tolist()]).encode())
    for array in (case.layers, case.ignore):
        if array is not None:
            for position in range(case.shape[case.axes[0]]):
                digest.update(np.moveaxis(array, case.axes[0] - 3, 0)[position].tobytes())
    return digest.hexdigest()
