"""`maskbridge evaluate`: score a model on labelled scenes, after stitching."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "evaluate"
EXAMPLE = "Example: maskbridge evaluate runs/crowns/bundle crowns.yaml --out runs/crowns/test"


def command(
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/name@alias.")],
    data: Annotated[
        Path, typer.Argument(help="Run config whose `data` is scored; its test part where it has one.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for metrics.json.")],
) -> None:
    """Score a model on labelled scenes, whole scenes after stitching. Leaves OUT/metrics.json."""
    from pipelines.commands.checks import model_adapter, writable_folder
    from pipelines.config import load_config

    run = load_config(data)
    model_adapter(model)
    writable_folder(out)

    from pipelines.experiments import evaluate

    scores = evaluate(model, run, out)
    _print_scores(scores)
    typer.echo(str(out / "metrics.json"))


def _print_scores(scores: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", box=None)
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console(stderr=True).print(table)
