"""Evaluation as a Prefect run. What it finds out about a registered model it also tells as an event.

The event is `maskbridge.evaluated` about `maskbridge.model.<name>`, with name, version and scores as its payload; the
deployment `promote` waits for it. Whether the model is good enough is the gate's business, not this flow's.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from adapters.errors import InputError
from flows.artifacts import numbers, show_model, show_run, show_table
from flows.runs import begin, is_bad_luck, pinned, sweep_after
from pipelines.bundle import REGISTRY
from pipelines.config import RunConfig

EVALUATED = "maskbridge.evaluated"


@task(
    name="evaluate",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=is_bad_luck,
    cache_policy=NO_CACHE,
)
def evaluate_task(model: str, data: RunConfig, out: str) -> dict[str, Any]:
    from pipelines.tracked import evaluate_tracked
    from pipelines.volumes.discretion import nameless_errors

    with nameless_errors(data):
        return evaluate_tracked(model, data, out, on_run=lambda run: show_run(run, "evaluate", data.name))


@flow(name="evaluate-model", flow_run_name="evaluate-{model}", on_cancellation=[sweep_after], on_crashed=[sweep_after])
def evaluate_model(model: str, data: RunConfig, out: str) -> dict[str, Any]:
    """Score as `maskbridge evaluate MODEL DATA --out OUT` does; returns the scores, and emits them as an event."""
    begin()
    version = pinned(model)
    scores = evaluate_task(version, data, out)
    show_table("evaluate", data.name, numbers(scores))
    if version.startswith(REGISTRY):
        tell_scores(version, scores, _digest(version, data))
    return scores


def _digest(model: str, data: RunConfig) -> str:
    """Of the held-out data, by which the gate knows that it judges on the same; empty where there are none."""
    from pipelines.bundle import load_bundle
    from pipelines.promotion.frozen import data_digest

    try:
        return data_digest([data], load_bundle(model, check_shapes=False).adapter)
    except InputError:
        return ""


def tell_scores(model: str, scores: dict[str, Any], data_digest: str) -> bool:
    """Emit the scores of a registered version; nothing of a bundle folder, which nobody could promote."""
    from pipelines.registry import REFERENCE

    named = REFERENCE.fullmatch(model)
    if named is None or not named["version"]:
        return False
    name, version = named["name"], named["version"]
    emit_event(
        EVALUATED,
        resource={"prefect.resource.id": f"maskbridge.model.{name}", "prefect.resource.name": name},
        payload={
            "name": name,
            "version": int(version),
            "model": model,
            "scores": {row["score"]: row["value"] for row in numbers(scores)},
            "data_digest": data_digest,
        },
    )
    show_model(model, version, name)
    return True
