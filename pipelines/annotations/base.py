"""The labels of one scene, and the pixels nothing is known about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import Annotation
from adapters.classes import ClassSet
from maskformer.masks import MaskSet

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Region:
    """A set of pixels of the scene that costs what its outline costs: one mask, or all but it."""

    mask: MaskSet
    inverted: bool = False

    @classmethod
    def of(cls, pixels: NDArray[np.bool_]) -> Region | None:
        """The region of a (H, W) bool array; None where it is empty."""
        return cls(MaskSet.from_dense(pixels[None], [0])) if pixels.any() else None

    def read(self, window: Window) -> NDArray[np.bool_]:
        """(h, w) bool."""
        part = self.mask.crop(window)
        inside = part.to_label_map() > 0 if len(part) else np.zeros(part.shape, bool)
        return ~inside if self.inverted else inside


@dataclass(frozen=True)
class Annotations:
    """objects: MaskSet on the scene's canvas, labels are class indices; stuff is one object a class.

    ignore: pixels nothing is known about, or None. crowds: parts of them that are several objects of a class.
    report: what was read and what was made of it, JSON-ready:
        counts (objects by class name), features, repaired, dropped, outside, tiny, ignored, background, boxes
        (how box labels were filled, None for other labels), coordinates, assumption (in words, or None).
    """

    objects: MaskSet
    ignore: Region | None = None
    report: dict[str, Any] = field(default_factory=dict)
    crowds: MaskSet | None = None

    def read(self, window: Window) -> Annotation:
        """The labels of one window, in its own coordinates."""
        ignore = None if self.ignore is None else self.ignore.read(window)
        crowds = None if self.crowds is None else self.crowds.crop(window)
        return Annotation(self.objects.crop(window), ignore, crowds)


def unite_stuff(objects: MaskSet, classes: ClassSet) -> MaskSet:
    """One object for each stuff class; things stay as they are."""
    thing = np.array(classes.is_thing)[objects.labels] if len(objects) else np.zeros(0, bool)
    if thing.all():
        return objects
    groups = np.where(thing, np.arange(len(objects)), len(objects) + objects.labels)
    return objects.union(groups)


def count_by_class(objects: MaskSet, classes: ClassSet) -> dict[str, int]:
    """Objects of each class, by name, zeros too."""
    counts = np.bincount(objects.labels, minlength=len(classes))
    return {name: int(n) for name, n in zip(classes.names, counts)}
