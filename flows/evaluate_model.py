"""Evaluation as a Prefect run."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipelines.config import RunConfig


@task(name="evaluate", cache_policy=NO_CACHE)
def evaluate_task(model: str, data: RunConfig, out: str) -> dict[str, Any]:
    from pipelines.experiments import evaluate

    return evaluate(model, data, out)


@flow(name="evaluate-model", flow_run_name="evaluate-{model}")
def evaluate_model(model: str, data: RunConfig, out: str) -> dict[str, Any]:
    """Score as `maskbridge evaluate MODEL DATA --out OUT` does; returns the scores."""
    return evaluate_task(model, data, out)
