"""What the benchmarks of adapted studies share: the strategies, the upper bound, scores by patient."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import InputError
from pipelines.adaptation.adapt import Request, apply, subject_of
from pipelines.adaptation.target import Effort, Subject, Target
from pipelines.adaptation.verdict import Measured, Score, compare, measured
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import RunConfig
from pipelines.experiments import train
from pipelines.volumes.cases import gather_cases, split_cases

EFFORT = Effort(crops=64, steps=60)
UPPER_STEPS = 150
STATISTICS = ("input_statistics", "norm_statistics")
TRIALS: dict[str, tuple[str, ...]] = {
    "input statistics": ("input_statistics",),
    "norm statistics": ("norm_statistics",),
    "self-training": ("self_training",),
    "default: both statistics": STATISTICS,
    "default and self-training": (*STATISTICS, "self_training"),
    "test time, each study alone": ("test_time",),
}


@dataclass(frozen=True)
class Ground:
    """A trained model, the labelled target (one fold of `config`), and how to get a model that learned its labels."""

    bundle: Bundle
    config: RunConfig
    supervised: Callable[[], Path] | None = None


def trained_on(config: RunConfig, source: Path, out: Path) -> Path:
    """The bundle of the source model trained on with the labels of `config`; trained once."""
    if not (out / "bundle").exists():
        model = config.model.model_copy(update={"init_from": str(source), "weights": None, "overrides": {}})
        options = config.train.model_copy(update={"minutes": None, "steps": UPPER_STEPS, "learning_rate": 5e-4})
        train(config.model_copy(update={"model": model, "train": options}), out)
    return out / "bundle"


def trials(ground: Ground, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, row) of everything that is not known yet."""
    bundle, config = ground.bundle, ground.config
    held = split_cases(gather_cases(config), config.split, 0).test
    studies = [str(one.case.image) for one in held]
    source = measured(subject_of(bundle), config)
    if "source only" not in known:
        yield "source only", {"dice": round(source.scores["dice"], 4)}
    if "supervised" not in known and ground.supervised is not None:
        best = measured(subject_of(load_bundle(ground.supervised())), config)
        yield "supervised", {"dice": round(best.scores["dice"], 4)}
    for name, strategies in TRIALS.items():
        if name in known:
            continue
        began = time.process_time()
        request = Request(strategies, EFFORT)
        try:
            if name.startswith("test time"):
                found, notes = each_alone(bundle, studies, request, config)
            else:
                subject = apply(subject_of(bundle), Target(tuple(studies), EFFORT), request)
                found, notes = measured(subject, config), subject.notes
        except InputError as error:
            yield name, {"refused": str(error)}
            continue
        seconds = round(time.process_time() - began, 1)
        difference = compare(source, found).differences["dice"].to_dict()
        dice = round(found.by_unit["dice"].value, 4)
        yield name, {"dice": dice, "difference": difference, "processor_seconds": seconds, "notes": notes}


def each_alone(
    bundle: Bundle, studies: list[str], request: Request, config: RunConfig
) -> tuple[Measured, dict[str, Any]]:
    """Every study by a model adapted to it alone; all scores as if of one model."""
    above, below = [], []
    for number, study in enumerate(studies):
        subject: Subject = apply(subject_of(bundle), Target((study,), EFFORT), request)
        score = measured(subject, config).by_unit["dice"]
        above.append(score.above[number])
        below.append(score.below[number])
    return Measured({}, {"dice": Score(np.stack(above), np.stack(below))}), {}
