"""`maskbridge predict`: objects and classes of whole scenes, or of CT and MRI studies: the model's adapter decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

NAME = "predict"
PARTIAL = 3  # exit code: all was written, but part of a scene could not be read; or a study of a batch failed
VOLUMES = "CT and MRI studies"  # a panel of the help
SCENES = "Scenes"
EXAMPLE = "Example: maskbridge predict models:/crowns@champion scene.tif --out predictions --tile 512 --overlap 64"


def number_or_auto(text: str | int) -> int | str:
    """What `--batch` takes."""
    if text == "auto":
        return text
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise typer.BadParameter(f"expected auto or a number from 1 on, got {text}")
    return number


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/name@alias.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Scenes: GeoTIFF, JPEG, PNG, npz. Studies: NIfTI files, DICOM folders, or t1=A.nii.gz,flair=B.nii.gz.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; each source gets a folder of its own in it.")],
    tile: Annotated[
        int | None,
        typer.Option(
            min=32, help="Tile side, pixels. [default: the model's]", show_default=False, rich_help_panel=SCENES
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pixels that neighbouring tiles share. [default: the model's]",
            show_default=False,
            rich_help_panel=SCENES,
        ),
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
    min_area: Annotated[
        int, typer.Option(min=0, help="Objects smaller than this many pixels are left out.", rich_help_panel=SCENES)
    ] = 4,
    tta: Annotated[Literal["none", "flip"], typer.Option(help="Average over flipped copies (slower).")] = "none",
    test_time: Annotated[
        bool,
        typer.Option("--test-time", help="Each source with a model of its own, adapted to its statistics (slower)."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Number format of the forward pass.")
    ] = "auto",
    batch: Annotated[
        Any,
        typer.Option(
            metavar="N",
            parser=number_or_auto,
            help="Tiles a forward pass: auto (by a short trial), or a number; of studies, slices (then 4).",
        ),
    ] = "auto",
    aoi: Annotated[
        Path | None, typer.Option(help="Polygons (GeoJSON, GeoPackage): only inside them.", rich_help_panel=SCENES)
    ] = None,
    flatgeobuf: Annotated[
        bool, typer.Option("--flatgeobuf", help="Write objects.fgb too.", rich_help_panel=SCENES)
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Write layers.tif too: every object whole, as stacked label rasters.",
            rich_help_panel=SCENES,
        ),
    ] = False,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence", help="Write confidence.tif too: the best class' probability.", rich_help_panel=SCENES
        ),
    ] = False,
    stac: Annotated[
        bool, typer.Option("--stac", help="Write item.json too, a STAC item.", rich_help_panel=SCENES)
    ] = False,
    simplify: Annotated[
        float | None,
        typer.Option(
            metavar="METRES",
            help="Let outlines leave the pixel edges by this much.",
            show_default=False,
            rich_help_panel=SCENES,
        ),
    ] = None,
    regularise: Annotated[
        float | None,
        typer.Option(
            metavar="METRES",
            help="Likewise, with right angles: for buildings (extra `footprints`).",
            show_default=False,
            rich_help_panel=SCENES,
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="UID",
            help="The DICOM series, by its UID or the end of it. [default: by the model's rule]",
            show_default=False,
            rich_help_panel=VOLUMES,
        ),
    ] = None,
    keep_names: Annotated[
        bool,
        typer.Option("--keep-names", help="Name folders as the inputs; else by a hash.", rich_help_panel=VOLUMES),
    ] = False,
    min_volume: Annotated[
        float,
        typer.Option(min=0, metavar="MM3", help="Objects smaller than this are left out.", rich_help_panel=VOLUMES),
    ] = 0.0,
    link_iou: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Least IoU of an object in neighbouring slices.", rich_help_panel=VOLUMES),
    ] = 0.3,
    gap: Annotated[int, typer.Option(min=0, help="Slices an object may be missing in.", rich_help_panel=VOLUMES)] = 0,
    smooth: Annotated[
        bool,
        typer.Option("--smooth", help="Average class probabilities with neighbouring slices.", rich_help_panel=VOLUMES),
    ] = False,
    plane: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLANE",
            help="Slicing plane: axial, coronal, sagittal, thick; several are brought to a consensus. "
            "[default: the model's]",
            show_default=False,
            rich_help_panel=VOLUMES,
        ),
    ] = None,
    fold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A further model of the same kind; all are averaged.",
            show_default=False,
            rich_help_panel=VOLUMES,
        ),
    ] = None,
    channel_axis: Annotated[
        int | None,
        typer.Option(
            help="Axis of a 4-D file's channels. [default: the last]", show_default=False, rich_help_panel=VOLUMES
        ),
    ] = None,
    allow_uneven: Annotated[
        bool,
        typer.Option("--allow-uneven", help="Resample uneven or tilted slices; else refused.", rich_help_panel=VOLUMES),
    ] = False,
    seg: Annotated[
        bool | None,
        typer.Option(
            "--seg/--no-seg",
            help="segmentation.dcm. [default: for DICOM input]",
            show_default=False,
            rich_help_panel=VOLUMES,
        ),
    ] = None,
    rtstruct: Annotated[
        bool, typer.Option("--rtstruct", help="Write structures.dcm too, an RTSTRUCT.", rich_help_panel=VOLUMES)
    ] = False,
    executor: Annotated[
        Literal["serial", "process", "dask"],
        typer.Option(help="Who computes the shards: this process, several, or a Dask cluster. Moves no byte."),
    ] = "serial",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of the executor. [default: processors / threads]", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of a forward pass. [default: the machine's]", show_default=False),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Dask: tcp://host:8786; OUT must be seen by all workers. [default: workers here]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would happen (tiles, memory, disk, time); write nothing."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT/<name>/ instead of taking OUT/<name>-2/.")
    ] = False,
) -> None:
    """Predict whole scenes or studies of any size: tiled or sliced, predicted, stitched into one set of objects.

    Each scene gets OUT/<its name>/ with semantic.tif, objects.gpkg, objects.parquet, report.html and
    run.json. Nothing is overwritten unasked, and a failing run leaves nothing half-written.

    A model of CT or MRI takes studies: each gets OUT/study-<hash>/ with labels.nii.gz, objects.nii.gz,
    objects.csv, segmentation.dcm (for DICOM), report.html and run.json. A bad study does not stop the
    others (exit code 3), and running again does only what is missing. Research use only.

    A model of photos takes pictures and folders of them: each gets OUT/<its name>/ with overlay.jpg,
    semantic.png and objects.json, and OUT gets instances.json and panoptic.json as COCO lays them out.
    """
    from pipelines.commands.checks import model_adapter, readable_file, scene_fits, writable_folder

    adapter = model_adapter(model)
    given = {name for name in context.params if _is_given(context, name)}
    if batch == "auto":
        given.discard("batch")  # as if it were not typed: only scenes have a trial
    if getattr(adapter, "volume", None) is not None:
        from pipelines.commands.predict_studies import run

        return run(model, sources, out, {name: context.params[name] for name in given})
    refuse(given & VOLUME_ONLY, "studies (CT, MRI), and this model predicts scenes")
    if getattr(adapter, "photos", False) and all(is_photo(source) for source in sources):
        from pipelines.commands.predict_photos import run as run_photos

        return run_photos(model, sources, out, {name: context.params[name] for name in given})
    from pipelines.config import PredictOptions, WriteOptions

    for name, metres in (("--simplify", simplify), ("--regularise", regularise)):
        if metres is not None and metres <= 0:
            raise typer.BadParameter("expected a length above 0", param_hint=name)
    write = WriteOptions(
        flatgeobuf=flatgeobuf,
        layers=layers,
        confidence=confidence,
        stac=stac,
        simplify_m=simplify,
        regularise_m=regularise,
    )
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
    who = _executor(kind=executor, workers=workers, threads=threads, address=scheduler)
    # All that can be wrong is looked at before torch is imported (2 s) and before the first scene is begun.
    for source in sources:
        refuse_volume(source)
        scene_fits(source, adapter, options)
    if aoi is not None:
        readable_file(aoi)
    writable_folder(out)

    if dry_run:
        from pipelines.commands.dry_run import foresee

        for source in sources:
            foresee(source, model, out, options, who)
        return

    from pipelines.adaptation.test_time import own_model
    from pipelines.commands.progress import Progress
    from pipelines.executors import ExecutorOptions
    from pipelines.prediction import predict_scene
    from pipelines.tracked import predict_tracked

    damaged = False
    try:
        with Progress() as progress, predict_tracked(model, run_name(sources)) as tracked:
            written: set[Path] = set()
            for source in sources:
                # Overwriting is for earlier runs: two scenes of one name in this one still get two folders.
                fresh = overwrite and out / Path(source).stem not in written
                with own_model(model, source, out) if test_time else nullcontext(model) as own:
                    result = predict_scene(
                        *(source, own, out, options),
                        write=write,
                        executor=ExecutorOptions(**who),
                        overwrite=fresh,
                        on_progress=progress,
                    )
                written.add(result)
                tracked.wrote(result)
                typer.echo(str(result))
                damaged |= _is_damaged(result)
    finally:
        _remove_empty(out / ".shards", out)
    if damaged:
        raise typer.Exit(PARTIAL)


def run_name(sources: Sequence[str]) -> str:
    """What a run over `sources` is called: the first one's name; an address may carry a signature behind a `?`."""
    first = Path(sources[0].partition("?")[0]).stem
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1} more"


