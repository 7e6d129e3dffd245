"""Thresholds, chosen on the validation part and carried in the bundle.

`semantic`: a pixel is "nothing" where no class reaches it; the value with the best mean IoU.
`score`: objects below are left out; the value with the best object F1 at IoU 0.5, or where things are counted the one
that finds and counts them best.
`regions`: the same for a per-pixel network, whose objects are the regions where a class reaches it.
The limit is tried as `predict` applies it: in each tile before stitching, and to the whole objects after. (A panoptic
task's limit also decides who competes for a pixel; there only the second cut is tried.)
The same choice is made for the mask model and for the per-pixel baseline, or the comparison would not be fair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adapters.base import Annotation, DomainAdapter
from maskformer.masks import MaskSet
from pipelines.assembly import DEFAULT_SEMANTIC, Band, Window, class_map, limit, predict_in_memory
from pipelines.blending import Blender
from pipelines.counting_metrics import count_quality
from pipelines.grid import Grid, Tile
from pipelines.metrics import box_f1, f1
from pipelines.predictor import DEFAULT_SCORE, Predictor
from pipelines.regions import regions
from pipelines.shards import predict_tiles
from pipelines.stitching import stitch

LOWEST_SCORE = 0.05  # candidates below are noise and would only cost time
BINS = 100
SCORES = np.arange(LOWEST_SCORE, 0.96, 0.05)


class ThresholdCurve:
    """Mean IoU over classes for every threshold at once, from histograms: constant memory for any scene."""

    def __init__(self, classes: int) -> None:
        self.hits = np.zeros((classes, BINS), np.int64)  # predicted c, truth c, by probability
        self.predicted = np.zeros((classes, BINS), np.int64)
        self.truth = np.zeros(classes, np.int64)

    def add(self, probabilities: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> None:
        """`probabilities` (K, h, w) in 0..1, `truth` (h, w) class ids (0 nothing), `counted` (h, w) bool."""
        best, top = probabilities.argmax(0)[counted], probabilities.max(0)[counted]
        truth = truth[counted]
        bins = np.minimum((top * BINS).astype(np.int64), BINS - 1)
        for index in range(len(self.truth)):
            chosen = best == index
            self.predicted[index] += np.bincount(bins[chosen], minlength=BINS)
            self.hits[index] += np.bincount(bins[chosen & (truth == index + 1)], minlength=BINS)
            self.truth[index] += np.count_nonzero(truth == index + 1)

    def best(self) -> float:
        """The threshold with the highest mean IoU over the classes that occur; 0.5 where none does."""
        occurring = self.truth > 0
        if not occurring.any():
            return DEFAULT_SEMANTIC
        hits = self.hits[:, ::-1].cumsum(1)[:, ::-1]  # at threshold bin i: all bins from i up
        predicted = self.predicted[:, ::-1].cumsum(1)[:, ::-1]
        iou = hits / np.maximum(predicted + self.truth[:, None] - hits, 1)
        return float(iou[occurring].mean(0).argmax() / BINS)


def tune(
    places: Sequence[tuple[Any, Annotation]],
    adapter: DomainAdapter,
    make_predictor: Callable[[float], Predictor],
    box_labels: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Choose `semantic` and `score` over validation `places` (source view, annotation).

    `make_predictor(score)` gives a predictor that keeps objects from that score on. Without a place, or without
    an object in them, the defaults of 0.5 stand.
    """
    chosen = {"semantic": DEFAULT_SEMANTIC, "score": DEFAULT_SCORE}
    if not places:
        return chosen
    curve = ThresholdCurve(len(adapter.classes))
    predictor = make_predictor(LOWEST_SCORE)
    per_pixel = predictor.options.task == "semantic"
    measure = count_quality if adapter.points is not None else box_f1 if box_labels else f1
    truths = []
    by_threshold: list[list[float]] = [[] for _ in SCORES]
    for source, annotation in places:
        truth, counted = truth_map(annotation)
        kept: list[np.ndarray] = []

        def on_band(
            window: Window, probabilities: np.ndarray, seen: np.ndarray, t: Any = truth, c: Any = counted, k: Any = kept
        ) -> None:
            curve.add(probabilities, t[window], c[window] & seen)
            if per_pixel:
                k.append(probabilities.astype(np.float16))

        truths.append(annotation.objects)
        if per_pixel:
            predict_in_memory(source, predictor, {}, on_band, on_tile)
            _, valid = source.read(tuple(slice(0, n) for n in source.shape))
            for scores, threshold in zip(by_threshold, SCORES, strict=True):
                ids = class_map(np.concatenate(kept, axis=1), valid, adapter, threshold)
                found = limit(regions(ids, len(adapter.classes)), predictor.options)
                scores.append(measure(found, annotation.objects))
        else:
            parts = predict_parts(source, predictor, on_band, on_tile)
            for scores, threshold in zip(by_threshold, SCORES, strict=True):
                scores.append(measure(limited(source.shape, parts, predictor, float(threshold)), annotation.objects))
    chosen["semantic"] = curve.best()
    if any(map(len, truths)):
        best = middle_of_best([float(np.mean(scores)) for scores in by_threshold])
        chosen["regions" if per_pixel else "score"] = best
    return chosen


def predict_parts(
    source: Any, predictor: Predictor, on_band: Band, on_tile: Callable[[int, int], None] | None = None
) -> list[tuple[Tile, MaskSet]]:
    """The objects of every tile of `source`, not stitched; the blended probabilities go to `on_band`."""
    grid, parts = _grid(source.shape, predictor), []
    blender = Blender(grid, len(predictor.adapter.classes))
    for tile, result in predict_tiles(source, grid.tiles, predictor):
        parts.append((tile, result.objects))
        for band in blender.add(tile, result.probabilities.astype(np.float32), result.valid):
            on_band(*band)
        if on_tile:
            on_tile(len(parts), len(grid))
    return parts


def limited(
    shape: tuple[int, int], parts: Sequence[tuple[Tile, MaskSet]], predictor: Predictor, score: float
) -> MaskSet:
    """What `predict --score` finds in a scene (H, W) of which `parts` holds all that reaches a lower score."""
    score = round(score, 2)  # as it is kept
    options = predictor.options.model_copy(update={"score": score})
    tiles = parts if options.task == "panoptic" else [(tile, found[found.scores >= score]) for tile, found in parts]
    return limit(predictor.adapter.outputs(stitch(_grid(shape, predictor), tiles)), options).canonical()


def _grid(shape: tuple[int, int], predictor: Predictor) -> Grid:
    options = predictor.options
    assert options.tile is not None and options.overlap is not None, "settled options"
    return Grid(shape, options.tile, options.overlap)


def middle_of_best(means: list[float]) -> float:
    plateau = np.flatnonzero(np.isclose(means, np.max(means)))
    return round(float(SCORES[plateau[len(plateau) // 2]]), 2)


def truth_map(annotation: Annotation) -> tuple[np.ndarray, np.ndarray]:
    """Class ids (H, W) uint8 of the labels (smaller objects on top) and the pixels that count (not ignored)."""
    objects = annotation.objects
    order = np.argsort(-objects.areas, kind="stable")
    painted = objects[order]
    lookup = np.concatenate([[0], painted.labels + 1]).astype(np.uint8)
    counted = np.ones(objects.shape, bool) if annotation.ignore is None else ~annotation.ignore
    return lookup[painted.to_label_map()], counted
