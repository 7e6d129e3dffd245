"""`maskbridge plan`: look at the data and write a run config that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "plan"
EXAMPLE = "Example: maskbridge plan scenes/ --labels crowns/ --out crowns.yaml"


def command(
    data: Annotated[
        list[Path], typer.Argument(help="Scenes, or folders of scenes. Labels beside them are found by name.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run config to write (YAML).")],
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="Label files or folders, paired with the scenes by name; repeat for several."),
    ] = None,
    class_column: Annotated[str | None, typer.Option(help="Column or key of the labels that holds the class.")] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of every object where no column tells it.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Model preset instead of the suggested one.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Training time instead of the suggested one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing config.")] = False,
) -> None:
    """Look at the data and write a run config that fits it, with the reason beside every choice.

    Bands and their statistics, classes and counts, object sizes (crop, tile, overlap, queries), the split by
    place or by scene, model and training time: all read from the files, all yours to change.
    """
    from pipelines.planning import PlanOptions, plan, write_plan

    options = PlanOptions(class_column=class_column, default_class=class_name, preset=preset, minutes=minutes)
    made = plan(data, labels or [], options, out.resolve().parent, out.stem)
    write_plan(made, out, overwrite=overwrite)
    typer.echo(str(out))
