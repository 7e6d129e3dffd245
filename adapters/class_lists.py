"""Published class lists as data: `adapters/class_maps/*.csv` hold the value in the label files, name, kind, colour.

The order is that of the published models' outputs, so that a converted checkpoint's rows get their right names.
"""

from __future__ import annotations

import csv
from importlib.resources import files

from adapters.classes import Class, ClassSet, Value
from adapters.errors import InputError
from adapters.reading import did_you_mean, listing

CLASS_MAPS = ("ade20k", "cityscapes", "coco-instances", "coco-panoptic", "voc")

# What the label files hold beside the classes that are learnt. Cityscapes: labels that its own evaluation leaves out,
# by number and, for the polygons, by name ("license plate" is -1 and may be written so).
_IGNORED: dict[str, tuple[Value, ...]] = {
    "ade20k": (0,),
    "voc": (255,),
    "coco-panoptic": (0,),
    "cityscapes": (
        -1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255, "unlabeled", "ego vehicle", "rectification border",
        "out of roi", "static", "dynamic", "ground", "parking", "rail track", "guard rail", "bridge", "tunnel",
        "polegroup", "caravan", "trailer", "license plate",
    ),
}  # fmt: skip


def class_map(name: str) -> ClassSet:
    """A published class list: `ade20k` (150), `cityscapes` (19), `coco-instances` (80), `coco-panoptic` (133), `voc`.

    Values are those of the published label files (Cityscapes: labelIds). InputError for another name.
    """
    if name not in CLASS_MAPS:
        raise InputError(
            f"no class list '{name}'; there are {listing(CLASS_MAPS)}{did_you_mean(name, list(CLASS_MAPS))}"
        )
    text = (files("adapters") / "class_maps" / f"{name}.csv").read_text(encoding="utf-8")
    classes = tuple(
        Class(row["name"], row["kind"], (int(row["value"]),), row["colour"] or None)  # type: ignore[arg-type]
        for row in csv.DictReader(text.splitlines())
    )
    return ClassSet(classes, _IGNORED.get(name, ()))
