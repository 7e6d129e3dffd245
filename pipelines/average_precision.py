"""Average precision as COCO defines it (Lin et al. 2014), equal to pycocotools but for its cut at 100 detections.

A scene of 10 000 houses is one image here. Per class and IoU threshold .50:.05:.95, detections in order of score take
the best truth left; precision, made falling, is read at 101 recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskformer.masks import MaskSet
from pipelines.metrics import Kind, Pairs, mean, pairs_of, without_ignored

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
ALMOST_ONE = 1 - 1e-10  # COCO's largest threshold


@dataclass(frozen=True)
class Detections:
    """What one scene adds to AP.

    labels, scores: (D,), by falling score, equal scores in the order of the set; hit: (10, D) bool, whether the
    detection took a truth at each threshold; truths: (K,) objects to find.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    truths: NDArray[np.int64]


def detections(prediction: MaskSet, truth: MaskSet, num_classes: int, kind: Kind = "mask") -> Detections:
    """Assign the predictions of one scene to its truth."""
    order = np.argsort(-prediction.scores.astype(np.float64), kind="stable")
    ranked = prediction[order]
    pairs = pairs_of(ranked, truth, kind).above(THRESHOLDS[0])
    hit = np.array([_take(pairs, len(ranked), min(t, ALMOST_ONE)) for t in THRESHOLDS])
    truths = np.bincount(truth.labels, minlength=num_classes)
    return Detections(ranked.labels, ranked.scores.astype(np.float64), hit, truths)


def _take(pairs: Pairs, count: int, threshold: float) -> NDArray[np.bool_]:
    """(D,) whether each detection, in order, finds a truth of IoU >= threshold that is left; of equal ones the last."""
    hit = np.zeros(count, bool)
    good = pairs.above(threshold)
    taken: set[int] = set()
    best: tuple[float, int] = (0.0, -1)
    rows = good.prediction.tolist()
    for at, (p, t, iou) in enumerate(zip(rows, good.truth.tolist(), good.iou.tolist(), strict=True)):
        if t not in taken and iou >= best[0]:
            best = (iou, t)
        if at + 1 == len(rows) or rows[at + 1] != p:
            if best[1] >= 0:
                taken.add(best[1])
                hit[p] = True
            best = (0.0, -1)
    return hit


def precision_table(scenes: Sequence[Detections]) -> NDArray[np.float64]:
    """(K, 10) average precision of each class and threshold, pooled over scenes; NaN for a class without truth."""
    truths = np.sum([one.truths for one in scenes], axis=0)
    labels = np.concatenate([one.labels for one in scenes])
    scores = np.concatenate([one.scores for one in scenes])
    hits = np.concatenate([one.hit for one in scenes], axis=1)
    table = np.full((len(truths), len(THRESHOLDS)), np.nan)
    for label in np.flatnonzero(truths):
        chosen = np.flatnonzero(labels == label)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        table[label] = [_area(hit, truths[label]) for hit in hits[:, chosen]]
    return table


def _area(hit: NDArray[np.bool_], truths: int) -> float:
    """Mean precision at 101 recalls of detections (D,) in order of score."""
    if not len(hit):
        return 0.0
    found = np.cumsum(hit)
    recall = found / truths
    precision = found / np.arange(1, len(hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].mean())


def average_precision(
    pairs: Sequence[tuple[MaskSet, MaskSet]],
    num_classes: int,
    ignores: Sequence[NDArray[np.bool_] | None] | None = None,
    kind: Kind = "mask",
) -> dict[str, Any]:
    """`ap` and `ap50` over (prediction, truth) of several scenes: means over the classes that have truth; and the same
    `per_class`, arrays (K,). `ignores`: one mask a scene; predictions mostly inside count for nothing.
    """
    masks = ignores if ignores is not None else [None] * len(pairs)
    scenes = [
        detections(without_ignored(prediction, ignore), truth, num_classes, kind)
        for (prediction, truth), ignore in zip(pairs, masks, strict=True)
    ]
    return precision_scores(precision_table(scenes))


def precision_scores(table: NDArray[np.float64]) -> dict[str, Any]:
    per_class = {"ap": table.mean(axis=1), "ap50": table[:, 0]}
    return {**{name: mean(values) for name, values in per_class.items()}, "per_class": per_class}
