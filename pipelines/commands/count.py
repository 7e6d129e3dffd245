"""`maskbridge count`: how many, and where, on a picture or a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

NAME = "count"
PARTIAL = 3  # exit code: some pictures could not be counted, all others were
EXAMPLE = "Example: maskbridge count models:/crowd@champion photos/ --out counts"


def command(
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/name@alias.")],
    pictures: Annotated[Path, typer.Argument(help="A picture (photo or GeoTIFF), a video, or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; each picture gets OUT/<its name>/.")],
    tile: Annotated[
        int | None, typer.Option(min=32, help="Crop side, pixels. [default: the model's]", show_default=False)
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Pixels that neighbouring crops share. [default: the model's]", show_default=False),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Objects below this score are not counted. [default: tuned in training, else 0.5]",
            show_default=False,
        ),
    ] = None,
    min_area: Annotated[int, typer.Option(min=0, help="Objects smaller than this many pixels are not counted.")] = 4,
    tta: Annotated[Literal["none", "flip"], typer.Option(help="Average over flipped copies (slower).")] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Number format of the forward pass.")
    ] = "auto",
    every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="Of a video: from frame to frame.")] = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Count again what OUT has counts of.")] = False,
) -> None:
    """Count things on pictures of any size: crops, stitched, nobody on a seam counted twice.

    OUT gets counts.csv, report.html, run.json, and a folder a picture with overlay.jpg, density.png and points.csv
    (points.geojson where the picture has a CRS); of a video these show its fullest frame, and frames.csv and
    over_time.svg all of them. Run again, it counts only what is new. A picture that cannot be read is named, the
    others are counted, and the exit code is 3.
    """
    from pipelines.commands.checks import model_adapter, writable_folder
    from pipelines.config import PredictOptions
    from pipelines.picture_runs import pictures_of

    pictures_of(pictures)
    model_adapter(model)
    writable_folder(out)
    options = PredictOptions(
        tile=tile,
        overlap=overlap,
        score=score,
        min_area=min_area,
        tta=tta,
        device=device,
        precision=precision,
    )
    from pipelines.commands.progress import Progress
    from pipelines.tracked import count_tracked

    with Progress() as progress:
        run = count_tracked(model, pictures, out, options, every=every, overwrite=overwrite, on_progress=progress)
    for name, line in run.failed.items():
        typer.echo(f"warning: {name}: {line}", err=True)
    total = sum(record["count"] for record in run.records)
    typer.echo(f"{total} in {len(run.records)} pictures, {run.fresh} of them new", err=True)
    typer.echo(str(out / "counts.csv"))
    if run.failed:
        raise typer.Exit(PARTIAL)