def _executor(**wanted: Any) -> dict[str, Any]:
    """What belongs together of the executor's options; said before torch is imported."""
    if wanted["address"] and wanted["kind"] != "dask":
        raise typer.BadParameter("goes with --executor dask", param_hint="--scheduler")
    if wanted["address"] and wanted["workers"]:
        raise typer.BadParameter("the cluster has workers of its own", param_hint="--workers")
    if wanted["kind"] == "serial" and wanted["workers"] not in (None, 1):
        raise typer.BadParameter("goes with --executor process or dask", param_hint="--workers")
    return wanted


VOLUME_ONLY = {
    "series", "keep_names", "min_volume", "link_iou", "gap", "smooth", "plane", "fold", "channel_axis", "allow_uneven",
    "seg", "rtstruct",
}  # fmt: skip
SCENE_ONLY = {
    "tile", "overlap", "min_area", "aoi", "flatgeobuf", "layers", "confidence", "stac", "simplify", "regularise",
    "executor", "workers", "threads", "scheduler",
}  # fmt: skip


def refuse(options: set[str], what: str) -> None:
    """InputError that names the options that do not apply."""
    from adapters.errors import InputError

    if options:
        raise InputError(f"{', '.join(f'--{name}'.replace('_', '-') for name in sorted(options))}: only for {what}")


def is_photo(source: str) -> bool:
    """Whether a model of photos takes it as one: a picture without a place on the ground, or a folder of them."""
    from pipelines.sources.picture import is_picture

    return Path(source).is_dir() or is_picture(source)


def refuse_volume(source: str) -> None:
    """InputError where a scene's model is asked to predict what is plainly a study."""
    from adapters.errors import InputError

    if source.casefold().endswith((".nii", ".nii.gz", ".dcm")):
        raise InputError(f"{source}: a volume, and this model predicts scenes: its adapter has no rules for volumes")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _is_damaged(folder: Path) -> bool:
    """Say it where part of the scene could not be read."""
    run = json.loads((folder / "run.json").read_text())
    if run["lost_pixels"]:
        note = next(note for note in run["warnings"] if "could not be read" in note)
        typer.echo(f"warning: {run['source']['name']}: {note}", err=True)
    return bool(run["lost_pixels"])


def _remove_empty(shards: Path, out: Path) -> None:
    """Leave no empty folders behind. Finished shards of a scene that failed stay: the next run goes on from them."""
    for folder in [*shards.glob("*"), shards, out]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
