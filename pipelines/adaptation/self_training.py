"""Mean-teacher self-training on mask sets (Tarvainen & Valpola 2017; class-balanced: Zou et al. 2018).

A round: the teacher predicts whole target scenes, stitched; what its tiles agree on and scores best in its class is
taught, the rest of what it saw is unknown; a student learns that under strong augmentation and with objects pasted
from place to place; the average of the student's weights over the round is the next teacher.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from typing import Any

from adapters.errors import InputError
from maskformer.losses import build_criterion
from maskformer.masks import MaskSet
from pipelines.adaptation.evidence import Trust, agreement, pseudo_labels, teachable
from pipelines.adaptation.mixing import MixedCrops
from pipelines.adaptation.target import Effort, Subject, Target
from pipelines.annotations.base import Annotations
from pipelines.assembly import assemble
from pipelines.config import TrainOptions
from pipelines.datasets import CropDataset, Part
from pipelines.grid import Grid, Tile
from pipelines.predictor import Predictor, TileResult, settle
from pipelines.shards import predict_tiles
from pipelines.training import fit
from pipelines.tuning import LOWEST_SCORE

EMA = 0.98  # a round is some hundred steps: a longer memory would still hold the teacher it began with
STRONG = ("flip", "rotate", "scale", "colour", "noise")
STRONG_SLICES = ("rotate", "scale", "colour")
MOST_SIDE = 320  # of a crop of slices


def self_training(subject: Subject, target: Target, trust: Trust = Trust()) -> Subject:  # noqa: B008  (frozen)
    """The subject's network taught by itself on the target's scenes; the given network is not changed.

    Raises InputError where the teacher finds no object it may teach: nothing can be learned from nothing.
    """
    teacher, rows = subject.model, []
    learn = _learn_studies if subject.adapter.volume is not None else _learn_scenes
    for number in range(target.effort.rounds):
        student = deepcopy(teacher)
        rows.append(learn(student, replace(subject, model=teacher), target, trust, number))
        teacher = student
    return replace(subject, model=teacher, notes=subject.noted("self_training", {"rounds": rows}))


def taught_by(subject: Subject, source: Any, target: Target, trust: Trust) -> Annotations:
    """The lesson the subject's model reads out of one scene."""
    predictor = Predictor(
        deepcopy(subject.model),
        subject.adapter,
        settle(
            target.predict.model_copy(update={"score": LOWEST_SCORE, "task": "instance"}),
            subject.adapter,
            subject.thresholds,
        ),
    )
    options = predictor.options
    assert options.tile is not None and options.overlap is not None
    grid = Grid(source.shape, options.tile, options.overlap)
    seen: list[tuple[Tile, MaskSet]] = []

    def results() -> Any:
        for tile, result in predict_tiles(source, grid.tiles, predictor):
            seen.append((tile, result.objects))
            yield tile, TileResult(result.objects, result.probabilities, result.valid)

    scene = assemble(results(), grid, subject.adapter, options, lambda *band: None)
    taught = teachable(scene.objects, agreement(scene.objects, seen), len(subject.adapter.classes), trust)
    return pseudo_labels(scene.objects, taught)


def _lessons(subject: Subject, target: Target, trust: Trust) -> tuple[list[Part], dict[str, int]]:
    parts, counts = [], {"taught": 0, "doubtful": 0}
    with target.opened(subject.adapter) as sources:
        for scene, source in zip(target.scenes, sources, strict=True):
            lesson = taught_by(subject, source, target, trust)
            counts = {key: counts[key] + lesson.report[key] for key in counts}
            if len(lesson.objects):  # a scene in which nothing is sure would teach that nothing is there
                parts.append(Part(scene, lesson))
    return parts, counts


def _learn_scenes(student: Any, teacher: Subject, target: Target, trust: Trust, number: int) -> dict[str, int]:
    parts, counts = _lessons(teacher, target, trust)
    _check(counts, number)
    side = max(teacher.adapter.tile // 32, 1) * 32
    options = train_options(target.effort, side, target.effort.seed + number)
    crops = CropDataset(parts, teacher.adapter, side, STRONG, options.seed)
    with closing(crops), tempfile.TemporaryDirectory() as folder:
        fit(student, build_criterion(student.config), MixedCrops(crops, seed=options.seed), options, folder)
    return counts


def _learn_studies(student: Any, teacher: Subject, target: Target, trust: Trust, number: int) -> dict[str, int]:
    from pipelines.adaptation.studies import CACHE_MB, lessons
    from pipelines.volumes.dataset import SliceDataset
    from pipelines.volumes.prepared import Keeper

    with closing(Keeper(CACHE_MB << 20)) as keeper:
        cases, counts = lessons(teacher, target, keeper)
        _check(counts, number)
        sides = [side for case in cases for axis in case.axes for side in case.slices(axis).shape[1:]]
        side = max(min(max(sides), MOST_SIDE) // 32, 1) * 32
        options = train_options(target.effort, side, target.effort.seed + number)
        crops = SliceDataset(cases, teacher.adapter, side, STRONG_SLICES, options.seed)
        with tempfile.TemporaryDirectory() as folder:
            fit(student, build_criterion(student.config), crops, options, folder)
    return counts


def _check(counts: dict[str, int], number: int) -> None:
    if not counts["taught"]:
        raise InputError(
            f"self_training: in round {number + 1} the teacher finds no object it is sure of "
            f"({counts['doubtful']} doubtful ones); try input_statistics and norm_statistics first"
        )


def train_options(effort: Effort, side: int, seed: int) -> TrainOptions:
    """Of a student: some hundred steps on crops of `side`, a memory that fits them."""
    return TrainOptions(
        steps=effort.steps, batch=effort.batch, crop=side, seed=seed, workers=0, ema=EMA, clip=1.0,
        learning_rate=effort.learning_rate, backbone_multiplier=0.6,
    )  # fmt: skip
