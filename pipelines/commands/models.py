"""`maskbridge models`: the registry, with aliases and scores."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "models"
EXAMPLE = "Example: maskbridge models --json"
HEADLINES = ("foreground_iou", "miou", "pq", "f1_50", "box_f1_50")  # of the scores; `--json` has them all


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the registered models with their aliases and scores (MLFLOW_TRACKING_URI, else ./mlflow.db)."""
    from pipelines.registry import list_models

    rows = list_models()
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
        return
    if not rows:
        typer.echo("no model is registered yet; `maskbridge demo` registers one", err=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("reference", "aliases", *HEADLINES, "created", box=None)
    for row in rows:
        scores = [f"{row['scores'][name]:.3f}" if name in row["scores"] else "-" for name in HEADLINES]
        created = str(row.get("created", ""))[:16].replace("T", " ")
        table.add_row(f"models:/{row['name']}/{row['version']}", ", ".join(row["aliases"]), *scores, created)
    Console().print(table)
