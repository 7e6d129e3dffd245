"""`maskbridge adapt`: strategies in their order over the scenes of a target, a verdict where labels exist, a bundle.

Labels are read only to score, from a config named for that alone, after the adaptation is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.adaptation.input_statistics import input_statistics
from pipelines.adaptation.norm_statistics import norm_statistics
from pipelines.adaptation.self_training import self_training
from pipelines.adaptation.style import style
from pipelines.adaptation.target import Effort, Subject, Target
from pipelines.adaptation.test_time import test_time
from pipelines.bundle import Bundle, load_bundle, save_bundle
from pipelines.config import RunConfig

log = logging.getLogger(__name__)

Strategy = Callable[[Subject, Target], Subject]
STRATEGIES: dict[str, Strategy] = {
    "input_statistics": input_statistics,
    "norm_statistics": norm_statistics,
    "self_training": self_training,
    "test_time": test_time,
}
STYLE = "style"  # alone needs the source's labelled data
NAMES = ("input_statistics", "norm_statistics", STYLE, "self_training", "test_time")
USUAL = ("input_statistics", "norm_statistics")
MAIN = ("f1_50", "miou")  # the score that decides, the first that the scoring gave


@dataclass(frozen=True)
class Request:
    """source: the labelled data the model was trained on, for `style`. scored_on: labelled target data, to judge by.

    upper_bound: a model trained with the target's labels, scored beside.
    """

    strategies: tuple[str, ...] = USUAL
    effort: Effort = Effort()  # noqa: RUF009  (frozen)
    source: RunConfig | None = None
    scored_on: RunConfig | None = None
    upper_bound: str | None = None


@dataclass(frozen=True)
class Adaptation:
    """bundle: the adapted model's folder, None where it was judged no better and so not written.

    scores: by "source only", "adapted" and "upper bound"; empty without labels. better: None where nobody could tell.
    """

    bundle: Path | None
    notes: dict[str, Any]
    better: bool | None = None
    metric: str | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)


def adapt(model: str | Path, scenes: Sequence[str], out: str | Path, request: Request = Request()) -> Adaptation:
    """Adapt a bundle to `scenes`, of which only pixels are read; the source bundle is never written to.

    Raises InputError for an unknown strategy, a model of volumes, or an `out` that is the source model's own folder.
    """
    bundle = load_bundle(model)
    steps = _steps(request)
    if bundle.adapter.volume is not None:
        raise InputError(f"{model}: is a model of volumes; adapt works on scenes and pictures so far")
    if Path(out).resolve() == bundle.folder.resolve():
        raise InputError(f"{out}: is the source model itself; choose another folder, so that it stays")
    target = Target(tuple(scenes), request.effort)
    subject = Subject(bundle.build(), bundle.adapter, bundle.thresholds, bundle.provenance.get("task"))
    for name, strategy in steps:
        subject = strategy(subject, target)
        log.info("%s: %s", name, subject.notes.get(name))
    scores, better, metric = _judge(bundle, subject, request)
    notes = {"strategies": list(request.strategies), **subject.notes}
    if better is False:
        return Adaptation(None, notes, better, metric, scores)
    account = {"from": bundle.digest, **notes, "metric": metric, "scores": scores, "better": better}
    folder = save_bundle(
        out,
        subject.model.cpu(),
        subject.adapter,
        metrics={},  # the source's were measured on other data
        provenance={**_inherited(bundle), "adaptation": account},
        thresholds=subject.thresholds,
    )
    return Adaptation(folder, notes, better, metric, scores)


def _steps(request: Request) -> list[tuple[str, Strategy]]:
    unknown = [name for name in request.strategies if name not in NAMES]
    if unknown or not request.strategies:
        raise InputError(f"strategy: {unknown[0] if unknown else 'none'}; there are {', '.join(NAMES)}")
    if STYLE in request.strategies and request.source is None:
        raise InputError("style: needs the labelled source data, --source CONFIG.yaml")
    dressed: dict[str, Strategy] = dict(STRATEGIES)
    if request.source is not None:
        dressed[STYLE] = partial(style, source=request.source)
    return [(name, dressed[name]) for name in sorted(set(request.strategies), key=NAMES.index)]


def _inherited(bundle: Bundle) -> dict[str, Any]:
    """Of the source's provenance what is still true: its name, its task, and where it has learned."""
    return {key: bundle.provenance[key] for key in ("name", "task", "places") if key in bundle.provenance}


def _judge(
    bundle: Bundle, subject: Subject, request: Request
) -> tuple[dict[str, dict[str, Any]], bool | None, str | None]:
    """Scores side by side on the labelled target, and whether the adapted model is the better one."""
    if request.scored_on is None:
        return {}, None, None
    source = Subject(bundle.build(), bundle.adapter, bundle.thresholds, subject.task)
    scores = {"source only": _scored(source, request.scored_on), "adapted": _scored(subject, request.scored_on)}
    if request.upper_bound is not None:
        best = load_bundle(request.upper_bound)
        taught = Subject(best.build(), best.adapter, best.thresholds, best.provenance.get("task"))
        scores["upper bound"] = _scored(taught, request.scored_on)
    metric = next((name for name in MAIN if isinstance(scores["source only"].get(name), int | float)), None)
    if metric is None:
        return scores, None, None
    return scores, scores["adapted"][metric] > scores["source only"][metric], metric


def _scored(subject: Subject, config: RunConfig) -> dict[str, Any]:
    from pipelines.experiments import everything, score
    from pipelines.labelled import LabelledData
    from pipelines.predictor import default_task

    config = config.model_copy(update={"adapter": subject.adapter.to_dict()})
    options = config.predict.model_copy(
        update={"task": config.predict.task or subject.task or default_task(subject.adapter)}
    )
    with LabelledData(config) as data:
        places = data.split.test or everything(data)
        return score(deepcopy(subject.model), data, places, options, dict(subject.thresholds))
