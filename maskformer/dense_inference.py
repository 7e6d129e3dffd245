"""Objects out of per-pixel class probabilities: connected components. Numpy and scipy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maskformer.masks import MaskSet


def instances(probabilities: NDArray[np.float32], score: float, min_area: int, thing: Sequence[bool] | None) -> MaskSet:
    """Connected components (4-neighbours) of each class' argmax region, best first.

    probabilities (K, H, W), "nothing" is what is missing to 1. An object's score is its mean probability; objects under
    `score`, smaller than `min_area` pixels or of classes that are not `thing` are left out.
    """
    objects = _regions(probabilities, [True] * len(probabilities), skip=thing)
    objects = objects[(objects.scores >= score) & (objects.areas >= max(min_area, 1))]
    return objects[np.argsort(-objects.scores, kind="stable")]


def panoptic(probabilities: NDArray[np.float32], thing: Sequence[bool] | None) -> MaskSet:
    """The argmax map as segments: components of things, one segment of each stuff class; all things by default."""
    return _regions(probabilities, [True] * len(probabilities) if thing is None else list(thing))


def _regions(probabilities: NDArray[np.float32], split: Sequence[bool], skip: Sequence[bool] | None = None) -> MaskSet:
    shape = probabilities.shape[1:]
    nothing = 1 - probabilities.sum(0, keepdims=True)
    best = np.concatenate((probabilities, nothing)).argmax(0)
    segments = np.zeros(shape, np.int64)
    labels: list[int] = []
    scores: list[float] = []
    for label, probability in enumerate(probabilities):
        region = best == label
        if not region.any() or (skip is not None and not skip[label]):
            continue
        parts, count = ndimage.label(region) if split[label] else (region.astype(np.int64), 1)
        scores += list(ndimage.mean(probability, parts, np.arange(1, count + 1)))
        segments[region] = parts[region] + len(labels)
        labels += [label] * count
    if not labels:
        return MaskSet.empty(shape)
    objects = MaskSet.from_label_map(segments, {number + 1: label for number, label in enumerate(labels)})
    return objects.with_scores(np.asarray(scores, np.float32))
