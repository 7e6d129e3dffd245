"""Training as a Prefect run; the config is the run's parameter form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import Bar, numbers, show_run, show_table
from flows.runs import begin, is_bad_luck, is_repeated, sweep_after
from pipelines.config import RunConfig


# Tried again from its last checkpoint.
@task(
    name="train",
    retries=1,
    retry_delay_seconds=60,
    retry_condition_fn=is_bad_luck,
    cache_policy=NO_CACHE,
)
def train_task(config: RunConfig, out: str, resume: bool) -> str:
    from prefect import runtime

    from pipelines.checkpoints import NAME
    from pipelines.tracked import train_tracked
    from pipelines.volumes.discretion import nameless_errors

    begun = (Path(out) / "checkpoints" / NAME).exists()
    again = is_repeated() or (runtime.task_run.run_count or 0) > 1
    bar = Bar("train", config.name)

    def on_progress(stage: str, done: float = 0, total: float | None = None, **_: Any) -> None:
        if total:
            bar.seldom(done, total)

    with nameless_errors(config):
        outcome = train_tracked(config, out, resume=resume or (again and begun), on_progress=on_progress)
    show_table("train", config.name, numbers(outcome.metrics))
    if outcome.run_id:
        show_run(outcome.run_id, "train", config.name)
    return str(outcome.bundle)


@flow(name="train-model", flow_run_name="train-{config.name}", on_cancellation=[sweep_after], on_crashed=[sweep_after])
def train_model(config: RunConfig, out: str, resume: bool = False) -> str:
    """Train as `maskbridge train CONFIG --out OUT` does; returns the bundle's folder.

    A run that was killed and is started again goes on from its last checkpoint.
    """
    begin()
    return train_task(config, out, resume)
