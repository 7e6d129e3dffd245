"""A predicted scene against its labels: all scores at once, over one scene or several.

`evaluate_scene` counts, `combine` adds up and divides, so scenes are scored together as if they were one: AP pools the
detections, panoptic quality and F1 sum the matches, IoU sums the pixels. What can be had without any network is in
`pipelines.trivial`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import Annotation
from adapters.classes import ClassSet
from maskformer.masks import MaskSet
from pipelines.annotations.base import unite_stuff
from pipelines.average_precision import Detections, detections, precision_scores, precision_table
from pipelines.boundaries import boundary_counts
from pipelines.counting_metrics import CountRecord, count_record, counting_scores
from pipelines.metrics import (
    SIZE_NAMES,
    UNSEEN,
    MatchCounts,
    confusion,
    f1_counts,
    f1_counts_by_size,
    mean,
    panoptic_counts,
    panoptic_scores,
    semantic_scores,
    without_ignored,
)

DIGITS = 6  # of the numbers handed out: what the reference libraries are matched to


@dataclass(frozen=True)
class SceneScores:
    """The counts of one scene, per class (K,). Box counts only where labels are boxes."""

    names: tuple[str, ...]
    pixels: NDArray[np.int64]  # (K + 1, K + 1) confusion table, (truth, prediction), 0 = nothing
    boundary: NDArray[np.int64]  # (2, K) pixels in both boundary regions, in either
    panoptic: MatchCounts
    f1_50: MatchCounts
    f1_75: MatchCounts
    by_size: MatchCounts  # at IoU 0.5; (small, medium, large) in the place of classes
    detections: Detections
    box_f1_50: MatchCounts | None
    box_detections: Detections | None
    ignored: int  # predictions that lie mostly in ignored ground
    counting: CountRecord | None = None  # where the adapter counts


def evaluate_scene(
    objects: MaskSet,
    semantic: NDArray[np.uint8] | None,
    truth: Annotation,
    classes: ClassSet,
    box_labels: bool = False,
    covers: bool = False,
    counts: bool = False,
) -> SceneScores:
    """Compare one scene with its labels; `combine` makes numbers of it.

    objects: predicted, on the scene's canvas; semantic: (H, W) class ids, 255 where there is no data, or None: then
    painted from the objects, higher scores on top. truth: objects (in a class map later ones lie on top) and ignored
    pixels: these are not scored, and predictions mostly inside are neither right nor wrong. box_labels: masks of the
    truth are an assumption, so boxes are scored as well. covers: the classes tile the plane, so pixels without an
    object are unlabelled. counts: the things are counted (`pipelines.counting_metrics`).

    Stuff is one segment a class in panoptic quality and does not take part in AP and F1, which are about things.
    """
    count, thing = len(classes), np.array(classes.is_thing)
    truth_map = _class_map(truth.objects)
    ignore = np.zeros(truth_map.shape, bool) if truth.ignore is None else truth.ignore
    if covers:
        ignore = ignore | (truth_map == 0)
    if semantic is None:
        semantic = _class_map(objects[np.argsort(objects.scores, kind="stable")])

    kept = without_ignored(objects, ignore)
    segments, true_segments = unite_stuff(objects, classes), unite_stuff(truth.objects, classes)
    void = ignore if truth.crowds is None else ignore & ~(truth.crowds.to_label_map() > 0)
    things, true_things = kept[thing[kept.labels]], truth.objects[thing[truth.objects.labels]]
    return SceneScores(
        names=classes.names,
        pixels=confusion(semantic, truth_map, count, ignore),
        boundary=boundary_counts(semantic, truth_map, count, ignore | (semantic == UNSEEN)),
        panoptic=panoptic_counts(segments, true_segments, count, void, truth.crowds),
        f1_50=f1_counts(things, true_things, count, 0.5),
        f1_75=f1_counts(things, true_things, count, 0.75),
        by_size=f1_counts_by_size(things, true_things),
        detections=detections(things, true_things, count),
        box_f1_50=f1_counts(things, true_things, count, 0.5, "box") if box_labels else None,
        box_detections=detections(things, true_things, count, "box") if box_labels else None,
        ignored=len(objects) - len(kept),
        counting=count_record(things, true_things, count) if counts else None,
    )


def combine(scenes: Sequence[SceneScores]) -> dict[str, Any]:
    """Scores over all scenes, JSON-ready; None where a score is not defined (no such object in truth or prediction).

    Overall: `miou` (mean over classes), `iou` (pixels of all classes pooled), `foreground_iou` (any class against
    nothing), `boundary_iou` (mean over classes), `pixel_accuracy`, `pq sq rq ap ap50` (means over classes),
    `f1_50 f1_75` (objects of all classes pooled), `f1_50_small/medium/large`, `count_error` (objects predicted minus
    true, all scenes), `count_mae` (its size, mean over scenes); where things are counted the keys of `counting_scores`;
    with box labels `box_f1_50 box_ap box_ap50`; `counts` of objects. `per_class`: name -> the same keys.
    """
    if not scenes:
        raise ValueError("expected at least one scene to combine, got none")
    names = scenes[0].names
    if any(scene.names != names for scene in scenes):
        raise ValueError("expected scenes scored with the same classes")
    overall: dict[str, Any] = {}
    per_class: dict[str, NDArray[np.float64]] = {}

    def take(scores: dict[str, Any], prefix: str = "") -> None:
        for key, value in scores.items():
            if key == "per_class":
                per_class.update({prefix + name: values for name, values in value.items()})
            else:
                overall[prefix + key] = value

    take(semantic_scores(reduce(add, [scene.pixels for scene in scenes])))
    edge = reduce(add, [scene.boundary for scene in scenes])
    with np.errstate(invalid="ignore"):
        take(_mean_and_classes("boundary_iou", edge[0] / edge[1]))
    take(panoptic_scores(reduce(add, [scene.panoptic for scene in scenes])))
    take(precision_scores(precision_table([scene.detections for scene in scenes])))
    found = reduce(add, [scene.f1_50 for scene in scenes])
    take(_f1_scores("f1_50", found))
    take(_f1_scores("f1_75", reduce(add, [scene.f1_75 for scene in scenes])))
    sizes = reduce(add, [scene.by_size for scene in scenes]).f1()
    take({f"f1_50_{name}": value for name, value in zip(SIZE_NAMES, sizes, strict=True)})
    errors = np.stack([scene.f1_50.fp - scene.f1_50.fn for scene in scenes])
    overall["count_error"], overall["count_mae"] = errors.sum(), np.abs(errors.sum(1)).mean()
    per_class["count_error"], per_class["count_mae"] = errors.sum(0), np.abs(errors).mean(0)
    boxes = [scene.box_f1_50 for scene in scenes if scene.box_f1_50 is not None]
    box_detections = [scene.box_detections for scene in scenes if scene.box_detections is not None]
    if boxes:
        take(_f1_scores("box_f1_50", reduce(add, boxes)))
        take(precision_scores(precision_table(box_detections)), "box_")
    counted = [scene.counting for scene in scenes if scene.counting is not None]
    if counted:
        take(counting_scores(counted))
    counts = {
        "scenes": len(scenes),
        "truth": int((found.tp + found.fn).sum()),
        "predicted": int((found.tp + found.fp).sum()),
        "ignored": sum(scene.ignored for scene in scenes),
    }
    table = {name: {key: _json(values[index]) for key, values in per_class.items()} for index, name in enumerate(names)}
    return {**{key: _json(value) for key, value in overall.items()}, "counts": counts, "per_class": table}


def _f1_scores(key: str, counts: MatchCounts) -> dict[str, Any]:
    return {key: mean(counts.total().f1()), "per_class": {key: counts.f1()}}


def _mean_and_classes(key: str, values: NDArray[np.float64]) -> dict[str, Any]:
    return {key: mean(values), "per_class": {key: values}}


def _class_map(objects: MaskSet) -> NDArray[np.uint8]:
    """(H, W) class ids, later objects on top."""
    ids = np.concatenate([[0], objects.labels + 1]).astype(np.uint8)
    return ids[objects.to_label_map()]


def _json(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), DIGITS)
