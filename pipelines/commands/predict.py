"""`maskbridge predict`: objects and classes of whole scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pipelines.config import PredictOptions

NAME = "predict"
PARTIAL = 3  # exit code: all was written, but part of a scene could not be read
EXAMPLE = "Example: maskbridge predict models:/crowns@champion scene.tif --out predictions --tile 512 --overlap 64"


def command(
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/name@alias.")],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Scenes: GeoTIFF, JPEG, PNG, npz.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; each scene gets OUT/<its name>/.")],
    tile: Annotated[
        int | None, typer.Option(min=32, help="Tile side, pixels. [default: the model's]", show_default=False)
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Pixels that neighbouring tiles share. [default: the model's]", show_default=False),
    ] = None,
    task: Annotated[
        Literal["semantic", "instance", "panoptic"] | None,
        typer.Option(help="What is asked of the model. [default: what it was scored on]", show_default=False),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Objects below this score are left out. [default: tuned in training, else 0.5]",
            show_default=False,
        ),
    ] = None,
    min_area: Annotated[int, typer.Option(min=0, help="Objects smaller than this many pixels are left out.")] = 4,
    tta: Annotated[Literal["none", "flip"], typer.Option(help="Average over flipped copies (slower).")] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Number format of the forward pass.")
    ] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Tiles a forward pass.")] = 1,
    aoi: Annotated[Path | None, typer.Option(help="Polygons (GeoJSON, GeoPackage): only inside them.")] = None,
    flatgeobuf: Annotated[bool, typer.Option("--flatgeobuf", help="Write objects.fgb too.")] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Write layers.tif too: every object whole, as stacked label rasters.")
    ] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Write confidence.tif too: the best class' probability.")
    ] = False,
    stac: Annotated[bool, typer.Option("--stac", help="Write item.json too, a STAC item.")] = False,
    simplify: Annotated[
        float | None,
        typer.Option(metavar="METRES", help="Let outlines leave the pixel edges by this much.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would happen (tiles, memory, disk, time); write nothing."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT/<name>/ instead of taking OUT/<name>-2/.")
    ] = False,
) -> None:
    """Predict whole scenes of any size: tiled, predicted, stitched into one set of objects.

    Each scene gets OUT/<its name>/ with semantic.tif, objects.gpkg, objects.parquet, report.html and
    run.json. Nothing is overwritten unasked, and a failing run leaves nothing half-written.
    """
    from pipelines.config import PredictOptions, WriteOptions

    if simplify is not None and simplify <= 0:
        raise typer.BadParameter("expected a length above 0", param_hint="--simplify")
    write = WriteOptions(flatgeobuf=flatgeobuf, layers=layers, confidence=confidence, stac=stac, simplify_m=simplify)
    options = PredictOptions(
        tile=tile,
        overlap=overlap,
        task=task,
        score=score,
        min_area=min_area,
        tta=tta,
        device=device,
        precision=precision,
        batch=batch,
        aoi=str(aoi) if aoi else None,
    )
    # All that can be wrong is looked at before torch is imported (2 s) and before the first scene is begun.
    from pipelines.commands.checks import model_adapter, readable_file, scene_fits, writable_folder

    adapter = model_adapter(model)
    for source in sources:
        scene_fits(source, adapter, options)
    if aoi is not None:
        readable_file(aoi)
    writable_folder(out)

    if dry_run:
        for source in sources:
            _foresee(source, model, out, options)
        return

    from pipelines.commands.progress import Progress
    from pipelines.prediction import predict_scene

    damaged = False
    try:
        with Progress() as progress:
            written: set[Path] = set()
            for source in sources:
                # Overwriting is for earlier runs: two scenes of one name in this one still get two folders.
                fresh = overwrite and out / Path(source).stem not in written
                result = predict_scene(source, model, out, options, write=write, overwrite=fresh, on_progress=progress)
                written.add(result)
                typer.echo(str(result))
                damaged |= _is_damaged(result)
    finally:
        _remove_empty(out / ".shards", out)
    if damaged:
        raise typer.Exit(PARTIAL)


def _is_damaged(folder: Path) -> bool:
    """Say it where part of the scene could not be read."""
    run = json.loads((folder / "run.json").read_text())
    if run["lost_pixels"]:
        note = next(note for note in run["warnings"] if "could not be read" in note)
        typer.echo(f"warning: {run['source']['name']}: {note}", err=True)
    return bool(run["lost_pixels"])


def _foresee(source: str, model: str, out: Path, options: PredictOptions) -> None:
    """Print what predicting `source` would take; the time comes from one tile, tried."""
    from pipelines.commands.progress import clock
    from pipelines.prediction import forecast
    from pipelines.scene import plan_scene

    plan = plan_scene(source, model, options)
    cost = forecast(plan, out)
    settled = plan.options
    height, width = plan.shape
    kept = f", {cost.finished_shards} of {cost.shards} shards are there already" if cost.finished_shards else ""
    typer.echo(
        f"{source} → {out / plan.stem}\n"
        f"  scene    {height} × {width} px\n"
        f"  tiles    {cost.tiles} of {settled.tile} px, overlap {settled.overlap} px{kept}\n"
        f"  memory   about {cost.memory_bytes / 2**30:.1f} GiB\n"
        f"  disk     about {cost.disk_bytes / 2**20:.0f} MiB, {_free(out) / 2**30:.0f} GiB free\n"
        f"  time     about {clock(cost.seconds)}"
    )


def _remove_empty(shards: Path, out: Path) -> None:
    """Leave no empty folders behind. Finished shards of a scene that failed stay: the next run goes on from them."""
    for folder in [*shards.glob("*"), shards, out]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _free(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
