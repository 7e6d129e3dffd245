"""Training as a tracked run: parameters, curves, scores and files in MLflow, the bundle in its registry."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig, save_config
from pipelines.experiments import Outcome, changed, train
from pipelines.labelled import load_adapter
from pipelines.tracking import register, track


@dataclass(frozen=True)
class TrackedOutcome:
    """`registered` is `models:/name/version`, or None where the config names no registry entry."""

    bundle: Path
    metrics: dict[str, Any]
    run_id: str
    registered: str | None


def train_tracked(
    config: RunConfig,
    out: str | Path,
    *,
    minutes: float | None = None,
    seed: int | None = None,
    resume: bool = False,
    on_progress: Callable[..., None] | None = None,
) -> TrackedOutcome:
    """`pipelines.experiments.train` inside an MLflow run, which records the config as it was run."""
    config = changed(config, minutes, seed)
    tracking = config.tracking
    with track(config.name, experiment=tracking.experiment, uri=tracking.uri) as run:
        run.params(config.model_dump(mode="json", exclude={"adapter", "data"}))

        def on_row(preset: str, row: dict[str, float]) -> None:
            run.metrics({f"{preset}/{key}": value for key, value in row.items() if key != "step"}, int(row["step"]))

        outcome = train(config, out, resume=resume, on_progress=on_progress, on_row=on_row)
        run.metrics(final_scores(outcome))
        save_config(config, Path(out) / "config.yaml")
        run.artifact(Path(out) / "metrics.json")
        with tempfile.TemporaryDirectory() as folder:
            save_config(discreet(config), Path(folder) / "config.yaml")
            run.artifact(Path(folder) / "config.yaml")
        registered = None
        if tracking.register_as:
            scores = {key: value for key, value in outcome.metrics.items() if isinstance(value, float)}
            version = register(outcome.bundle, tracking.register_as, run, alias=tracking.alias, scores=scores)
            registered = f"models:/{tracking.register_as}/{version}"
        return TrackedOutcome(outcome.bundle, outcome.metrics, run.run_id, registered)


def discreet(config: RunConfig) -> RunConfig:
    """The config as it may travel: of volumes without the paths of their data, whose names may be patients'."""
    if load_adapter(config).volume is None:
        return config
    hidden = {"source": "(not recorded)", "patient": None}
    data = tuple(item.model_copy(update={**hidden, "labels": item.labels and "(not recorded)"}) for item in config.data)
    return config.model_copy(update={"data": data})


def final_scores(outcome: Outcome) -> dict[str, float]:
    """Held-out scores of the model and, under `baseline.`, of the U-Net."""
    baseline = outcome.metrics["baseline"].get("unet", {})
    mine = {f"heldout.{k}": v for k, v in outcome.metrics.items() if isinstance(v, int | float)}
    return mine | {f"baseline.unet.{k}": v for k, v in baseline.items() if isinstance(v, int | float)}
