"""Training as a Prefect run; the config is the run's parameter form."""

from __future__ import annotations

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipelines.config import RunConfig


@task(name="train", cache_policy=NO_CACHE)
def train_task(config: RunConfig, out: str, resume: bool) -> str:
    from pipelines.tracked import train_tracked

    return str(train_tracked(config, out, resume=resume).bundle)


@flow(name="train-model", flow_run_name="train-{config.name}")
def train_model(config: RunConfig, out: str, resume: bool = False) -> str:
    """Train as `maskbridge train CONFIG --out OUT` does; returns the bundle's folder."""
    return train_task(config, out, resume)
