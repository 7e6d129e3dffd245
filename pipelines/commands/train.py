"""`maskbridge train`: train the model a run config describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.config import RunConfig

NAME = "train"
EXAMPLE = "Example: maskbridge train crowns.yaml --out runs/crowns --minutes 20"


def command(
    config: Annotated[Path, typer.Argument(help="Run config, as `maskbridge plan` writes it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle, metrics and checkpoints.")],
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Wall-clock instead of the config's length.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed instead of the config's.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="A trained model to carry over: its architecture, and its weights as far as channels and classes go "
            "by the same names. Bundle folder, or models:/name@alias.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
) -> None:
    """Train the model a run config describes. Leaves OUT/bundle/ and OUT/metrics.json.

    The run is tracked in MLflow (MLFLOW_TRACKING_URI, else ./mlflow.db) and its model registered where the config
    gives it a name. Under `accelerate launch` the processes share each batch, and the first one does the rest.
    """
    from pipelines.commands.checks import data_fits, preset_exists, writable_folder
    from pipelines.config import ModelOptions, load_config
    from pipelines.crew import check_crew, is_crew, serve

    run = load_config(config)
    if start is not None:
        options = ModelOptions(init_from=start, overrides=run.model.overrides, class_map=run.model.class_map)
        run = run.model_copy(update={"model": options})
    if run.model.init_from:
        _say_what_is_carried_over(run)
    else:
        preset_exists(run, config)
    data_fits(run)
    writable_folder(out)
    check_crew(run)
    if is_crew():
        serve(run, out, minutes=minutes, seed=seed, resume=resume)
        return

    from pipelines.commands.evaluate import show
    from pipelines.commands.progress import Progress
    from pipelines.tracked import train_tracked

    with Progress() as progress:
        outcome = train_tracked(run, out, minutes=minutes, seed=seed, resume=resume, on_progress=progress)
    show(outcome.metrics)
    typer.echo(str(outcome.bundle))
    if outcome.registered:
        typer.echo(outcome.registered)


def _say_what_is_carried_over(run: RunConfig) -> None:
    """Each channel and class and what becomes of it, before an hour is spent on it."""
    from pipelines.commands.checks import model_adapter
    from pipelines.labelled import load_adapter
    from pipelines.transfer import match_channels, match_classes

    old, new = model_adapter(str(run.model.init_from)), load_adapter(run)
    _, channels = match_channels(old, new)
    _, classes = match_classes(old.classes, new.classes, run.model.class_map)
    for title, matched in (("channel", channels), ("class", classes)):
        for name, how in matched.items():
            typer.echo(f"{title} {name}: {how}", err=True)
