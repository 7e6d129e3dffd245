"""Label formats of published picture sets: COCO panoptic, Cityscapes (ids and polygons), Pascal VOC.

COCO panoptic: a JSON with `segments_info` a picture, and beside it a folder of the same name with PNGs whose colour is
a segment's number (red + 256 green + 65536 blue). Cityscapes: `*_instanceIds.png`, 16 bits, class * 1000 + number,
below 1000 the class of a region nobody divided; `*_polygons.json`, painted in order. VOC: `SegmentationObject/x.png`
numbers the objects, `SegmentationClass/x.png` says what they are, 255 is the border between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adapters.errors import InputError
from adapters.reading import listing
from pipelines.annotations.json_file import load_json
from pipelines.annotations.numbered import Numbered

DIVISOR = 1000  # Cityscapes: class * 1000 + number
VOID = 255  # VOC: between objects, nobody says which
_GROUP = "group"  # Cityscapes: `cargroup` are cars nobody divided


def read_published(path: Path, picture: Path) -> Numbered | None:
    """The labels of `picture` where `path` is laid out as one of these sets, else None. InputError for damaged ones."""
    if path.suffix.lower() == ".json":
        return _read_json(path, picture)
    if path.suffix.lower() != ".png":
        return None
    if path.stem.endswith("_instanceIds"):
        return _cityscapes_ids(path)
    if path.parent.name == "SegmentationObject" and _voc_classes(path).exists():
        return _voc(path)
    return None


def _read_json(path: Path, picture: Path) -> Numbered | None:
    held = load_json(path)
    if not isinstance(held, Mapping):
        return None
    annotations = held.get("annotations")
    if isinstance(annotations, list) and annotations and "segments_info" in annotations[0]:
        return _coco_panoptic(path, held, picture)
    if {"imgHeight", "imgWidth", "objects"} <= held.keys():
        return _cityscapes_polygons(path, held)
    return None


def _coco_panoptic(path: Path, held: Mapping[str, Any], picture: Path) -> Numbered:
    try:
        names = {item["id"]: Path(str(item["file_name"])).stem for item in held["images"]}
        found = [item for item in held["annotations"] if names[item["image_id"]] == picture.stem]
        if not found:
            raise InputError(
                f"{path}: no labels of {picture.name}; the file is about {listing(sorted(names.values()))}"
            )
        segments = {int(s["id"]): s for s in found[0]["segments_info"]}
        classes = {item["id"]: item["name"] for item in held.get("categories", [])}
        values = {n: classes.get(s["category_id"], s["category_id"]) for n, s in segments.items()}
        file = path.with_suffix("") / Path(str(found[0]["file_name"])).name
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not laid out as COCO panoptic: {error!r} is missing or out of place") from None
    colours = _pixels(file)
    if colours.ndim != 3 or colours.shape[2] < 3:
        raise InputError(f"{file}: expected a picture in colours, as COCO panoptic numbers its segments")
    numbers = colours[..., :3].astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    unlisted = sorted(set(np.unique(numbers).tolist()) - values.keys() - {0})
    if unlisted:
        raise InputError(f"{file}: segments {listing(unlisted)} are not listed in {path.name}")
    crowds = frozenset(number for number, s in segments.items() if s.get("iscrowd"))
    return Numbered(file, "COCO panoptic", numbers, values, crowds)


def _cityscapes_ids(path: Path) -> Numbered:
    numbers = _plane(path)
    values = {number: number // DIVISOR if number >= DIVISOR else number for number in np.unique(numbers).tolist()}
    return _shifted(path, "Cityscapes ids", numbers, values, {n for n in values if 0 <= n < DIVISOR})


def _cityscapes_polygons(path: Path, held: Mapping[str, Any]) -> Numbered:
    """Later polygons cover earlier ones; a pixel that none covers says nothing."""
    canvas = Image.new("I", (int(held["imgWidth"]), int(held["imgHeight"])))
    brush = ImageDraw.Draw(canvas)
    values: dict[int, Any] = {}
    crowds = set()
    for number, item in enumerate(held["objects"], 1):
        try:
            label, corners = str(item["label"]), [(float(x), float(y)) for x, y in item["polygon"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: object {number}: expected a label and a polygon: {error!r}") from None
        if item.get("deleted") or len(corners) < 2:
            continue
        brush.polygon(corners, fill=number)
        if label.endswith(_GROUP) and label != "polegroup":  # poles are stuff; Cityscapes ignores groups of them
            label = label.removesuffix(_GROUP)
            crowds.add(number)
        values[number] = label
    return Numbered(path, "Cityscapes polygons", np.asarray(canvas).astype(np.int64), values, frozenset(crowds))


def _voc(path: Path) -> Numbered:
    objects, classes = _plane(path), _plane(_voc_classes(path))
    if objects.shape != classes.shape:
        raise InputError(f"{path}: expected the size of {_voc_classes(path)}, found another")
    values = {}
    for number in np.unique(objects).tolist():
        if number in (0, VOID):
            continue
        spoken = np.unique(classes[objects == number])
        if len(spoken) != 1:
            raise InputError(f"{path}: object {number} has pixels of {len(spoken)} classes: {listing(spoken)}")
        values[number] = int(spoken[0])
    return Numbered(path, "Pascal VOC objects", objects, values, void=frozenset({VOID}))


def _voc_classes(path: Path) -> Path:
    return path.parent.parent / "SegmentationClass" / path.name


def _shifted(path: Path, kind: str, numbers: NDArray[np.int64], values: dict[int, int], crowds: set[int]) -> Numbered:
    """Cityscapes gives 0 a meaning of its own ("unlabeled") and may hold -1: all numbers are moved above 0."""
    move = 1 - min(values)
    moved = {n + move: v for n, v in values.items()}
    return Numbered(path, kind, numbers + move, moved, frozenset(n + move for n in crowds))


def _plane(path: Path) -> NDArray[np.int64]:
    values = _pixels(path)
    if values.ndim != 2:
        raise InputError(f"{path}: expected one number a pixel, found {values.shape[2]} bands")
    return values.astype(np.int64)


def _pixels(path: Path) -> NDArray:
    """As the file has them: palettes by their index."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a picture that can be read: {' '.join(str(error).split())}") from None
