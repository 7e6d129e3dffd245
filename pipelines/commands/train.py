"""`maskbridge train`: train the model a run config describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "train"
EXAMPLE = "Example: maskbridge train crowns.yaml --out runs/crowns --minutes 20"


def command(
    config: Annotated[Path, typer.Argument(help="Run config, as `maskbridge plan` writes it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle, metrics and checkpoints.")],
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Wall-clock instead of the config's length.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed instead of the config's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
) -> None:
    """Train the model a run config describes. Leaves OUT/bundle/ and OUT/metrics.json.

    The run is tracked in MLflow (MLFLOW_TRACKING_URI, else ./mlflow.db) and its model registered where the config
    gives it a name. Under `accelerate launch` the processes share each batch, and the first one does the rest.
    """
    from pipelines.commands.checks import data_fits, preset_exists, writable_folder
    from pipelines.config import load_config
    from pipelines.crew import check_crew, is_crew, serve

    run = load_config(config)
    preset_exists(run, config)
    data_fits(run)
    writable_folder(out)
    check_crew(run)
    if is_crew():
        serve(run, out, minutes=minutes, seed=seed, resume=resume)
        return

    from pipelines.commands.progress import Progress
    from pipelines.tracked import train_tracked

    with Progress() as progress:
        outcome = train_tracked(run, out, minutes=minutes, seed=seed, resume=resume, on_progress=progress)
    typer.echo(str(outcome.bundle))
    if outcome.registered:
        typer.echo(outcome.registered)
