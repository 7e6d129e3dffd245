"""`maskbridge drift`: how far scenes or studies are from what a model knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

NAME = "drift"
EXAMPLE = "Example: maskbridge drift models:/crowns@champion new-site/*.tif --out runs/drift"


def command(
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/name@alias.")],
    scenes: Annotated[list[str], typer.Argument(help="Scenes or studies to measure, all as one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for drift.json and drift.svg.")],
    crops: Annotated[int, typer.Option(min=1, help="Crops to look at.")] = 32,
) -> None:
    """How far scenes are from what a model knows: bands, features, confidence, and one number on stdout.

    The number is between 0 and 1; the higher, the more quality is lost. How much depends on the model: compare it with
    that of scenes whose scores are known.
    """
    from pipelines.commands.checks import model_adapter, writable_folder

    model_adapter(model)
    writable_folder(out)

    from pipelines.bundle import load_bundle
    from pipelines.drift.features import drift_of
    from pipelines.drift.picture import draw
    from pipelines.tracked_domains import tell_drift

    bundle = load_bundle(model)
    found = drift_of(bundle, scenes, crops)
    out.mkdir(parents=True, exist_ok=True)
    (out / "drift.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    draw(found, out / "drift.svg", f"{len(scenes)} scenes or studies, {crops} crops")
    tell_drift(bundle, scenes, found, (out / "drift.json", out / "drift.svg"))
    typer.echo(f"{found.number:.4f}")
