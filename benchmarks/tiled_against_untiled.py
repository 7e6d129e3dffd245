"""What tiling costs with a real model: tiled against untiled, duplicates at seams, a grid shifted by half a stride.

About 15 minutes, 10 of them training (tree crowns of `maskbridge demo`, two cores). Scored on pictures of another place
that the model never saw, cut into scenes that fit the model whole. The same objects of the same tiles are also put
together by SAHI's merging (its defaults, and the best of a grid of settings). Beside what a shifted grid keeps stands
what the model keeps of itself: what one tile saw whole, seen by another tile that has room for it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import THREADS
from benchmarks.record import ROOT, config_hash, write_result
from benchmarks.sahi_merging import Setting, by_sahi
from maskformer.masks import MaskSet
from pipelines.assembly import limit, predict_in_memory
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import DataItem, PredictOptions, RunConfig, load_config
from pipelines.evaluation import combine, evaluate_scene
from pipelines.experiments import train
from pipelines.grid import Grid, Tile
from pipelines.labelled import LabelledData
from pipelines.metrics import f1
from pipelines.predictor import Predictor, settle
from pipelines.shards import predict_tiles
from pipelines.splits import Place
from pipelines.stitching import stitch

CONFIG = ROOT / "flows" / "demos" / "crowns.yaml"
STEPS = 300
UNSEEN = "sample:crowns/2019_YELL_2_541000_4977000_image_crop"  # another square kilometre of that forest
SIDE = 512  # px; of the scenes that go through the model whole: four tiles of 256 with their overlap
TILE, OVERLAPS = 256, (32, 64, 96)
EDGE = 32  # px; at the border that only one of two grids has, the pictures differ: no object there is compared
SURE = 0.5  # score of the objects that a shifted grid has to keep
SAME = 0.5  # share of the smaller of two objects that lies in the larger: then they are one, found twice
SAHI = (  # its default, and other settings of its own
    *(Setting("GREEDYNMM", metric, threshold) for metric in ("IOS", "IOU") for threshold in (0.5, 0.3)),
    Setting("NMS", "IOU", 0.5),
)
KEYS = ("pq", "ap", "miou", "f1_50", "box_f1_50")

Parts = list[tuple[Tile, MaskSet]]
Merge = Callable[[Grid, Parts], MaskSet]


@dataclass(frozen=True)
class Subject:
    """The trained model, and the unseen pictures with their labels."""

    bundle: Bundle
    data: LabelledData
    tiles: dict[tuple[int, int], tuple[Grid, Parts]] = field(default_factory=dict)  # by origin and overlap

    def predictor(self, tile: int, overlap: int, score: float | None = None) -> Predictor:
        options = PredictOptions(tile=tile, overlap=overlap, score=score, device="cpu", precision="fp32")
        return Predictor(
            self.bundle.build(), self.bundle.adapter, settle(options, self.bundle.adapter, self.bundle.thresholds)
        )


def main() -> None:
    torch.set_num_threads(THREADS)
    bundle = load_bundle(trained())
    with LabelledData(unseen(bundle)) as data:
        subject = Subject(bundle, data)
        values = {
            "steps": STEPS,
            "heldout_of_training": {key: bundle.metrics["heldout"].get(key) for key in KEYS},
            "tiled_against_untiled": against_untiled(subject),
            "seams": {},
            "shifted_grid": {},
        }
        for overlap in OVERLAPS:
            values["seams"][str(overlap)] = {
                **{name: seams(subject, merge, overlap) for name, merge in merges().items()},
                "the model in its tiles": in_tiles(subject, overlap),
            }
            values["shifted_grid"][str(overlap)] = {
                **{n: shifted(subject, m, overlap) for n, m in merges().items()},
                "the model alone": alone(subject, overlap),
            }
    print("\n".join(rows(values)))
    print(write_result("tiled_against_untiled", CONFIG, values))


def trained() -> Path:
    """The bundle, trained once; kept where `MASKBRIDGE_BENCH_CACHE` says, else in a folder for temporary files."""
    root = Path(os.environ.get("MASKBRIDGE_BENCH_CACHE") or tempfile.gettempdir())
    out = root / f"maskbridge-tiled-{config_hash(CONFIG)[:8]}"
    if not (out / "bundle").exists():
        config = load_config(CONFIG)
        settings = config.train.model_copy(update={"minutes": None, "steps": STEPS, "workers": 0})
        train(config.model_copy(update={"train": settings, "baseline": None}), out, seed=0)
    return out / "bundle"


def unseen(bundle: Bundle) -> RunConfig:
    config = load_config(CONFIG)
    label_options = config.data[0].label_options
    item = DataItem(source=f"{UNSEEN}.png", labels=f"{UNSEEN}.xml", label_options=label_options, role="test")
    return config.model_copy(update={"data": (item,), "adapter": bundle.adapter.to_dict()})


# ---------------------------------------------------------------- tiled against untiled


def against_untiled(subject: Subject) -> dict[str, Any]:
    """Scores over the same scenes, predicted whole and in tiles."""
    scores = {"untiled": scored(subject, SIDE, 0)}
    for overlap in OVERLAPS:
        scores[f"tiled, overlap {overlap}"] = scored(subject, TILE, overlap)
    print(scores, flush=True)
    return scores


def scored(subject: Subject, tile: int, overlap: int) -> dict[str, Any]:
    predictor = subject.predictor(tile, overlap)
    adapter, boxes = subject.bundle.adapter, subject.data.scenes[0].box_labels
    parts = []
    for place in scenes(subject.data):
        view, truth = subject.data.view(place)
        found, ids = predict_in_memory(view, predictor, subject.bundle.thresholds)
        parts.append(evaluate_scene(found.objects, ids, truth, adapter.classes, boxes))
    values = combine(parts)
    return {**{key: values.get(key) for key in KEYS}, "objects": values["counts"]["predicted"], "scenes": len(parts)}


def scenes(data: LabelledData) -> list[Place]:
    """Squares of SIDE px that do not overlap, over all of the picture."""
    height, width = data.scenes[0].source.shape
    return [
        Place(0, (slice(top, top + SIDE), slice(left, left + SIDE)))
        for top in range(0, height - SIDE + 1, SIDE)
        for left in range(0, width - SIDE + 1, SIDE)
    ]


# ---------------------------------------------------------------- seams and a shifted grid


def tiles_of(subject: Subject, origin: int, overlap: int) -> tuple[Grid, Parts]:
    """The model's objects of every tile of the picture from row and column `origin` on; predicted once."""
    if (origin, overlap) not in subject.tiles:
        source = subject.data.scenes[0].source
        view = source.view((slice(origin, source.shape[0]), slice(origin, source.shape[1])))
        grid, predictor = Grid(view.shape, TILE, overlap), subject.predictor(TILE, overlap)
        parts = [(tile, result.objects) for tile, result in predict_tiles(view, grid.tiles, predictor)]
        subject.tiles[origin, overlap] = grid, parts
    return subject.tiles[origin, overlap]


