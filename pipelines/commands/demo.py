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
    from pipelines.demo import run_demo

    run_demo(name.value)
