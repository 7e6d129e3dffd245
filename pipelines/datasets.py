"""Training crops, read through windows from scenes of any size.

Sample k is a function of (seed, k) alone: which part, where, how scaled, how changed. So the number of
workers does not matter, and a resumed run sees what the interrupted one would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters.base import Annotation, DomainAdapter
from adapters.errors import InputError
from maskformer.masks import MaskSet
from maskformer.targets import Target
from pipelines.annotations.base import Annotations
from pipelines.augmentation import Augmentation
from pipelines.checkpoints import sha256_of
from pipelines.sources import open_for
from pipelines.sources.base import Source, Window

ATTEMPTS = 8  # draws of a window before a crop without a single labelled pixel is accepted


@dataclass(frozen=True)
class Part:
    """A scene with its labels, or the `window` of it that may be read (None: all of it)."""

    source: Path | str
    annotations: Annotations
    window: Window | None = None


@dataclass(frozen=True)
class Sampling:
    """How crops are drawn, and which objects a crop teaches.

    objects: share of the crops that are laid over an object drawn at random (else empty land wins); the rest
    lie anywhere. balanced: draw the class first, then the object: rare classes come as often as common ones.

    A thing of which the crop shows less than `min_visible` of what it could show, min(object, crop) pixels,
    is no target, nor is any object of fewer than `min_pixels`: their pixels become ignored, so that they do
    not teach "nothing here" either. Stuff is taken however little is seen: a cut road is still a road.
    """

    objects: float = 0.5
    balanced: bool = False
    min_visible: float = 0.1
    min_pixels: int = 4


class CropDataset:
    """Random crops of several parts. Item k: (x (C, crop, crop) float32, Target of that size), for any k."""

    def __init__(
        self,
        parts: Sequence[Part],
        adapter: DomainAdapter,
        crop: int,
        augment: Augmentation | Sequence[str] = (),
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> None:
        """Raises InputError where there is no part, or a part is empty or lies outside its scene."""
        if not parts:
            raise InputError("training data: no part to draw crops from")
        self.adapter, self.crop, self.seed = adapter, crop, seed
        self.augment = augment if isinstance(augment, Augmentation) else Augmentation(augment)
        self.sampling = sampling or Sampling()
        paths = dict.fromkeys(str(part.source) for part in parts)
        self._opened = {path: open_for(path, adapter) for path in paths}
        for source in self._opened.values():
            # A PNG is unpacked at the first read: here, once, rather than in every worker.
            source.read((slice(0, 1), slice(0, 1)))
        self.places = [Place(part, self._opened[str(part.source)], adapter) for part in parts]
        areas = np.array([place.height * place.width for place in self.places], np.float64)
        self._share = areas / areas.sum()
        # All objects of all parts, as (place, number in that place), and grouped by class.
        self._object = [(p, n) for p, place in enumerate(self.places) for n in place.numbers]
        labels = np.array([self.places[p].objects.labels[n] for p, n in self._object], np.int64)
        self._by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        generator = np.random.default_rng([self.seed, index])
        extent = self.augment.extent(self.crop, generator)
        for _ in range(ATTEMPTS):
            place, window = self._draw_window(extent, generator)
            image, present, target = place.read(window, self.sampling)
            if target.valid.any():
                break
        missing = (0, extent - image.shape[-1], 0, extent - image.shape[-2])
        planes = torch.cat([target.layers, target.valid[None].int()])
        image, planes, present = (functional.pad(item, missing) for item in (image, planes, present))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(generator.integers(2**63)))
            image, planes, present = self.augment(image, planes, present, self.crop)
        target = Target(target.labels, planes[:-1], planes[-1].bool() & present)
        return image, without_specks(target, self.sampling.min_pixels)

    def fingerprint(self) -> str:
        """SHA-256 of what samples depend on: pixels, objects, windows, adapter, crop, seed, sampling."""
        return sha256_of(
            {
                "parts": [place.describe() for place in self.places],
                "adapter": self.adapter.to_dict(),
                "crop": self.crop,
                "seed": self.seed,
                "augment": [self.augment.names, self.augment.scale],
                "sampling": asdict(self.sampling),
            }
        )

    def close(self) -> None:
        """Close the scenes, and remove what was unpacked of them."""
        for source in self._opened.values():
            source.close()

    def _draw_window(self, extent: int, generator: np.random.Generator) -> tuple[Place, Window]:
        if self._object and generator.random() < self.sampling.objects:
            chosen = int(generator.integers(len(self._object)))
            if self.sampling.balanced:
                chosen = int(generator.choice(self._by_class[int(generator.integers(len(self._by_class)))]))
            number, object_number = self._object[chosen]
            place = self.places[number]
            # A quarter of the crop off centre at most: always in view, not always in the middle.
            anchor = place.pixel_of(object_number, generator) + generator.integers(-extent // 4, extent // 4 + 1, 2)
            starts = anchor - extent // 2
        else:
            place = self.places[int(generator.choice(len(self.places), p=self._share))]
            room = np.maximum(np.array([place.height, place.width]) - extent, 0)
            starts = place.origin + generator.integers(0, room + 1)
        return place, place.window_at(starts, extent)


class Place:
    """A part made ready: its scene open, its window known, its objects found."""

    def __init__(self, part: Part, source: Source, adapter: DomainAdapter) -> None:
        self.adapter = adapter
        self.source = source
        self.annotations = part.annotations
        whole = tuple(slice(0, length) for length in self.source.shape)
        self.area: Window = part.window or whole
        for side, length in zip(self.area, self.source.shape, strict=True):
            if not 0 <= side.start < side.stop <= length:
                raise InputError(
                    f"{self.source.path}: part {_text(self.area)} is not inside the scene {self.source.shape}"
                )
        self.origin = np.array([side.start for side in self.area])
        self.height, self.width = (side.stop - side.start for side in self.area)
        self.objects = part.annotations.objects
        self.numbers = self.objects.crop_indexed(self.area)[1]

    def pixel_of(self, number: int, generator: np.random.Generator) -> np.ndarray:
        """(row, column) of a random pixel of object `number`, which may lie outside the part."""
        runs = self.objects.runs[self.objects.offsets[number] : self.objects.offsets[number + 1]]
        ends = np.cumsum(runs[:, 2] - runs[:, 1])
        at = int(generator.integers(ends[-1]))
        run = int(np.searchsorted(ends, at, side="right"))
        return np.array([runs[run, 0], runs[run, 2] - (ends[run] - at)], np.int64)

    def window_at(self, starts: np.ndarray, extent: int) -> Window:
        """The window of side `extent` that begins nearest to `starts` inside the part; smaller only where the
        part is smaller."""
        window = []
        for start, side in zip(starts, self.area, strict=True):
            first = min(max(int(start), side.start), max(side.stop - extent, side.start))
            window.append(slice(first, min(first + extent, side.stop)))
        return tuple(window)

    def read(self, window: Window, sampling: Sampling) -> tuple[Tensor, Tensor, Target]:
        """Of a window of the scene: normalised image (C, h, w), pixels with data (h, w) bool, target."""
        array, present = self.source.read(window)
        objects, numbers = self.objects.crop_indexed(window)
        hidden = self._mostly_hidden(objects, self.objects.areas[numbers], sampling)
        known = present.copy()
        if hidden.any():
            known &= ~objects[hidden].to_dense().any(axis=0)
            objects = objects[~hidden]
        ignore = self.annotations.ignore
        annotation = Annotation(objects, None if ignore is None else ignore.read(window))
        target = self.adapter.targets(annotation, known)
        # The picture stays whole where only the labels are unknown.
        image = self.adapter.inputs(array, present)
        return torch.from_numpy(image), torch.from_numpy(present), target

    def describe(self) -> dict[str, Any]:
        """For the fingerprint."""
        ignore = self.annotations.ignore
        return {
            "source": self.source.digest(),
            "window": _text(self.area),
            "objects": _digest(self.objects.crop(self.area)),
            "ignore": None if ignore is None else [_digest(ignore.mask.crop(self.area)), ignore.inverted],
        }

    def _mostly_hidden(self, objects: MaskSet, areas: np.ndarray, sampling: Sampling) -> np.ndarray:
        visible, crop = objects.areas, objects.shape[0] * objects.shape[1]
        thing = np.array(self.adapter.classes.is_thing, bool)[objects.labels]
        cut_away = visible < sampling.min_visible * np.minimum(areas, crop)
        return (visible < sampling.min_pixels) | (thing & cut_away)


def without_specks(target: Target, min_pixels: int) -> Target:
    """Objects of fewer than `min_pixels` valid pixels are dropped, and their pixels ignored; numbers close up."""
    kept = target.areas() >= min_pixels
    if kept.all():
        return target
    number = torch.cat((torch.zeros(1, dtype=torch.int32), torch.where(kept, kept.cumsum(0), -1).int()))
    layers = number[target.layers.long()]
    return Target(target.labels[kept], layers.clamp(min=0), target.valid & (layers >= 0).all(0))


def _text(window: Window) -> str:
    return ", ".join(f"{side.start}:{side.stop}" for side in window)


def _digest(objects: MaskSet) -> str:
    digest = hashlib.sha256()
    for array in (objects.runs, objects.offsets, objects.labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
