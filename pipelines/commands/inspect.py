"""`maskbridge inspect`: what is this file or model, and what would fail?"""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "inspect"
EXAMPLE = "Example: maskbridge inspect scene.tif --model runs/crowns/bundle"


def command(
    thing: Annotated[
        str, typer.Argument(metavar="FILE_OR_MODEL", help="A scene, labels, a config, a bundle, or models:/…")
    ],
    model: Annotated[str | None, typer.Option(help="Say also whether this model could run on the scene.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what a file or model is: bands, CRS, nodata, classes, adapter, and what would fail."""
    from pipelines.inspection import inspect_thing, render

    findings = inspect_thing(thing, model=model)
    if as_json:
        import json

        typer.echo(json.dumps(findings, indent=2, ensure_ascii=False, default=str))
    else:
        typer.echo(render(findings))
