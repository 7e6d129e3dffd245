"""Scores of a prediction against the truth: panoptic quality, F1, and what a semantic map gets right.

Objects may overlap, and there may be any number of them: pairs of objects that share a pixel are listed, never put in a
table of N x M. Everything is counted first and divided last, so that scenes add up: `counts_a + counts_b` scores two
scenes as one. Average precision has its own file, `average_precision`. A score that is not defined (nothing there to
find and nothing found) is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from maskformer.masks import MaskSet

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = Literal["mask", "box"]

SIZES = (32**2, 96**2)  # px: COCO's bounds of small, medium and large objects
SIZE_NAMES = ("small", "medium", "large")
UNSEEN = 255  # a pixel of a semantic map that is not scored


# ---------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pairs:
    """Objects of one class that meet: prediction (P,), truth (P,) their numbers, iou (P,) in (0, 1]; sorted."""

    prediction: Ints
    truth: Ints
    iou: Floats

    def above(self, iou: float, strictly: bool = False) -> Pairs:
        kept = self.iou > iou if strictly else self.iou >= iou
        return Pairs(self.prediction[kept], self.truth[kept], self.iou[kept])


def pairs_of(prediction: MaskSet, truth: MaskSet, kind: Kind = "mask", hidden: Ints | None = None) -> Pairs:
    """All pairs of one class whose masks (or bounding boxes) share a pixel.

    hidden: (N,) pixels of each predicted mask that belong to no union, because nothing is known about them.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected two sets on one canvas, got {prediction.shape} and {truth.shape}")
    if kind == "box":
        i, j, shared, size, other = _box_overlaps(prediction, truth)
    else:
        i, j, shared = prediction.overlaps(truth)
        size, other = prediction.areas if hidden is None else prediction.areas - hidden, truth.areas
    same = prediction.labels[i] == truth.labels[j]
    i, j, shared = i[same], j[same], shared[same]
    return Pairs(i, j, shared / (size[i] + other[j] - shared))


def without_ignored(prediction: MaskSet, ignore: NDArray[np.bool_] | None) -> MaskSet:
    """The predictions of which at most half lies in `ignore` (canvas shape, True = says nothing).

    The others are neither right nor wrong.
    """
    if ignore is None:
        return prediction
    return prediction[2 * _inside(prediction, ignore) <= prediction.areas]


def _inside(objects: MaskSet, ground: NDArray[np.bool_] | None) -> Ints:
    """(N,) pixels of each object in `ground` (canvas shape)."""
    inside = np.zeros(len(objects), np.int64)
    if ground is not None and ground.any() and len(objects):
        i, _, pixels = objects.overlaps(MaskSet.from_dense(ground[None], [0]))
        inside[i] = pixels
    return inside


