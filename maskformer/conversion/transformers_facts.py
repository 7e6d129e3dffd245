"""What transformers' config.json and preprocessor_config.json say of classes, channels and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskformer.conversion.account import Facts

# COCO panoptic in the order of its published models: 80 things, then 53 stuff.
COCO_PANOPTIC = 133
COCO_THINGS = 80

# Our words for the thresholds of post-processing, and what folders call them where they state them.
_THRESHOLDS = {
    "score": ("object_mask_threshold", "threshold"),
    "overlap": ("overlap_mask_area_threshold", "overlap_threshold"),
    "mask": ("mask_threshold",),
}


def facts_of(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Facts:
    """Facts of a folder; a live model has no processor ({}), so its mean and size stay unknown."""
    classes = _classes(config.get("id2label") or {})
    return Facts(
        classes=classes,
        things=things_of(classes),
        mean=_on_bytes(processor, "image_mean"),
        std=_on_bytes(processor, "image_std"),
        size=_size(processor.get("size")),
        ignore_index=_whole(processor.get("ignore_index", config.get("ignore_value"))),
        thresholds=_thresholds({**config, **processor}),
    )


def things_of(classes: tuple[str, ...]) -> tuple[bool, ...] | None:
    """Which classes are things where the order says so (COCO panoptic), else None."""
    if len(classes) != COCO_PANOPTIC or classes[0] != "person":
        return None
    return tuple(index < COCO_THINGS for index in range(COCO_PANOPTIC))


def _classes(id2label: Mapping[Any, Any]) -> tuple[str, ...]:
    names = {int(index): str(name) for index, name in id2label.items()}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"id2label: expected the numbers 0 to {len(names) - 1}, found {sorted(names)[:5]} ...")
    return tuple(names[index] for index in range(len(names)))


def _on_bytes(processor: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    """Mean or spread of 8-bit pixels: the processor states them after its rescaling."""
    values = processor.get(key)
    if not isinstance(values, list | tuple) or not processor.get("do_normalize", True):
        return None
    scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    return tuple(round(float(value) / scale, 6) for value in values)


def _size(size: Any) -> int | None:
    """The side pictures were brought to: an int, {height, width} or {shortest_edge, longest_edge}."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return _whole(size)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _thresholds(values: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, theirs in _THRESHOLDS.items():
        value = next((values[key] for key in theirs if isinstance(values.get(key), int | float)), None)
        if value is not None and 0 <= value <= 1:
            found[name] = float(value)
    return found
