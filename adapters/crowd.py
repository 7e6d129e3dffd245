"""Ready adapters for counting: people in photos, cells, cars, trees; labels may be points."""

from __future__ import annotations

from typing import Any

from adapters.base import DomainAdapter
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.points import PointRule
from adapters.remote_sensing import rgb_aerial


def crowd(classes: ClassSet | None = None, points: PointRule | None = None, **settings: Any) -> DomainAdapter:
    """Things counted in 8-bit pictures; by default one class, `person`.

    A greyscale picture feeds all three channels, one of 16 bits is brought to 8, EXIF's rotation is applied (see
    `pipelines.sources.picture`). points: how point labels become masks. Every class has to be a thing.
    """
    classes = classes or ClassSet((Class("person"),))
    stuff = [item.name for item in classes if item.kind != "thing"]
    if stuff:
        raise InputError(f"crowd: only things can be counted, and class '{stuff[0]}' is stuff")
    return rgb_aerial(classes, **{"name": "crowd", "overlap": "free", "points": points or PointRule(), **settings})
