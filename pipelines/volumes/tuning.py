"""Thresholds of volumes, chosen on the validation patients and carried in the bundle.

`semantic`: a voxel is "nothing" where no class reaches it; the value with the best mean IoU over the slices.
`score`: objects below are left out; the value with the best lesion F1 of the linked objects. Where the classes are all
stuff there are none, and the default stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from adapters.base import DomainAdapter
from maskformer.masks import MaskSet
from pipelines.assembly import DEFAULT_SEMANTIC
from pipelines.config import PredictOptions
from pipelines.predictor import DEFAULT_SCORE
from pipelines.tuning import LOWEST_SCORE, SCORES, ThresholdCurve, middle_of_best
from pipelines.volumes.linking import link_slices
from pipelines.volumes.metrics import lesion_f1
from pipelines.volumes.options import slices_at_once
from pipelines.volumes.prepared import PreparedCase, pictures
from pipelines.volumes.slice_predictor import SlicePredictor, Wanted
from pipelines.volumes.slicing import turn_objects


def tune_volumes(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    adapter: DomainAdapter,
    options: PredictOptions,
    on_case: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """`semantic` and `score` over validation cases, on the model's grid; without a case the defaults of 0.5 stand.

    options: settled. Scores are tuned for objects of slices as they are linked; a score limit before and after it.
    """
    chosen = {"semantic": DEFAULT_SEMANTIC, "score": DEFAULT_SCORE}
    if not cases:
        return chosen
    predictor = SlicePredictor([network], options)
    things = adapter.classes.is_thing
    objects = any(things) and options.task != "semantic"
    wanted = Wanted(things, adapter.overlap == "layered", LOWEST_SCORE, objects)
    curve = ThresholdCurve(len(adapter.classes))
    quality: list[list[float]] = [[] for _ in SCORES]
    for number, case in enumerate(cases, start=1):
        axis = case.axes[0]
        found = _predict(predictor, wanted, case, curve, slices_at_once(options))
        if objects:
            truth = case.objects
            truth = truth[np.array(things, bool)[truth.labels]]
            for limit, values in zip(SCORES, quality, strict=True):
                shape = case.slices(axis).shape
                linked = link_slices(shape, ((p, one[one.scores >= limit]) for p, one in enumerate(found)))
                values.append(lesion_f1(turn_objects(linked[linked.scores >= limit], axis), truth))
        if on_case:
            on_case(number, len(cases))
    chosen["semantic"] = curve.best()
    known = np.array(quality)
    if objects and np.isfinite(known).any():
        chosen["score"] = middle_of_best(np.nanmean(known, axis=1).tolist())
    return chosen


def _predict(
    predictor: SlicePredictor, wanted: Wanted, case: PreparedCase, curve: ThresholdCurve, batch: int
) -> list[MaskSet]:
    """The objects of every slice; the class probabilities go into the curve."""
    found: list[MaskSet] = []
    axis = case.axes[0]
    for group in pictures(case, axis, batch):
        for (_, valid), result in zip(group, predictor(group, wanted), strict=True):
            position = len(found)
            counted = valid & ~case.ignored(axis, position)
            probabilities = result.probabilities.dense(len(case.adapter.classes))
            curve.add(probabilities, class_ids(case, axis, position), counted)
            found.append(result.found.objects)
    return found


def class_ids(case: PreparedCase, axis: int, position: int) -> np.ndarray:
    """(h, w) class k + 1 of a labelled slice, 0 where there is none; of several objects the one with fewest voxels."""
    maps = case.labels_of(axis, position)
    areas = np.bincount(maps.ravel(), minlength=len(case.labels) + 1)
    areas[0] = np.iinfo(areas.dtype).max  # nothing loses against anything
    smallest = np.take_along_axis(maps, areas[maps].argmin(axis=0)[None], axis=0)[0]
    ids: np.ndarray = np.concatenate([[0], case.labels + 1])[smallest]
    return ids