def seams(subject: Subject, merge: Merge, overlap: int) -> dict[str, Any]:
    """Which share of the objects that two tiles saw is there twice, and how much of that no tile alone shows."""
    grid, parts = tiles_of(subject, 0, overlap)
    found = limit(merge(grid, parts), subject.predictor(TILE, overlap).options)
    at_seam, twice = touches_a_strip(found, grid), duplicates(found)
    made = twice & ~seen_twice(found, parts, grid)
    share = {name: round(float(chosen[at_seam].mean()), 4) for name, chosen in (("twice", twice), ("by_merging", made))}
    return {**share, "objects": len(found), "objects_at_seams": int(at_seam.sum())}


def in_tiles(subject: Subject, overlap: int) -> dict[str, Any]:
    """The same share of the model's own objects, tile by tile, before anything is merged."""
    options = subject.predictor(TILE, overlap).options
    each = [duplicates(limit(masks, options)) for _, masks in tiles_of(subject, 0, overlap)[1]]
    twice = np.concatenate(each)
    return {"twice": round(float(twice.mean()), 4), "objects": len(twice)}


def seen_twice(objects: MaskSet, parts: Parts, grid: Grid) -> np.ndarray:
    """(N,) bool: whether one tile alone has a pair of objects like this one (IoU 0.5 with either of the pair)."""
    found = np.zeros(len(objects), bool)
    for tile, masks in parts:
        pair = masks[duplicates(masks)]
        placed = pair.place(grid.shape, tile.offset)
        i, j, shared = objects.overlaps(placed)
        iou = shared / (objects.areas[i] + placed.areas[j] - shared)
        found[i[iou >= 0.5]] = True
    return found


