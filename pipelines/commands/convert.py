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
            help="Names with commas (or semicolons) between, or a published list: ade20k, cityscapes, coco-instances, "
            "coco-panoptic, voc. Where the checkpoint has none: its classes in order. "
            "Else: other classes; those of the same name are kept, the others start fresh.",
        ),
    ] = None,
    things: Annotated[
        str | None,
        typer.Option(help="Which classes are countable: names, a number (the first so many), all, none."),
    ] = None,
    task: Annotated[
        Literal["semantic", "instance", "panoptic"] | None,
        typer.Option(help="What it was trained for. [default: the word in its name]", show_default=False),
    ] = None,
    kind: Annotated[
        Literal["auto", "transformers", "detectron2"], typer.Option(help="Whose checkpoint it is.")
    ] = "auto",
) -> None:
    """Convert a published MaskFormer, Mask2Former or EoMT into a bundle that predict takes.

    Prints what became of every tensor. Classes, which of them are things, the scale of the channels and thresholds
    come over where the checkpoint says them; the things of COCO, ADE20K and Cityscapes are known. No file can run code.
    """
    from adapters.class_lists import CLASS_MAPS, class_map
    from pipelines.commands.checks import writable_folder
    from pipelines.converting import convert_checkpoint

    writable_folder(out)
    names = None
    if classes in CLASS_MAPS:
        names = list(class_map(classes).names)
    elif classes is not None:  # names that hold commas are told apart by semicolons
        names = [name.strip() for name in classes.split(";" if ";" in classes else ",") if name.strip()]
        if not names or len(set(names)) < len(names):
            raise typer.BadParameter("expected names, each once", param_hint="--classes")
    account = convert_checkpoint(checkpoint, out, kind=kind, classes=names, things=things, task=task)
    typer.echo(account.describe(), err=True)
    typer.echo(str(out))
