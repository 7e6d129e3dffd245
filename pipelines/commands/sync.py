"""`maskbridge sync`: send what runs could not tell MLflow while it was away."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "sync"
LEFT = 3  # exit code: something waits still
EXAMPLE = "Example: maskbridge sync --to https://me:secret@mlflow.example.org"


def command(
    to: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Only what waits for this store. [default: all]", show_default=False),
    ] = None,
) -> None:
    """Send what runs could not tell MLflow while it was away: parameters, curves, files, models. Each arrives once.

    Every tracked run does so by itself for its own store. A password is not kept with what waits: give the address
    with it in MLFLOW_TRACKING_URI or --to. Exit code 3 where something waits still.
    """
    from pipelines.tracking_sender import Away, is_gone, send_leftovers, waiting
    from pipelines.tracking_store import default_uri, shown

    known = {shown(uri): uri for uri in (default_uri(), to) if uri}
    found = waiting()
    if to is not None:
        found = {address: count for address, count in found.items() if address == shown(to)}
    if not found:
        typer.echo("nothing waits for MLflow", err=True)
        return
    left = 0
    for address, count in found.items():
        uri = known.get(address, address)
        try:
            if "//***@" in uri:
                raise Away(f"{address}: needs its password; give the address in MLFLOW_TRACKING_URI or --to")
            if is_gone(uri):
                raise Away(f"{address}: the file is gone")
            done = send_leftovers(uri)
        except Away as error:
            typer.echo(f"warning: {error}; {count} runs wait", err=True)
            left += count
            continue
        left += count - done
        typer.echo(f"{done} runs sent to {address}")
    if left:
        raise typer.Exit(LEFT)