def touches_a_strip(objects: MaskSet, grid: Grid) -> np.ndarray:
    """(N,) bool: whether two tiles or more saw a pixel of the object."""
    seen = np.zeros(grid.shape, np.uint8)
    for tile in grid:
        seen[tile.window] += 1
    strips = MaskSet.from_dense((seen > 1)[None], np.zeros(1, np.int64))
    one_class = objects.with_labels(np.zeros(len(objects), np.int64))
    touched = np.zeros(len(objects), bool)
    touched[one_class.overlaps(strips)[0]] = True
    return touched


def duplicates(objects: MaskSet) -> np.ndarray:
    """(N,) bool: whether half of the object, or of a smaller one of its class, is shared by the two."""
    i, j, shared = objects.overlaps(objects)
    small = np.minimum(objects.areas[i], objects.areas[j])
    pair = (i != j) & (objects.labels[i] == objects.labels[j]) & (shared >= SAME * small)
    twice = np.zeros(len(objects), bool)
    twice[i[pair]] = True
    return twice


def shifted(subject: Subject, merge: Merge, overlap: int) -> dict[str, Any]:
    """F1 at IoU 0.5 between the sure objects of a grid and those of the grid shifted by half a stride both ways."""
    origin = (TILE - overlap) // 2
    sets = []
    for start in (0, origin):
        grid, parts = tiles_of(subject, start, overlap)
        sets.append(limit(merge(grid, parts), subject.predictor(TILE, overlap).options))
    base, moved = sets
    common = tuple(slice(origin, length) for length in base.shape)
    one, other = (inner(objects) for objects in (base.crop(common), moved))
    sure = [objects[objects.scores >= SURE] for objects in (one, other)]
    return {
        "f1": round(float(f1(*sure)), 4),
        "kept": round(kept(sure[0], other), 4),  # by an object of any score that the model's threshold lets through
        "sure_objects": [len(objects) for objects in sure],
        "lost": lost(sure, one, other, tiles_of(subject, 0, overlap), tiles_of(subject, origin, overlap)),
    }


def lost(sure: list[MaskSet], one: MaskSet, other: MaskSet, base: tuple, moved: tuple) -> dict[str, int]:
    """Of the sure objects that the other grid has not: those a tile of that grid found all the same."""
    origin = tuple(a - b for a, b in zip(base[0].shape, moved[0].shape, strict=True))
    everything = [
        MaskSet.concatenate([masks.place(grid.shape, tile.offset) for tile, masks in parts])
        for grid, parts in (base, moved)
    ]
    everything[0] = everything[0].crop([slice(o, n) for o, n in zip(origin, base[0].shape, strict=True)])
    counts = {"objects": 0, "seen_by_a_tile": 0}
    for mine, theirs, seen in ((sure[0], other, everything[1]), (sure[1], one, everything[0])):
        gone = mine[best_iou(mine, theirs) < 0.5]
        counts["objects"] += len(gone)
        counts["seen_by_a_tile"] += int((best_iou(gone, seen) >= 0.5).sum())
    return counts


