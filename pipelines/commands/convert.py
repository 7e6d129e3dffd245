"""`maskbridge convert`: a published checkpoint as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

NAME = "convert"
EXAMPLE = "Example: maskbridge convert mask2former-swin-tiny-coco-panoptic/ --out mask2former"


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of transformers (config.json, safetensors), or detectron2's .pkl or .pth.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle folder to write.")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names with commas (or semicolons) between. Where the checkpoint has none: its classes in order. "
            "Else: other classes; those of the same name are kept, the others start fresh.",
        ),
    ] = None,
    things: Annotated[
        str | None,
        typer.Option(help="Which classes are countable: names, a number (the first so many), all, none."),
    ] = None,
    kind: Annotated[
        Literal["auto", "transformers", "detectron2"], typer.Option(help="Whose checkpoint it is.")
    ] = "auto",
) -> None:
    """Convert a published MaskFormer, Mask2Former or EoMT into a bundle that predict takes.

    Prints what became of every tensor. Classes, which of them are things, the scale of the channels and thresholds
    come over where the checkpoint says them; COCO panoptic's things are known. No file can run code.
    """
    from pipelines.commands.checks import writable_folder
    from pipelines.converting import convert_checkpoint

    writable_folder(out)
    names = None
    if classes is not None:  # names that hold commas are told apart by semicolons
        names = [name.strip() for name in classes.split(";" if ";" in classes else ",") if name.strip()]
        if not names or len(set(names)) < len(names):
            raise typer.BadParameter("expected names, each once", param_hint="--classes")
    account = convert_checkpoint(checkpoint, out, kind=kind, classes=names, things=things)
    typer.echo(account.describe(), err=True)
    typer.echo(str(out))
