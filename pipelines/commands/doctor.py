"""`maskbridge doctor`: is everything here that a run needs, and what to fix."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "doctor"
EXAMPLE = "Example: maskbridge doctor --json"


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Check versions, accelerator, memory, disk and servers, and say what to fix.

    The exit code is 1 where something would fail.
    """
    from pipelines.doctor import examine, render

    checks = examine()
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        typer.echo(render(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
