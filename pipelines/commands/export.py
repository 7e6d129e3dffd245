"""`maskbridge export`: a bundle's forward as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "export"
EXAMPLE = "Example: maskbridge export crowns/bundle --onnx crowns.onnx"


def command(
    model: Annotated[str, typer.Argument(help="Bundle folder, or a registered model's reference.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="File to write.")],
    size: Annotated[int, typer.Option(help="Pixels a side, a multiple of 32.")] = 512,
) -> None:
    """Write a model's forward as ONNX: normalised picture in, class and mask logits out.

    docs/export.md says which models take pictures of any size, and which of `--size` alone.
    """
    from adapters.errors import InputError
    from maskformer.export import takes_any_size, to_onnx
    from pipelines.bundle import load_bundle
    from pipelines.commands.checks import writable_folder

    writable_folder(onnx.parent)
    bundle = load_bundle(model)
    try:
        network = bundle.build()
        to_onnx(network, onnx, (size, size), dynamic=takes_any_size(network))
    except (ValueError, ImportError) as error:
        raise InputError(str(error)) from None
    typer.echo(str(onnx))
