"""Other ways to put tiles together, on the same scenes: SAHI's merging, whole-mask IoU with union, plain box NMS.

SAHI's comes from its package, with its defaults and with its best setting over a grid (`benchmarks.sahi_merging`). The
other two are written here from their descriptions: one links fragments of one class whose masks (not only inside the
strip) overlap by an IoU, and unites them; the other keeps the better of two boxes that overlap, as tiled detectors do.
Each is given its best setting scene by scene; ours has one. Nothing is left out for being small.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.record import write_result
from benchmarks.sahi_merging import DEFAULT, GRID, Parts, merge, predictions
from maskformer.masks import MaskSet
from pipelines.grid import Grid
from pipelines.metrics import panoptic_quality
from pipelines.stitching import stitch
from tests.scenes import FAMILIES, cut

SIZE, TILE, OVERLAP = 1024, 384, 64
UNION_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
NMS_THRESHOLDS = (0.1, 0.15, 0.3, 0.5, 0.7)


def main() -> None:
    values = {"sahi": importlib.metadata.version("sahi"), "sahi_grid": [str(one) for one in GRID], **comparison()}
    print("\n".join(table(values["scenes"])))
    print(write_result("stitching_rivals", None, values))


def comparison() -> dict[str, Any]:
    """Every family cut into tiles by a perfect model: panoptic quality, and the share that comes back to the pixel."""
    rows = {}
    for name in FAMILIES:
        rows[name] = _family(name)
        print(name, rows[name], flush=True)
    return {"size": SIZE, "tile": TILE, "overlap": OVERLAP, "scenes": rows}


def _family(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = FAMILIES[name](rng, SIZE).canonical()
    grid = Grid((SIZE, SIZE), TILE, OVERLAP)
    parts = cut(truth, grid, rng, dense=False)
    return {
        "objects": len(truth),
        "strip_evidence": _row(truth, lambda: stitch(grid, parts)),
        **_sahi(truth, grid, parts),
        "mask_iou_union": _best(truth, lambda t: unite_by_mask_iou(grid, parts, t), UNION_THRESHOLDS),
        "box_nms": _best(truth, lambda t: box_nms(grid, parts, t), NMS_THRESHOLDS),
    }


def _sahi(truth: MaskSet, grid: Grid, parts: Parts) -> dict[str, Any]:
    """SAHI's rows: its default, and of its grid the best panoptic quality."""
    objects = predictions(grid, parts)
    rows = {}
    for setting in GRID:
        found, seconds = merge(grid.shape, objects, setting)
        rows[setting] = {**_scores(truth, found.canonical()), "seconds": round(seconds, 3), "setting": str(setting)}
    return {"sahi_default": rows[DEFAULT], "sahi_best": max(rows.values(), key=lambda row: row["pq"])}


def unite_by_mask_iou(grid: Grid, parts: Parts, threshold: float) -> MaskSet:
    """Fragments of one class whose masks overlap by `threshold` or more are one object, and so on along chains."""
    everything = _placed(grid, parts)
    i, j, shared = everything.overlaps(everything)
    iou = shared / (everything.areas[i] + everything.areas[j] - shared)
    linked = (iou >= threshold) & (everything.labels[i] == everything.labels[j])
    count = len(everything)
    graph = coo_array((np.ones(linked.sum()), (i[linked], j[linked])), (count, count))
    return everything.union(connected_components(graph, directed=False)[1])


def box_nms(grid: Grid, parts: Parts, threshold: float) -> MaskSet:
    """Best score first; a fragment goes where its box overlaps a kept one of its class by more than `threshold`.

    Equal scores (all views of an object have its score) fall to the larger area.
    """
    everything = _placed(grid, parts)
    everything = everything[np.lexsort((-everything.areas, -everything.scores))]
    low, high = everything.boxes[:, :2], everything.boxes[:, 2:]
    area = (high - low).prod(axis=1)
    alive = np.ones(len(everything), bool)
    for n in range(len(everything)):
        if alive[n]:
            shared = (np.minimum(high, high[n]) - np.maximum(low, low[n])).clip(0).prod(axis=1)
            out = (shared / (area + area[n] - shared) > threshold) & (everything.labels == everything.labels[n])
            out[: n + 1] = False
            alive &= ~out
    return everything[alive]


def _placed(grid: Grid, parts: Parts) -> MaskSet:
    return MaskSet.concatenate([masks.place(grid.shape, tile.offset) for tile, masks in parts])


def _best(truth: MaskSet, run: Callable[[float], MaskSet], thresholds: tuple[float, ...]) -> dict[str, Any]:
    rows = [{**_row(truth, lambda t=t: run(t)), "threshold": t} for t in thresholds]
    return max(rows, key=lambda row: row["pq"])


def _row(truth: MaskSet, run: Callable[[], MaskSet]) -> dict[str, Any]:
    began = time.perf_counter()
    found = run().canonical()
    seconds = time.perf_counter() - began
    return {**_scores(truth, found), "seconds": round(seconds, 3)}


def _scores(truth: MaskSet, found: MaskSet) -> dict[str, Any]:
    i, j, shared = found.overlaps(truth)
    same = (shared == found.areas[i]) & (shared == truth.areas[j]) & (found.labels[i] == truth.labels[j])
    return {
        "pq": round(float(panoptic_quality(found, truth, int(truth.labels.max()) + 1)["pq"]), 4),
        "exact": round(len(np.unique(j[same])) / len(truth), 4),
        "objects": len(found),
    }


def table(scenes: dict[str, Any]) -> list[str]:
    """Markdown rows: panoptic quality and seconds of every way."""
    ways = ("strip_evidence", "sahi_default", "sahi_best", "mask_iou_union", "box_nms")
    lines = [
        f"| scene | objects | {' | '.join(way.replace('_', ' ') for way in ways)} |",
        "|---" * (len(ways) + 2) + "|",
    ]
    for name, row in scenes.items():
        cells = [f"{row[way]['pq']:.3f} ({row[way]['seconds']:.2f} s)" for way in ways]
        cells[2] += f" {row['sahi_best']['setting']}"
        lines.append(f"| {name} | {row['objects']} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
