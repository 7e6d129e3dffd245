"""Ready adapters for plain pictures: driving, everyday photos, industrial inspection."""

from __future__ import annotations

from typing import Any

from adapters.base import DomainAdapter
from adapters.class_lists import class_map
from adapters.classes import ClassSet
from adapters.remote_sensing import rgb_aerial


def pictures(classes: ClassSet, **settings: Any) -> DomainAdapter:
    """8-bit photos of red, green and blue, as people see them: upright by EXIF, greyscale as colour, 16 bits as 8.

    Large ones are tiled like scenes; what is smaller than a tile is one tile.
    """
    return rgb_aerial(classes, **{"name": "pictures", "photos": True, "tile": 1024, "tile_overlap": 128, **settings})


def cityscapes(**settings: Any) -> DomainAdapter:
    """Driving: 19 classes of Cityscapes, panoptic. Unlabelled pixels say nothing."""
    return _published("cityscapes", True, settings)


def coco_panoptic(**settings: Any) -> DomainAdapter:
    """80 things and 53 stuff classes of COCO."""
    return _published("coco-panoptic", True, settings)


def coco_instances(**settings: Any) -> DomainAdapter:
    """The 80 things of COCO; they may overlap."""
    return _published("coco-instances", False, settings)


def ade20k(**settings: Any) -> DomainAdapter:
    """The 150 classes of ADE20K's scene parsing, 100 of which are things in the panoptic task."""
    return _published("ade20k", True, settings)


def voc(**settings: Any) -> DomainAdapter:
    """The 20 things of Pascal VOC."""
    return _published("voc", False, settings)


def _published(name: str, covers: bool, settings: dict[str, Any]) -> DomainAdapter:
    overlap = "exclusive" if covers else "free"
    return pictures(class_map(name), **{"name": name, "covers": covers, "overlap": overlap, **settings})
