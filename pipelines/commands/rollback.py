"""`maskbridge rollback`: @champion back to the version before, at once."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "rollback"
EXAMPLE = "Example: maskbridge rollback crowns"


def command(
    name: Annotated[str, typer.Argument(help="Model in the registry.")],
    version: Annotated[str | None, typer.Option("--version", help="Go to this one instead of @previous.")] = None,
) -> None:
    """Move @champion back to @previous. Runs that have begun keep their version; the next ones take this."""
    from pipelines.promotion.rollback import rollback

    done = rollback(name, version=version)
    further = f"@previous is version {done.previous}" if done.previous else "there is no @previous now"
    typer.echo(f"models:/{done.name}/{done.version} is @champion again (was {done.left}); {further}")
    typer.echo(f"the alias moved in {done.alias_s:.2f} s", err=True)
