"""Panoptic quality of COCO panoptic files against the rules of its reference implementation, pixel by pixel."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters.imagery import coco_panoptic
from maskformer.masks import MaskSet
from pipelines.annotations import read_annotations
from pipelines.evaluation import combine, evaluate_scene
from pipelines.sources import open_for
from tests.picture_sets import photo

SHAPE = (40, 60)
CATEGORIES = (1, 2, 3, 184, 187, 193)  # three things, three kinds of stuff
THINGS = (1, 2, 3)


def segments(random: np.random.Generator, base: np.ndarray | None = None) -> tuple[np.ndarray, dict[int, int]]:
    """Numbers (H, W), 0 void, and their categories: rectangles on top of each other, stuff once a category.

    With `base`, a picture close to it: the same numbers with many pixels and some categories changed.
    """
    numbers = np.zeros(SHAPE, np.int64)
    for number in range(1, 16):
        top, left = random.integers(0, SHAPE[0] - 5), random.integers(0, SHAPE[1] - 5)
        height, width = random.integers(3, 20, 2)
        numbers[top : top + height, left : left + width] = number * 777
    if base is not None:
        numbers = np.where(random.random(SHAPE) < 0.8, base, numbers)
    categories: dict[int, int] = {}
    for number in np.unique(numbers[numbers > 0]).tolist():
        free = [c for c in CATEGORIES if c in THINGS or c not in categories.values()]
        categories[number] = int(random.choice(free))
    return numbers, categories


def reference(pictures: list[tuple]) -> dict[str, float]:
    """Kirillov et al. 2019 as its authors count it: void out of unions, crowds of a category and void spare a miss."""
    tp, fp, fn, iou = Counter(), Counter(), Counter(), defaultdict(float)
    for truth, true_categories, crowds, predicted, categories in pictures:
        pairs = Counter(zip(truth.ravel().tolist(), predicted.ravel().tolist()))
        area_t, area_p = Counter(truth.ravel().tolist()), Counter(predicted.ravel().tolist())
        done_t, done_p = set(), set()
        for (t, p), shared in pairs.items():
            if t == 0 or p == 0 or t in crowds or true_categories[t] != categories[p]:
                continue
            union = area_t[t] + area_p[p] - shared - pairs[0, p]
            if shared / union > 0.5:
                tp[true_categories[t]] += 1
                iou[true_categories[t]] += shared / union
                done_t.add(t)
                done_p.add(p)
        for t, category in true_categories.items():
            fn[category] += t not in done_t and t not in crowds
        for p, category in categories.items():
            if p in done_p:
                continue
            spared = pairs[0, p] + sum(pairs[t, p] for t in crowds if true_categories[t] == category)
            fp[category] += spared / area_p[p] <= 0.5
    found = [c for c in CATEGORIES if tp[c] + fp[c] + fn[c]]
    quality = [iou[c] / (tp[c] + 0.5 * fp[c] + 0.5 * fn[c]) for c in found]
    recognition = [tp[c] / (tp[c] + 0.5 * fp[c] + 0.5 * fn[c]) for c in found]
    return {"pq": float(np.mean(quality)), "rq": float(np.mean(recognition))}


@pytest.mark.parametrize("seed", range(6))
def test_panoptic_quality_is_the_references(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    adapter, pictures, scores = coco_panoptic(), [], []
    held: dict[str, list] = {"images": [], "annotations": []}
    (tmp_path / "panoptic_val").mkdir()
    for n in range(4):
        truth, true_categories = segments(random)
        predicted, categories = segments(random, truth)
        for number in set(categories) & set(true_categories):
            if random.random() < 0.8 and true_categories[number] in THINGS:
                categories[number] = true_categories[number]
        things = [number for number, category in true_categories.items() if category in THINGS]
        crowds = {things[0]} if things else set()
        pictures.append((truth, true_categories, crowds, predicted, categories))
        colours = np.stack([truth & 255, truth >> 8 & 255, truth >> 16 & 255], -1).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / "panoptic_val" / f"{n}.png")
        Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(photo(tmp_path / f"{n}.png"))
        listed = [{"id": i, "category_id": c, "iscrowd": int(i in crowds)} for i, c in true_categories.items()]
        held["images"].append({"id": n, "file_name": f"{n}.png", "height": SHAPE[0], "width": SHAPE[1]})
        held["annotations"].append({"image_id": n, "file_name": f"{n}.png", "segments_info": listed})
    (tmp_path / "panoptic_val.json").write_text(json.dumps(held))
    for n, (*_, predicted, categories) in enumerate(pictures):
        with open_for(tmp_path / f"{n}.png", adapter) as source:
            annotation = read_annotations(tmp_path / "panoptic_val.json", source, adapter).read(
                (slice(0, SHAPE[0]), slice(0, SHAPE[1]))
            )
        objects = MaskSet.from_label_map(predicted, {i: adapter.classes.index(c) for i, c in categories.items()})
        scores.append(evaluate_scene(objects, None, annotation, adapter.classes, covers=True))
    ours, theirs = combine(scores), reference(pictures)
    assert 0.05 < theirs["pq"] < 0.95
    assert ours["pq"] == pytest.approx(theirs["pq"], abs=1e-6)
    assert ours["rq"] == pytest.approx(theirs["rq"], abs=1e-6)
