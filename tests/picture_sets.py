"""Small generated picture sets, laid out to the letter as the published ones are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from adapters.class_lists import class_map

SIZE = (48, 64)  # height, width


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)).save(path)
    return path


def png(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def cityscapes(root: Path) -> None:
    """A road (7), a car (26), two people (24), a group of cars, the ego vehicle (1) and unlabelled ground (0)."""
    ids = np.zeros(SIZE, np.int32)
    ids[24:] = 7
    ids[30:40, 5:20] = 26000
    ids[10:30, 30:34], ids[10:30, 36:40] = 24000, 24001
    ids[5:10, 50:60] = 26
    ids[44:] = 1
    for part, towns in (("train", ("aachen", "bremen", "zurich")), ("val", ("frankfurt",))):
        for town in towns:
            for number in range(2):
                name = f"{town}_{number:06d}_000019"
                photo(root / "cityscapes" / "leftImg8bit" / part / town / f"{name}_leftImg8bit.png", number)
                place = root / "cityscapes" / "gtFine" / part / town
                png(place / f"{name}_gtFine_instanceIds.png", ids.astype(np.uint16))
                png(place / f"{name}_gtFine_labelIds.png", np.where(ids > 999, ids // 1000, ids).astype(np.uint8))
                (place / f"{name}_gtFine_polygons.json").write_text(json.dumps(CITY_POLYGONS))


CITY_POLYGONS = {
    "imgHeight": SIZE[0],
    "imgWidth": SIZE[1],
    "objects": [
        {"label": "road", "polygon": [[0, 24], [63, 24], [63, 47], [0, 47]]},
        {"label": "car", "polygon": [[5, 30], [19, 30], [19, 39], [5, 39]]},
        {"label": "person", "polygon": [[30, 10], [33, 10], [33, 29], [30, 29]]},
        {"label": "person", "polygon": [[36, 10], [39, 10], [39, 29], [36, 29]]},
        {"label": "cargroup", "polygon": [[50, 5], [59, 5], [59, 9], [50, 9]]},
        {"label": "ego vehicle", "polygon": [[0, 44], [63, 44], [63, 47], [0, 47]]},
    ],
}


def coco_panoptic(root: Path) -> None:
    """Sky (187), two people (1) and a crowd of people; numbers above 65 535, so that all three colours count."""
    numbers = np.zeros(SIZE, np.int64)
    numbers[:20], numbers[20:40, :10], numbers[20:40, 12:20], numbers[20:40, 40:] = 3226956, 70000, 300, 5
    colours = np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16 & 255], -1).astype(np.uint8)
    segments = [
        {"id": 3226956, "category_id": 187, "iscrowd": 0},
        {"id": 70000, "category_id": 1, "iscrowd": 0},
        {"id": 300, "category_id": 1, "iscrowd": 0},
        {"id": 5, "category_id": 1, "iscrowd": 1},
    ]
    classes = class_map("coco-panoptic")
    listed = [{"id": int(c.values[0]), "name": c.name, "isthing": int(c.kind == "thing")} for c in classes]
    for part, count in (("train2017", 4), ("val2017", 2)):
        images, annotations = [], []
        for number in range(1, count + 1):
            name = f"{number:012d}"
            photo(root / "coco" / part / f"{name}.jpg", number)
            png(root / "coco" / "annotations" / f"panoptic_{part}" / f"{name}.png", colours)
            images.append({"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
            annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        held = {"images": images, "annotations": annotations, "categories": listed}
        (root / "coco" / "annotations" / f"panoptic_{part}.json").write_text(json.dumps(held))


def ade20k(root: Path) -> None:
    """Wall (1), floor (4), a bed (8), and 0, which says nothing."""
    values = np.zeros(SIZE, np.uint8)
    values[:20], values[20:40], values[25:35, 10:30] = 1, 4, 8
    for part, count in (("training", 4), ("validation", 2)):
        for number in range(1, count + 1):
            name = f"ADE_{part[:5]}_{number:08d}"
            photo(root / "ADEChallengeData2016" / "images" / part / f"{name}.jpg", number)
            png(root / "ADEChallengeData2016" / "annotations" / part / f"{name}.png", values)


def defects(root: Path) -> None:
    """Two scratches on each bottle, and good bottles without a mask."""
    mask = np.zeros(SIZE, np.uint8)
    mask[10:14, 5:40], mask[30:36, 20:26] = 255, 255
    for kind in ("broken_large", "contamination"):
        for number in range(4):
            photo(root / "mvtec" / "bottle" / "test" / kind / f"{number:03d}.png", number)
            png(root / "mvtec" / "bottle" / "ground_truth" / kind / f"{number:03d}_mask.png", mask)
    photo(root / "mvtec" / "bottle" / "test" / "good" / "000.png")


def voc(root: Path) -> Path:
    """Two persons (15) and a dog (12), with borders of 255. Returns the picture's path."""
    objects = np.zeros(SIZE, np.uint8)
    objects[5:20, 5:15], objects[5:20, 16:26], objects[30:40, 40:55] = 1, 2, 3
    classes = np.select([objects == 3, objects > 0], [12, 15], 0).astype(np.uint8)
    for plane in (objects, classes):
        plane[5:20, 15] = 255
    for folder, plane in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        picture = Image.fromarray(plane, "P")
        picture.putpalette([value for n in range(256) for value in (n, 255 - n, n // 2)])
        (root / folder).mkdir(parents=True, exist_ok=True)
        picture.save(root / folder / "2007_000032.png")
    return photo(root / "JPEGImages" / "2007_000032.jpg")


SETS = {
    "cityscapes-panoptic": cityscapes,
    "coco-panoptic": coco_panoptic,
    "ade20k-semantic": ade20k,
    "defects-instance": defects,
}
