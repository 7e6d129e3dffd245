"""Thresholds equal those of a brute-force search."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Annotation, DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from maskformer.masks import MaskSet
from pipelines.assembly import predict_in_memory
from pipelines.config import PredictOptions
from pipelines.predictor import TileResult
from pipelines.tuning import BINS, SCORES, ThresholdCurve, limited, middle_of_best, predict_parts, truth_map


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


class Scripted:
    """A predictor whose two tiles, told apart by a pixel, answer with `answers`, cut at its score as a real one's."""

    batch = 1

    def __init__(self, answers: list[MaskSet], options: PredictOptions) -> None:
        channels, classes = ChannelSet((Channel("value", (1,)),)), ClassSet((Class("a"),))
        self.adapter = DomainAdapter("d", channels, classes, overlap="free", tile=16, tile_overlap=4)
        self.answers, self.options = answers, options

    def __call__(self, arrays: list[tuple[np.ndarray, np.ndarray]]) -> list[TileResult]:
        found = [self.answers[0 if array[0, 0, 0] == 1 else 1] for array, _ in arrays]
        assert self.options.score is not None
        return [
            TileResult(objects[objects.scores >= self.options.score], np.zeros((1, 16, 16), np.float16), valid)
            for objects, (_, valid) in zip(found, arrays, strict=True)
        ]


class Scene:
    """16 x 28, two tiles; its first column is 1, the rest 2."""

    shape = (16, 28)

    def read(self, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        values = np.full((1, *self.shape), 2, np.float32)
        values[..., 0] = 1
        return values[(slice(None), *window)], np.ones([s.stop - s.start for s in window], bool)


def test_the_limit_is_tried_as_predict_applies_it() -> None:
    """An object over the seam, 0.9 in one tile and 0.4 in the other: from 0.45 on `predict` sees half of it."""
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 4:8, 8:], masks[1, 4:8, :6] = True, True
    label = np.zeros(1, np.int64)
    answers = [MaskSet.from_dense(masks[n : n + 1], label, np.array([s], np.float32)) for n, s in enumerate((0.9, 0.4))]
    options = PredictOptions(task="instance", tile=16, overlap=4, score=0.05, min_area=1)
    everything: Any = Scripted(answers, options)
    bands: list[tuple] = []
    parts = predict_parts(Scene(), everything, lambda *band: bands.append(band))
    assert len(parts) == 2 and sum(len(band[2]) for band in bands) == 16
    areas = []
    for score in map(float, SCORES):
        cut: Any = Scripted(answers, options.model_copy(update={"score": round(score, 2)}))
        wanted, _ = predict_in_memory(Scene(), cut, {})
        found = limited(Scene.shape, parts, everything, score)
        assert found == wanted.objects, score
        areas.append(int(found.areas.sum()))
    assert areas[7] == 4 * 10 and areas[8] == 4 * 8 and areas[-1] == 0, "whole, its better half, nothing"


def test_the_middle_of_the_best_is_chosen() -> None:
    means = [0.0, 0.5, 0.7, 0.7, 0.7, *[0.1] * (len(SCORES) - 5)]
    assert middle_of_best(means) == 0.2


def test_small_objects_lie_on_top_and_ignored_pixels_do_not_count() -> None:
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 2:4, 2:4] = True
    masks[1] = True
    ignore = np.zeros((6, 6), bool)
    ignore[0] = True
    ids, counted = truth_map(Annotation(MaskSet.from_dense(masks, np.array([1, 0])), ignore))
    assert (ids[2:4, 2:4] == 2).all() and (np.delete(ids.ravel(), [14, 15, 20, 21]) == 1).all()
    assert (counted == ~ignore).all()
