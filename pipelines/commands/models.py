"""`maskbridge models`: the registry, with aliases and scores."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "models"
EXAMPLE = "Example: maskbridge models --json"
HEADLINES = ("miou", "pq", "f1_50", "box_f1_50")  # of the scores; `--json` has them all


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
    # Plain columns, not a rich table: a reference cut to the terminal's width could not be copied.
    table: list[tuple[str, ...]] = [("reference", "aliases", *HEADLINES, "created")]
    for row in rows:
        scores = [f"{row['scores'][name]:.3f}" if name in row["scores"] else "-" for name in HEADLINES]
        created = str(row.get("created", ""))[:10]
        table.append((f"models:/{row['name']}/{row['version']}", ",".join(row["aliases"]), *scores, created))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
