"""`maskbridge promote`: a registered version through the gate; @champion moves if every rule passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "promote"
EXAMPLE = "Example: maskbridge promote crowns --data frozen/yellowstone.yaml --data frozen/osbs.yaml --out gate"
REFUSED = 4  # exit code: the gate said no


def command(
    name: Annotated[str, typer.Argument(help="Model in the registry.")],
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="Run config of a domain's held-out data; give one for each.")
    ],
    version: Annotated[
        str | None, typer.Option("--version", help="Candidate; default @challenger, else the newest.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for promotion.json and .md.")] = None,
    shadow: Annotated[
        list[Path] | None, typer.Option("--shadow", help="Scenes or folders; both models run over the newest.")
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="YAML with other limits than the usual.")] = None,
    data_digest: Annotated[
        str | None, typer.Option("--data-digest", help="Refuse if the data is not this one (an evaluation's).")
    ] = None,
    new_data: Annotated[
        bool, typer.Option("--new-data", help="Judge on other data than the champion was, and freeze the gate on it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only: nothing moves, nothing is recorded.")] = False,
) -> None:
    """Judge a version beside @champion on the same frozen data; move @champion to it if every rule passes.

    Exit code 4: refused. What was decided, why and by how much is on the version's tags and in the ledger.
    """
    from pipelines.commands.checks import writable_folder
    from pipelines.config import load_config

    configs = [load_config(path) for path in data]
    if out is not None:
        writable_folder(out)
    from pipelines.promotion.policy import Policy, load_policy

    limits = load_policy(policy) if policy else Policy()

    from pipelines.commands.progress import Progress
    from pipelines.promotion.promote import Request, promote

    request = Request(name, version, data_digest, new_data, tuple(map(str, shadow or ())), limits, dry_run)
    with Progress() as progress:
        made = promote(request, configs, out, on_progress=progress)
    _show(made)
    if not made.promoted:
        raise typer.Exit(REFUSED)


def _show(made: Any) -> None:
    """Every rule on stderr, the outcome on stdout."""
    for verdict in made.report.verdicts:
        typer.echo(f"{'passed ' if verdict.passed else 'REFUSED'}  {verdict.rule:<11} {verdict.says}", err=True)
    reference = f"models:/{made.name}/{made.version}"
    if not made.promoted:
        typer.echo(f"{reference} refused by {', '.join(made.report.refused_by)}")
    elif made.entry is None:
        typer.echo(f"{reference} would pass")
    else:
        before = f", @previous is version {made.previous}" if made.previous else ""
        typer.echo(f"{reference} is @champion{before}")