def _box_overlaps(a: MaskSet, b: MaskSet) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    if len(a.shape) != 2:
        raise ValueError(f"expected boxes on a picture, got a canvas {a.shape}")
    i, j = shapely.STRtree(_boxes(b)).query(_boxes(a), predicate="intersects")
    low, high = np.maximum(a.boxes[i, :2], b.boxes[j, :2]), np.minimum(a.boxes[i, 2:], b.boxes[j, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    kept = np.flatnonzero(shared)
    kept = kept[np.lexsort((j[kept], i[kept]))]
    sizes = [(one.boxes[:, 2:] - one.boxes[:, :2]).prod(axis=1) for one in (a, b)]
    return i[kept], j[kept], shared[kept], sizes[0], sizes[1]


def _boxes(objects: MaskSet) -> NDArray[np.object_]:
    top, left, bottom, right = objects.boxes.T
    return shapely.box(left, top, right, bottom)


def match(pairs: Pairs, weights: Floats) -> Ints:
    """Numbers of the pairs of a one-to-one matching of the largest total weight (weights (P,) above 0).

    The Hungarian method on every group of objects that hang together through pairs; most are a single pair.
    """
    if not len(pairs.iou):
        return np.zeros(0, np.int64)
    rows, columns = int(pairs.prediction.max()) + 1, int(pairs.truth.max()) + 1
    links = coo_array(
        (np.ones(len(pairs.iou), np.int8), (pairs.prediction, rows + pairs.truth)),
        shape=(rows + columns, rows + columns),
    )
    group = connected_components(links, directed=False)[1][pairs.prediction]
    order = np.argsort(group, kind="stable")
    _, first, count = np.unique(group[order], return_index=True, return_counts=True)
    chosen = [order[first[count == 1]]]
    for begin, size in zip(first[count > 1], count[count > 1], strict=True):
        members = order[begin : begin + size]
        p, row = np.unique(pairs.prediction[members], return_inverse=True)
        t, column = np.unique(pairs.truth[members], return_inverse=True)
        table = np.zeros((len(p), len(t)))
        number = np.full((len(p), len(t)), -1)
        table[row, column], number[row, column] = weights[members], members
        found = number[linear_sum_assignment(table, maximize=True)]
        chosen.append(found[found >= 0])
    return np.sort(np.concatenate(chosen))


# ---------------------------------------------------------------------- objects


@dataclass(frozen=True)
class MatchCounts:
    """Per class (K,): matched pairs, predictions and truths left over, and the sum of the pairs' IoU."""

    tp: Ints
    fp: Ints
    fn: Ints
    iou: Floats

    def __add__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou)

    def f1(self) -> Floats:
        """(K,) 2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def sq(self) -> Floats:
        """(K,) mean IoU of the pairs; 0 where there are objects but no pair."""
        return np.where(self.tp > 0, self.iou / np.maximum(self.tp, 1), self.f1())  # without a pair f1 is 0 or NaN

    def pq(self) -> Floats:
        """(K,) sum of IoU / (TP + FP / 2 + FN / 2), which is sq * f1."""
        return _ratio(2 * self.iou, 2 * self.tp + self.fp + self.fn)

    def total(self) -> MatchCounts:
        """All classes as one."""
        tp, fp, fn = (np.atleast_1d(one.sum()) for one in (self.tp, self.fp, self.fn))
        return MatchCounts(tp, fp, fn, np.atleast_1d(self.iou.sum()))


def panoptic_counts(
    prediction: MaskSet,
    truth: MaskSet,
    num_classes: int,
    void: NDArray[np.bool_] | None = None,
    crowds: MaskSet | None = None,
) -> MatchCounts:
    """Matches of panoptic quality (Kirillov et al. 2019) between sets that may overlap.

    There IoU > 0.5 makes matches unique. With overlaps it does not: of all one-to-one matchings of pairs with
    IoU > 0.5 in a class the one with the largest sum of IoU counts, which is the one with the largest quality.
    void: pixels nothing is known about; they are in no union. crowds: regions of several objects nobody told apart. A
    prediction without a match that lies mostly in void and crowds of its class is neither right nor wrong.
    """
    hidden = _inside(prediction, void)
    pairs = pairs_of(prediction, truth, hidden=hidden).above(0.5, strictly=True)
    chosen = match(pairs, pairs.iou)
    silent = hidden.copy()
    if crowds is not None:
        i, j, pixels = prediction.overlaps(crowds)
        same = prediction.labels[i] == crowds.labels[j]
        np.add.at(silent, i[same], pixels[same])
    asked = 2 * silent <= prediction.areas
    asked[pairs.prediction[chosen]] = True
    counts = _counted(pairs, chosen, prediction, truth, num_classes)
    spared = np.bincount(prediction.labels[~asked], minlength=num_classes)
    return MatchCounts(counts.tp, counts.fp - spared, counts.fn, counts.iou)


def f1_counts(
    prediction: MaskSet, truth: MaskSet, num_classes: int, iou: float = 0.5, kind: Kind = "mask"
) -> MatchCounts:
    """Matches at IoU >= `iou` of masks or boxes: as many as can be, and among those the best fitting."""
    pairs = pairs_of(prediction, truth, kind).above(iou)
    weights = 1 + pairs.iou / (1 + len(pairs.iou))  # all fractions together are less than one more match
    return _counted(pairs, match(pairs, weights), prediction, truth, num_classes)


def f1_counts_by_size(prediction: MaskSet, truth: MaskSet, iou: float = 0.5) -> MatchCounts:
    """Matches as in `f1_counts`, counted by size instead of class: (small, medium, large), see SIZES.

    A pair has its truth's size, what is left over its own.
    """
    pairs = pairs_of(prediction, truth).above(iou)
    chosen = match(pairs, 1 + pairs.iou / (1 + len(pairs.iou)))
    own, wanted = np.digitize(prediction.areas, SIZES), np.digitize(truth.areas, SIZES)
    size = wanted[pairs.truth[chosen]]
    own[pairs.prediction[chosen]] = size
    bins = len(SIZES) + 1
    tp = np.bincount(size, minlength=bins)
    return MatchCounts(
        tp,
        np.bincount(own, minlength=bins) - tp,
        np.bincount(wanted, minlength=bins) - tp,
        np.bincount(size, pairs.iou[chosen], bins).astype(np.float64),
    )


def panoptic_quality(
    prediction: MaskSet, truth: MaskSet, num_classes: int, ignore: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """`pq`, `sq`, `rq`: means over the classes that occur; and the same `per_class`, arrays (K,)."""
    return panoptic_scores(panoptic_counts(prediction, truth, num_classes, ignore))


def panoptic_scores(counts: MatchCounts) -> dict[str, Any]:
    per_class = {"pq": counts.pq(), "sq": counts.sq(), "rq": counts.f1()}
    return {**{name: mean(values) for name, values in per_class.items()}, "per_class": per_class}


def f1(
    prediction: MaskSet,
    truth: MaskSet,
    iou: float = 0.5,
    ignore: NDArray[np.bool_] | None = None,
    kind: Kind = "mask",
) -> float:
    """F1 of the objects of all classes; a match is of one class and of mask IoU >= `iou`."""
    classes = 1 + max(int(one.labels.max(initial=-1)) for one in (prediction, truth))
    counts = f1_counts(without_ignored(prediction, ignore), truth, classes, iou, kind)
    return float(counts.total().f1()[0])


def box_f1(prediction: MaskSet, truth: MaskSet, iou: float = 0.5, ignore: NDArray[np.bool_] | None = None) -> float:
    """F1 on the IoU of bounding boxes, for truth that was drawn as boxes."""
    return f1(prediction, truth, iou, ignore, "box")


def _counted(pairs: Pairs, chosen: Ints, prediction: MaskSet, truth: MaskSet, num_classes: int) -> MatchCounts:
    label = truth.labels[pairs.truth[chosen]]
    tp = np.bincount(label, minlength=num_classes)
    return MatchCounts(
        tp,
        np.bincount(prediction.labels, minlength=num_classes) - tp,
        np.bincount(truth.labels, minlength=num_classes) - tp,
        np.bincount(label, pairs.iou[chosen], num_classes).astype(np.float64),
    )


# ---------------------------------------------------------------------- pixels


def confusion(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    num_classes: int,
    ignore: NDArray[np.bool_] | None = None,
) -> Ints:
    """Pixels by (truth, prediction), (K + 1, K + 1), of maps with 0 = nothing, 1..K the classes.

    Pixels that are 255 in either map or True in `ignore` are left out. Windows of a scene may be counted apart and
    added up.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected two maps of one shape, got {prediction.shape} and {truth.shape}")
    seen = (prediction != UNSEEN) & (truth != UNSEEN)
    if ignore is not None:
        seen &= ~ignore
    side = num_classes + 1
    p, t = prediction[seen].astype(np.int64), truth[seen].astype(np.int64)
    if len(p) and (min(p.min(), t.min()) < 0 or max(p.max(), t.max()) > num_classes):
        raise ValueError(f"expected values 0..{num_classes} or {UNSEEN}, got up to {max(p.max(), t.max())}")
    return np.bincount(t * side + p, minlength=side * side).reshape(side, side)


def semantic_scores(table: Ints) -> dict[str, Any]:
    """Scores of a confusion table (K + 1, K + 1).

    `miou`: mean over the classes that occur, "nothing" not among them; `iou`: shared over united pixels, both summed
    over the classes; `foreground_iou`: of any class against nothing; `pixel_accuracy`; `per_class`: {"iou": (K,)}.
    """
    right = np.diag(table)
    united = table.sum(axis=0) + table.sum(axis=1) - right
    per_class = _ratio(right, united)[1:]
    return {
        "miou": mean(per_class),
        "iou": float(_ratio(right[1:].sum(), united[1:].sum())),
        "foreground_iou": float(_ratio(table[1:, 1:].sum(), table.sum() - table[0, 0])),
        "pixel_accuracy": float(_ratio(right.sum(), table.sum())),
        "per_class": {"iou": per_class},
    }


def foreground_iou(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """IoU of two masks; NaN where both are empty."""
    return float(_ratio(np.count_nonzero(prediction & truth), np.count_nonzero(prediction | truth)))


def mean(values: Floats) -> float:
    """Mean of what is defined; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _ratio(above: Any, below: Any) -> Floats:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below > 0)
