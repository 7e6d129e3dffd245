"""`maskbridge demo`: the whole road on real scenes, from download to report."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

NAME = "demo"
EXAMPLE = "Example: maskbridge demo crowns"


class Demo(StrEnum):
    crowns = "crowns"
    buildings = "buildings"


def command(
    name: Annotated[Demo, typer.Argument(help="Tree crowns (NEON) or buildings (SpaceNet).")] = Demo.crowns,
) -> None:
    """Fetch real scenes, train, evaluate, register, predict through Prefect, and report. About ten minutes.

    Results go to demo-output/<scene>/ of the current folder.
    """
    from importlib import import_module

    from pipelines.commands.progress import Progress

    # By name: the command line starts flows, but no pipeline may lean on them (the houses' rule).
    run_demo = import_module("flows.demo").run_demo
    with Progress() as progress:
        run_demo(name.value, progress, typer.echo)
