"""The strategies' steps for volumes: slices to look at, statistics of studies, lessons on whole volumes, scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adapters.base import DomainAdapter
from adapters.volume import VolumeRules
from pipelines.adaptation.norm_statistics import batch_norms
from pipelines.adaptation.target import Effort, Subject, Target, padded
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.prediction import VolumeModel, VolumePredictor
from pipelines.volumes.prepared import Keeper, PreparedCase, make_ready
from pipelines.volumes.resampling import plan_resampling
from pipelines.volumes.source import VolumeSource, open_volume

if TYPE_CHECKING:
    from pipelines.adaptation.verdict import Measured
    from pipelines.config import RunConfig

CLEARLY = 0.95  # of the features' distance without it, from which flattening is taken
CACHE_MB = 2048
FAT_HU = -50  # fat and air lie below in every CT; intensities of MR are no negative numbers, ringing apart
SLAB = 16  # slices read at once
ZOOMS = (0.9, 1.1)  # of a voxel's length, in views that ought to tell the same
THICK = 1.5  # times the finest spacing: the axis across thick slices


def opened(study: str, adapter: DomainAdapter) -> VolumeSource:
    """A study as the adapter asks for it."""
    rules = adapter.volume or VolumeRules()
    return open_volume(study, adapter.channels, rule=rules.series)


def slices(studies: Sequence[str], adapter: DomainAdapter, effort: Effort) -> list[Tensor]:
    """About `effort.crops` pictures (C (2 n + 1), h, w), as many of each study; sides are multiples of 32."""
    each = max(1, round(effort.crops / len(studies)))
    found = []
    for study in studies:
        with opened(study, adapter) as source, closing(Keeper(CACHE_MB << 20)) as keeper:
            view = _unlabelled(source, adapter, keeper)
            pictures = view.slices(view.axes[0])
            # not the outermost ones, which are mostly air
            for position in np.linspace(0, len(pictures) - 1, each + 2)[1:-1].round().astype(int):
                found.append(padded(torch.from_numpy(pictures[int(position)][0])))
    return found


def study_statistics(subject: Subject, target: Target) -> Subject:
    """Each study by its own statistics, and flattened where that brings its features nearer to the trained ones.

    Fixed windows (CT) are physics and stay, as long as the studies are in Hounsfield units: a model of CT that meets MR
    is brought to each volume's own statistics, as MR by a data set's statistics is.
    """
    adapter, rules = subject.adapter, subject.adapter.volume or VolumeRules()
    windows = any(channel.clip is not None and rules.intensity == "dataset" for channel in adapter.channels)
    if windows and all(_hounsfield(study, adapter) for study in target.scenes):
        return replace(subject, notes=subject.noted("input_statistics", {"left_out": "fixed windows are physics"}))
    by_volume = replace(adapter, volume=replace(rules, intensity="volume"))
    flat = replace(adapter, volume=replace(rules, intensity="volume", flatten=True))
    distances = {"volume": _distance(subject, target, by_volume), "flattened": _distance(subject, target, flat)}
    chosen = flat if distances["flattened"] < CLEARLY * distances["volume"] else by_volume
    note = {"flatten": chosen is flat, "distances": {name: round(value, 4) for name, value in distances.items()}}
    return replace(subject, adapter=chosen, notes=subject.noted("input_statistics", note))


def _hounsfield(study: str, adapter: DomainAdapter) -> bool:
    """Whether a study is a CT: by its modality where the file tells it, else by its lowest value."""
    with opened(study, adapter) as source:
        if source.modality is not None:
            return source.modality == "CT"
        length = source.shape[-1]
        slabs = (slice(start, min(start + SLAB, length)) for start in range(0, length, SLAB))
        return any(source.read((slice(None), slice(None), slab))[0].min() < FAT_HU for slab in slabs)


def lessons(subject: Subject, target: Target, keeper: Keeper) -> tuple[list[PreparedCase], dict[str, int]]:
    """What the model reads out of each study, to be learned: where it says the same of a finer and a coarser picture.

    Voxels on which they disagree are unknown. taught, doubtful: counts of voxels. Not mirrored: a model that has to
    tell left from right, or front from back, knows no mirrors.
    """
    from pipelines.volumes.labels import VolumeLabels

    cases, counts = [], {"taught": 0, "doubtful": 0}
    module, options = deepcopy(subject.model), VolumeOptions(task=subject.task)
    for number, study in enumerate(target.scenes):
        with opened(study, subject.adapter) as source:
            adapters = (subject.adapter, *(_zoomed(subject.adapter, source, factor) for factor in ZOOMS))
            models = (VolumeModel(module, one, subject.thresholds, task=subject.task) for one in adapters)
            usual, *views = (VolumePredictor(model, options)(source) for model in models)
            doubtful = np.logical_or.reduce([view.labels != usual.labels for view in views])
            counts["taught"] += int((usual.labels > 0)[~doubtful].sum())
            counts["doubtful"] += int(doubtful.sum())
            known = VolumeLabels(usual.objects, subject.adapter.classes.names, doubtful)
            cases.append(make_ready(source, known, subject.adapter, keeper, f"study {number}"))
    return cases, counts


def _zoomed(adapter: DomainAdapter, source: VolumeSource, factor: float) -> DomainAdapter:
    """The adapter with voxels `factor` times as long; axes of thick slices stay as they are."""
    rules = adapter.volume or VolumeRules()
    spacing = plan_resampling(source.geometry, rules.orientation, adapter.spacing).target.spacing
    fine = [length < THICK * min(spacing) for length in spacing]
    first, second, third = (s * factor if is_fine else s for s, is_fine in zip(spacing, fine, strict=True))
    return replace(adapter, spacing=(first, second, third))


def measured_studies(subject: Subject, config: RunConfig) -> Measured:
    """Dice of the config's held-out patients (of all, where its split names none), a patient a unit."""
    from pipelines.adaptation.verdict import Measured, Score
    from pipelines.volumes.cases import gather_cases, split_cases
    from pipelines.volumes.evaluation import CaseScores, hashed, score_case, summary
    from pipelines.volumes.prepared import labels_of, open_case

    adapter = subject.adapter
    config = config.model_copy(update={"adapter": adapter.to_dict()})
    cases = gather_cases(config)
    asked = config.split.folds is None or config.split.fold is not None
    held = (split_cases(cases, config.split, config.split.fold).test if asked else ()) or tuple(cases)
    model = VolumeModel(deepcopy(subject.model), adapter, subject.thresholds, task=subject.task)
    predictor = VolumePredictor(model, VolumeOptions(task=config.predict.task or subject.task))
    rows = []
    for one in held:
        with open_case(one, adapter) as source:
            truth, result = labels_of(one, source, adapter), predictor(source)
            table = score_case(result, truth, adapter, source.geometry.spacing, config.scoring.tolerance_mm)
            rows.append(CaseScores(source.digest()[:12], hashed(one.case.patient), table))
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row.patient, []).append(float(np.nanmean([one["dice"] for one in row.scores.values()])))
    means = np.array([[np.mean(values)] for values in dice.values()])
    known = np.isfinite(means)
    return Measured(summary(rows, config.scoring), {"dice": Score(np.where(known, means, 0.0), known.astype(float))})


def _unlabelled(source: VolumeSource, adapter: DomainAdapter, keeper: Keeper) -> PreparedCase:
    """A study on the model's grid, with nothing known about it."""
    from maskformer.masks import MaskSet
    from pipelines.volumes.labels import VolumeLabels

    return make_ready(
        source, VolumeLabels(MaskSet.empty(source.shape), adapter.classes.names), adapter, keeper, "nobody"
    )


def _distance(subject: Subject, target: Target, adapter: DomainAdapter) -> float:
    """How far the features of the target's slices are from those of training; of the inputs without batch norms."""
    from pipelines.drift.features import moved

    model = deepcopy(subject.model)
    found = moved(model, adapter, target.crops(adapter))
    return found.distance if batch_norms(model) and subject.norms_known else found.outer
