"""Thresholds equal those of a brute-force search."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Annotation
from maskformer.masks import MaskSet
from pipelines.metrics import f1
from pipelines.tuning import BINS, SCORES, ThresholdCurve, best_score, truth_map


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_the_curve_finds_the_best_threshold(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    # Probabilities in the middle of their bins: the histogram then loses nothing.
    probabilities = (random.integers(0, BINS, (classes, 12, 12)) + 0.5) / BINS
    truth = random.integers(0, classes + 1, (12, 12)).astype(np.uint8)
    counted = random.random((12, 12)) < 0.8
    curve = ThresholdCurve(classes)
    curve.add(probabilities[:, :7], truth[:7], counted[:7])
    curve.add(probabilities[:, 7:], truth[7:], counted[7:])

    def mean_iou(threshold: float) -> float:
        ids = np.where(probabilities.max(0) >= threshold, probabilities.argmax(0) + 1, 0)
        values = []
        for index in range(1, classes + 1):
            p, t = (ids == index) & counted, (truth == index) & counted
            if t.any():
                values.append((p & t).sum() / (p | t).sum())
        return float(np.mean(values)) if values else 0.0

    best = max(mean_iou(i / BINS) for i in range(BINS))
    assert mean_iou(curve.best()) == best or not (counted & (truth > 0)).any()


def test_best_score_keeps_what_is_right_and_drops_what_is_not() -> None:
    masks = np.zeros((3, 8, 24), bool)
    for index in range(3):
        masks[index, 1:6, 8 * index : 8 * index + 5] = True
    truth = MaskSet.from_dense(masks[:2], np.zeros(2, np.int64))
    found = MaskSet.from_dense(masks, np.zeros(3, np.int64), np.array([0.9, 0.62, 0.31], np.float32))
    limit = best_score([(found, truth)], f1)
    assert 0.31 < limit <= 0.62
    assert limit in np.round(SCORES, 2)


def test_small_objects_lie_on_top_and_ignored_pixels_do_not_count() -> None:
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 2:4, 2:4] = True
    masks[1] = True
    ignore = np.zeros((6, 6), bool)
    ignore[0] = True
    ids, counted = truth_map(Annotation(MaskSet.from_dense(masks, np.array([1, 0])), ignore))
    assert (ids[2:4, 2:4] == 2).all() and (np.delete(ids.ravel(), [14, 15, 20, 21]) == 1).all()
    assert (counted == ~ignore).all()
