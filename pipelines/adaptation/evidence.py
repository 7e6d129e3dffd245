"""Which of a teacher's objects are taught: those all tiles agree on, the surest of each class. The rest is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskformer.masks import MaskSet
from pipelines.annotations.base import Annotations, Region
from pipelines.grid import Tile

AGREES = 0.5  # IoU within a tile from which it counts as having seen the object
SHARE_SEEN = 0.2  # of the object; of less a tile cannot judge


@dataclass(frozen=True)
class Trust:
    """share: the best-scored part of each class that is taught; floor: no score below it is."""

    share: float = 0.6
    floor: float = 0.3


def agreement(objects: MaskSet, seen: Sequence[tuple[Tile, MaskSet]]) -> NDArray[np.float64]:
    """(N,) the worst IoU, over the tiles that saw enough of an object, with what the tile itself took for it.

    objects: stitched, on the scene's canvas; seen: each tile with its own objects, in its own coordinates.
    """
    worst = np.ones(len(objects))
    for tile, own in seen:
        inside, numbers = objects.crop_indexed(tile.window)
        if not len(inside):
            continue
        iou = inside.iou(own) * (inside.labels[:, None] == own.labels[None]) if len(own) else np.zeros((len(inside), 1))
        best = iou.max(1)
        judged = inside.areas >= SHARE_SEEN * objects.areas[numbers]
        worst[numbers[judged]] = np.minimum(worst[numbers[judged]], best[judged])
    return worst


def class_thresholds(objects: MaskSet, classes: int, trust: Trust) -> NDArray[np.float64]:
    """(K,) a score for each class that `trust.share` of its objects reach: rare and timid classes are taught too."""
    limits = np.full(classes, trust.floor)
    for label in range(classes):
        scores = objects.scores[objects.labels == label]
        if len(scores):
            limits[label] = max(trust.floor, float(np.quantile(scores, 1 - trust.share)))
    return limits


def teachable(objects: MaskSet, agreed: NDArray[np.float64], classes: int, trust: Trust) -> NDArray[np.bool_]:
    """(N,) whether an object is taught."""
    limits = class_thresholds(objects, classes, trust)
    # float32 scores against a float64 quantile: the object that set the limit must reach it
    sure = objects.scores.astype(np.float64) >= limits[objects.labels] - 1e-6
    return sure & (agreed >= AGREES)


def pseudo_labels(objects: MaskSet, taught: NDArray[np.bool_]) -> Annotations:
    """Taught objects as labels; the pixels of the others, where no taught one lies, are unknown, not background."""
    known, doubtful = objects[taught], objects[~taught]
    unknown = np.zeros(objects.shape, bool)
    if len(doubtful):
        unknown |= doubtful.to_label_map() > 0
    if len(known) and len(doubtful):
        unknown &= known.to_label_map() == 0
    return Annotations(known, Region.of(unknown), {"taught": int(taught.sum()), "doubtful": int((~taught).sum())})
