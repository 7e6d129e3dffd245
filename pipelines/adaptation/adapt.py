"""`maskbridge adapt`: strategies in their order over the data of a target, a verdict where labels exist, a bundle.

Labels are read only to score, from a config named for that alone, after the adaptation is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.adaptation.input_statistics import input_statistics
from pipelines.adaptation.norm_statistics import norm_statistics
from pipelines.adaptation.resolution import resolution
from pipelines.adaptation.self_training import self_training
from pipelines.adaptation.style import style
from pipelines.adaptation.target import Effort, Subject, Target
from pipelines.adaptation.test_time import test_time
from pipelines.adaptation.verdict import Verdict, compare, measured
from pipelines.bundle import Bundle, load_bundle, save_bundle
from pipelines.config import RunConfig

log = logging.getLogger(__name__)

Strategy = Callable[[Subject, Target], Subject]
STRATEGIES: dict[str, Strategy] = {
    "resolution": resolution,
    "input_statistics": input_statistics,
    "norm_statistics": norm_statistics,
    "self_training": self_training,
    "test_time": test_time,
}
STYLE = "style"  # alone needs the source's labelled data
NAMES = ("resolution", "input_statistics", "norm_statistics", STYLE, "self_training", "test_time")
USUAL = ("resolution", "input_statistics", "norm_statistics")


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
    """bundle: the adapted model's folder, None where it was not shown to be better and so not written.

    scores: by "source only", "adapted" and "upper bound"; empty without labels, as is the verdict then.
    """

    bundle: Path | None
    notes: dict[str, Any]
    verdict: Verdict = Verdict(None, None, {})  # noqa: RUF009  (frozen)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def better(self) -> bool | None:
        """None where nobody could tell."""
        return self.verdict.better


def adapt(model: str | Path, scenes: Sequence[str], out: str | Path, request: Request = Request()) -> Adaptation:
    """Adapt a bundle to `scenes` (studies for a model of volumes), of which only pixels are read.

    The source bundle is never written to. Raises InputError for an unknown strategy, one that this kind of model has
    not, or an `out` that is the source model's own folder.
    """
    bundle = load_bundle(model)
    if Path(out).resolve() == bundle.folder.resolve():
        raise InputError(f"{out}: is the source model itself; choose another folder, so that it stays")
    subject = apply(subject_of(bundle), Target(tuple(scenes), request.effort), request)
    scores, verdict = _judge(bundle, subject, request)
    if request.scored_on is not None and not verdict.better:
        return Adaptation(None, _notes(subject, request), verdict, scores)
    return Adaptation(save(subject, bundle, out, request, scores, verdict), _notes(subject, request), verdict, scores)


def subject_of(bundle: Bundle) -> Subject:
    """The bundle's model before any adaptation."""
    known = not bundle.config.freeze_batch_norm or bool(bundle.provenance.get("reference"))
    return Subject(bundle.build(), bundle.adapter, bundle.thresholds, bundle.provenance.get("task"), norms_known=known)


def apply(subject: Subject, target: Target, request: Request) -> Subject:
    """The subject after the request's strategies, in their order of cost. InputError as `adapt`."""
    for name, strategy in _steps(request):
        subject = strategy(subject, target)
        log.info("%s: %s", name, subject.notes.get(name))
    return subject


def save(
    subject: Subject,
    bundle: Bundle,
    out: str | Path,
    request: Request,
    scores: dict[str, dict[str, Any]] | None = None,
    verdict: Verdict | None = None,
) -> Path:
    """Write the adapted model as a bundle that says what it comes from and what was done to it."""
    account: dict[str, Any] = {"from": bundle.digest, **_notes(subject, request), "scores": scores or {}}
    if verdict is not None and verdict.metric is not None:
        found = {name: one.to_dict() for name, one in verdict.differences.items()}
        account |= {"metric": verdict.metric, "better": verdict.better, "differences": found}
    return save_bundle(
        out,
        subject.model.cpu(),
        subject.adapter,
        metrics={},  # the source's were measured on other data
        provenance={**_inherited(bundle), "adaptation": account},
        thresholds=subject.thresholds,
    )


def _notes(subject: Subject, request: Request) -> dict[str, Any]:
    return {"strategies": list(request.strategies), **subject.notes}


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
    """Of the source's provenance what is still true: its name, task and memory, and where it has learned."""
    kept = ("name", "task", "places", "cases", "patient_salt", "reference")
    return {key: bundle.provenance[key] for key in kept if key in bundle.provenance}


def _judge(bundle: Bundle, subject: Subject, request: Request) -> tuple[dict[str, dict[str, Any]], Verdict]:
    """Scores side by side on the labelled target, and whether the adapted model is the better one."""
    if request.scored_on is None:
        return {}, Verdict(None, None, {})
    source, adapted = measured(subject_of(bundle), request.scored_on), measured(subject, request.scored_on)
    scores = {"source only": source.scores, "adapted": adapted.scores}
    if request.upper_bound is not None:
        scores["upper bound"] = measured(subject_of(load_bundle(request.upper_bound)), request.scored_on).scores
    return scores, compare(source, adapted)
