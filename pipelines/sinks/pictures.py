"""What one predicted photo leaves: an overlay, a class map, its objects as COCO results, a panoptic picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from scipy import ndimage

from adapters.base import DomainAdapter
from adapters.classes import NODATA_ID, ClassSet
from maskformer.masks import MaskSet
from pipelines.report_overview import overview

LONGEST = 1600  # px of the overlay's longer side
TINT = 0.5  # share of the class' colour in the overlay


def write_picture(folder: Path, source: Any, objects: MaskSet, ids: NDArray[np.uint8], adapter: DomainAdapter) -> None:
    """overlay.jpg, semantic.png, objects.json; panoptic.png where no two objects share a pixel.

    objects: on the picture's canvas. ids: (H, W) uint8 class ids, 0 nothing, 255 no data.
    """
    classes = adapter.classes
    picture, scale = overview(source, LONGEST)
    Image.fromarray(overlay(picture, scale, objects, ids, classes)).save(folder / "overlay.jpg", quality=88)
    _semantic(ids, classes).save(folder / "semantic.png", optimize=True)
    (folder / "objects.json").write_text(json.dumps(results(objects, classes)) + "\n", encoding="utf-8")
    if adapter.overlap == "exclusive":
        Image.fromarray(panoptic_colours(objects)).save(folder / "panoptic.png", optimize=True)


def panoptic_colours(objects: MaskSet) -> NDArray[np.uint8]:
    """(H, W, 3): object n (from 1, in the set's order) as red + 256 green + 65536 blue, 0 nothing."""
    numbers = objects.to_label_map().astype(np.int64)
    return np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16 & 255], axis=-1).astype(np.uint8)


def overlay(
    picture: NDArray[np.uint8], scale: float, objects: MaskSet, ids: NDArray[np.uint8], classes: ClassSet
) -> NDArray[np.uint8]:
    """The picture with each pixel tinted by its class, and every object outlined in white."""
    step = max(1, round(scale))
    shape = picture.shape[:2]
    small = ids[::step, ::step][: shape[0], : shape[1]]
    colours = np.zeros((256, 3), np.float32)
    colours[1 : len(classes) + 1] = [ImageColor.getrgb(colour) for colour in classes.colours]
    known = ((small > 0) & (small != NODATA_ID))[..., None]
    tinted = np.where(known, (1 - TINT) * picture + TINT * colours[small], picture).astype(np.uint8)
    for number, (top, left, bottom, right) in enumerate(objects.boxes.tolist()):
        window = (slice(top // step * step, bottom), slice(left // step * step, right))
        inside = np.pad(objects[number : number + 1].crop(window).to_dense()[0][::step, ::step], 1)
        rows, columns = np.nonzero((inside & ~ndimage.binary_erosion(inside))[1:-1, 1:-1])
        rows, columns = rows + top // step, columns + left // step
        seen = (rows < shape[0]) & (columns < shape[1])
        tinted[rows[seen], columns[seen]] = 255
    return tinted


def _semantic(ids: NDArray[np.uint8], classes: ClassSet) -> Image.Image:
    picture = Image.fromarray(ids, "P")
    palette = [(0, 0, 0), *(ImageColor.getrgb(colour) for colour in classes.colours)]
    palette += [(0, 0, 0)] * (NODATA_ID - len(palette)) + [(255, 255, 255)]
    picture.putpalette([value for colour in palette for value in colour[:3]])
    return picture


def results(objects: MaskSet, classes: ClassSet) -> list[dict[str, Any]]:
    """COCO results: number (from 1, in the set's order), category, score, area, box (x, y, w, h), run lengths."""
    return [
        {
            "id": number,
            "category_id": category_id(classes, label),
            "score": round(score, 5),
            "area": area,
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": runs,
        }
        for number, (label, score, area, (top, left, bottom, right), runs) in enumerate(
            zip(
                objects.labels.tolist(),
                objects.scores.astype(float).tolist(),
                objects.areas.tolist(),
                objects.boxes.tolist(),
                objects.to_coco_rle(),
            ),
            start=1,
        )
    ]


def categories(classes: ClassSet) -> list[dict[str, Any]]:
    """COCO's `categories`; see `category_id`."""
    return [
        {"id": category_id(classes, i), "name": one.name, "isthing": int(one.kind == "thing")}
        for i, one in enumerate(classes)
    ]


def category_id(classes: ClassSet, index: int) -> int:
    """The class's number in its label files where all have one, else its place from 1."""
    own = [[value for value in one.values if isinstance(value, int)] for one in classes]
    return own[index][0] if all(own) else classes.id_of(index)
