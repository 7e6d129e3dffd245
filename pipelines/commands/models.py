"""`maskbridge models`: the registry, with aliases and scores."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "models"
EXAMPLE = "Example: maskbridge models --json"


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

    columns = list(rows[0])
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
