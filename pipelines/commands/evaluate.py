"""`maskbridge evaluate`: score a model on labelled scenes, after stitching."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "evaluate"
EXAMPLE = "Example: maskbridge evaluate runs/crowns/bundle crowns.yaml --out runs/crowns/test"


def command(
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/name@alias.")],
    data: Annotated[
        Path, typer.Argument(help="Run config; its held-out part is scored, all of it where none is named.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for metrics.json.")],
) -> None:
    """Score a model on labelled scenes, as a whole and after stitching. Leaves OUT/metrics.json."""
    from pipelines.commands.checks import data_fits, model_adapter, writable_folder
    from pipelines.config import load_config

    run = load_config(data)
    adapter = model_adapter(model)
    data_fits(run.model_copy(update={"adapter": adapter.to_dict()}))
    writable_folder(out)

    from pipelines.commands.progress import Progress
    from pipelines.tracked import evaluate_tracked

    with Progress() as progress:
        scores = evaluate_tracked(model, run, out, on_progress=progress)
    show(scores)
    typer.echo(str(out / "metrics.json"))


def show(scores: dict[str, Any]) -> None:
    """The overall numbers as a table on stderr, the U-Net's beside them; the file has them per class too."""
    from rich.console import Console
    from rich.table import Table

    beside = scores.get("baseline", {}).get("unet") or {}
    table = Table("metric", "value", *(["U-Net"] if beside else []), box=None)
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            table.add_row(name, _number(value), *([_number(beside.get(name))] if beside else []))
    Console(stderr=True).print(table)


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