def alone(subject: Subject, overlap: int) -> dict[str, Any]:
    """What no stitching can change: of the sure objects that a tile of one grid saw whole, EDGE px from its border or
    more, and a tile of the other grid has room for just so, the share that this tile has with IoU 0.5.
    """
    origin = (TILE - overlap) // 2
    (grid, parts), (_, moved) = tiles_of(subject, 0, overlap), tiles_of(subject, origin, overlap)
    kept_, asked = 0, 0
    for tile, masks in parts:
        placed = masks[masks.scores >= SURE].place(grid.shape, tile.offset)
        placed = placed[roomy(placed, np.array(tile.offset), np.array(tile.shape))]
        for other, theirs in moved:
            low = np.array(other.offset) + origin
            fitting = placed[roomy(placed, low, np.array(other.shape))]
            kept_ += int((best_iou(fitting, theirs.place(grid.shape, low.tolist())) >= 0.5).sum())
            asked += len(fitting)
    return {"kept": round(kept_ / max(asked, 1), 4), "asked": asked}


def roomy(objects: MaskSet, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(N,) bool: whether objects lie EDGE px or more inside a window."""
    boxes = objects.boxes
    return ((boxes[:, :2] >= low + EDGE) & (boxes[:, 2:] <= low + size - EDGE)).all(axis=1)


def best_iou(objects: MaskSet, others: MaskSet) -> np.ndarray:
    """(N,) the best IoU of each object."""
    i, j, shared = objects.overlaps(others)
    best = np.zeros(len(objects))
    np.maximum.at(best, i, shared / (objects.areas[i] + others.areas[j] - shared))
    return best


def inner(objects: MaskSet) -> MaskSet:
    """Objects that stay away from the top and left border, which the picture of one grid only has."""
    return objects[(objects.boxes[:, :2] >= EDGE).all(axis=1)]


def kept(sure: MaskSet, other: MaskSet) -> float:
    """Share of the sure objects that have one of IoU 0.5 or more in `other`."""
    return float((best_iou(sure, other) >= 0.5).sum()) / max(len(sure), 1)


def merges() -> dict[str, Merge]:
    """Ours, and SAHI's ways to put the same tiles together."""
    ways: dict[str, Merge] = {"strip evidence": stitch}
    for setting in SAHI:
        ways[f"SAHI {setting}"] = partial(by_sahi, setting=setting)
    return ways


def rows(values: dict[str, Any]) -> list[str]:
    """Markdown rows of the three tables."""
    lines = ["| scenes | PQ | AP | mIoU | F1 | objects |", "|---|---|---|---|---|---|"]
    for name, one in values["tiled_against_untiled"].items():
        cells = " | ".join(f"{one[key]:.4f}" for key in ("pq", "ap", "miou", "f1_50"))
        lines.append(f"| {name} | {cells} | {one['objects']} |")
    lines += ["", "| merging | overlap | twice at seams | of it by merging | objects |", "|---|---|---|---|---|"]
    for overlap, ways in values["seams"].items():
        for name, one in ways.items():
            made = f"{one['by_merging']:.1%}" if "by_merging" in one else ""
            lines.append(f"| {name} | {overlap} | {one['twice']:.1%} | {made} | {one['objects']} |")
    lines += ["", "| merging | overlap | F1 of sure objects | kept | sure objects |", "|---|---|---|---|---|"]
    for overlap, ways in values["shifted_grid"].items():
        for name, one in ways.items():
            f1_text, count = (f"{one['f1']:.3f}", one["sure_objects"]) if "f1" in one else ("", one["asked"])
            lines.append(f"| {name} | {overlap} | {f1_text} | {one['kept']:.3f} | {count} |")
    return lines


if __name__ == "__main__":
    main()
