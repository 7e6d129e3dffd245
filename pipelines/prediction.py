"""Predict one scene from file to files: plan → shards → stitch and blend → outputs.

`flows.segment_scene` runs the same four steps as Prefect tasks; here they run in a row, without a server.
"""

from __future__ import annotations

import glob
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.annotations.options import LabelOptions
from pipelines.assembly import DEFAULT_SEMANTIC, Assembled, ClassMapper, RegionMapper, Window, blend, stitch
from pipelines.batching import as_record, read_trial, settle_batch
from pipelines.blending import block_width
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions, WriteOptions
from pipelines.executors import ExecutorOptions, run_shards
from pipelines.manifest import Stopwatch, write_manifest
from pipelines.predictor import Predictor
from pipelines.raster_cache import bounded_cache
from pipelines.reading import Losses, kept_open
from pipelines.scene import ScenePlan, check_unchanged, open_bundle, open_scene, plan_scene
from pipelines.scene_report import write_scene_report
from pipelines.shard_file import PACKED
from pipelines.shards import is_finished, predict_tiles, read_fragments, read_losses, read_shards, shard_seconds
from pipelines.sinks.attribute_table import write_attribute_table
from pipelines.sinks.confidence import ConfidenceSink
from pipelines.sinks.folder import OutputFolder
from pipelines.sinks.geotiff import SemanticSink
from pipelines.sinks.layers import write_layers
from pipelines.sinks.redrawing import Outline
from pipelines.sinks.stac import write_item
from pipelines.sinks.style import write_style
from pipelines.sinks.vector import NAMES, write_objects
from pipelines.sources.tolerant import TolerantSource, lost_pixels
from pipelines.work_folder import held, work_path

Progress = Callable[..., None]  # (stage, done, total)


@dataclass(frozen=True)
class Forecast:
    """What a run would cost, for `--dry-run`: bytes and seconds are estimates."""

    tiles: int
    shards: int
    finished_shards: int
    memory_bytes: int
    disk_bytes: int
    seconds: float


def predict_scene(
    source: str | Path,
    model: str | Path,
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    labels: str | None = None,
    label_options: LabelOptions | None = None,
    write: WriteOptions | None = None,
    executor: ExecutorOptions | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Predict `source` with `model` (bundle folder or `models:/…`) into `out/<stem>/`; returns that folder.

    Nothing appears under the final name before all of it is complete. An interrupted run goes on from its
    finished shards when called again with the same scene, model and options. `executor` says who computes the
    shards, and moves no byte.
    """
    executor = executor or ExecutorOptions()
    watch = Stopwatch()
    with watch.stage("plan"):
        plan = plan_scene(
            source,
            model,
            options or PredictOptions(),
            labels,
            label_options or LabelOptions(),
            write or WriteOptions(),
        )
    plan = executor.settle(plan)
    check_room(plan, out)
    with held(plan, out) as work:
        with watch.stage("batch"):
            plan = settle_batch(plan, work.path)
        with watch.stage("predict"), kept_open():
            _run_shards(plan, work.path, executor, on_progress)
        folder = finish_scene(plan, work.path, Path(out), watch, overwrite=overwrite)
        work.release(discard=True)
    return folder


def check_room(plan: ScenePlan, out: str | Path) -> None:
    """InputError where what is still to be written will not fit the disk that `out` lies on."""
    place = Path(out).absolute()
    while not place.exists():
        place = place.parent
    left = [len(s) for n, s in enumerate(plan.shards) if not is_finished(plan, n, work_path(plan, out))]
    classes = len(open_bundle(plan).adapter.classes)
    needed, free = disk_bytes(plan, sum(left), classes), shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{out}: needs about {needed / 2**30:.1f} GiB while the scene is predicted, and {free / 2**30:.1f} GiB are "
            "free; give another --out, or an --aoi"
        )


def disk_bytes(plan: ScenePlan, tiles: int, classes: int) -> int:
    """What a run writes: class probabilities (packed float16) of so many tiles, and the scene's rasters.

    Tiles that turn out to be wholly without data need nothing; which they are is not known yet.
    """
    side = plan.options.tile or 0
    return int(tiles * side * side * classes * 2 * PACKED) + 2 * plan.shape[0] * plan.shape[1]


def written_by_the_run(plan: ScenePlan, out: str | Path) -> Path | None:
    """The scene's folder that run `plan.run` has written, if it has: a run that is repeated writes no second one."""
    for manifest in sorted(Path(out).glob(f"{glob.escape(plan.stem)}*/run.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(manifest.read_text())
            if (found["host"]["run"], found["source"]["sha256"]) == (plan.run, plan.source_sha256):
                return manifest.parent
    return None


def finish_scene(
    plan: ScenePlan, work: Path, out: Path, watch: Stopwatch | None = None, *, overwrite: bool = False
) -> Path:
    """Put the finished shards together and write the scene's files. Returns its folder."""
    watch = watch or Stopwatch()
    watch.speed |= speed(plan, work)
    bundle = open_bundle(plan)
    with (
        bounded_cache(),
        OutputFolder(out, plan.stem, overwrite=overwrite) as folder,
        open_scene(plan, bundle.adapter) as opened,
    ):
        source, lost = TolerantSource(opened), read_losses(plan, work)
        with watch.stage("stitch"):
            scene = _assemble_to_disk(plan, work, folder.path, source, bundle)
        with watch.stage("vectors"):
            _write_vectors(plan, folder.path, scene.objects, source, bundle)
        with watch.stage("report"):
            notes = [*warnings_for(source, scene), *_losses(lost, plan.shape)]
            write_scene_report(folder.path, plan, bundle, source, scene, watch, notes)
        if plan.write.stac and not write_item(folder.path, plan.stem, plan.shape, source.geometry, source.tags):
            notes.append("The scene has no CRS, so there is no STAC item.")
        check_unchanged(plan, opened)
        write_manifest(folder.path / "run.json", plan, source, scene, watch, notes, lost_pixels(set(lost), plan.shape))
        return folder.commit()


def speed(plan: ScenePlan, work: Path) -> dict[str, Any]:
    """Tiles a forward pass and why; seconds the shards took, and of them the model stood still for want of tiles."""
    computed, waited = (
        sum(shard_seconds(number, work, what) or 0.0 for number in range(len(plan.shards)))
        for what in ("seconds", "waited")
    )
    return {
        "batch": plan.settled.batch,
        **as_record(read_trial(work)),
        "computed_s": round(computed, 3),
        "waited_s": round(waited, 3),
        "waited_share": round(waited / computed, 4) if computed else 0.0,
    }


def _assemble_to_disk(plan: ScenePlan, work: Path, folder: Path, source: Any, bundle: Bundle) -> Assembled:
    """semantic.tif with its attribute table, confidence.tif where it is asked for; the objects."""
    classes, thresholds = bundle.adapter.classes, bundle.thresholds
    pixels = np.zeros(256, np.int64)
    with ExitStack() as sinks:
        semantic = sinks.enter_context(SemanticSink(folder / "semantic.tif", plan.shape, source.geometry, classes))
        confidence = None
        if plan.write.confidence:
            sink = ConfidenceSink(folder / "confidence.tif", plan.shape, source.geometry)
            confidence = sinks.enter_context(sink)

        def write(window: Window, ids: np.ndarray) -> None:
            np.add(pixels, np.bincount(ids.ravel(), minlength=256), out=pixels)
            semantic.write(window, ids)

        mapper = ClassMapper(bundle.adapter, thresholds.get("semantic", DEFAULT_SEMANTIC), write)
        regions = RegionMapper(plan.shape, bundle.adapter, thresholds) if plan.options.task == "semantic" else None

        def on_band(window: Window, probabilities: np.ndarray, valid: np.ndarray) -> None:
            mapper(window, probabilities, valid)
            if regions:
                regions(window, probabilities, valid)
            if confidence:
                confidence.write_probabilities(window, probabilities, valid)

        scene = stitch(read_fragments(plan, work), plan.grid, bundle.adapter, plan.options)
        blend(partial(read_shards, plan, work), plan.grid, len(classes), on_band)
        semantic.commit()
        if confidence:
            confidence.commit()
    write_attribute_table(folder / "semantic.tif", classes, dict(enumerate(pixels.tolist())))
    return regions.replace_objects(scene, plan.options) if regions else scene


def _write_vectors(plan: ScenePlan, folder: Path, objects: MaskSet, source: Any, bundle: Bundle) -> None:
    """objects.gpkg with its style, objects.parquet; objects.fgb and layers.tif where they are asked for."""
    names = (*NAMES, "objects.fgb") if plan.write.flatgeobuf else NAMES
    outline = Outline(plan.write.simplify_m, plan.write.regularise_m)
    write_objects(folder, objects, source.geometry, bundle.adapter.classes, names, outline)
    write_style(folder / "objects.qml", bundle.adapter.classes)
    if plan.write.layers:
        write_layers(folder / "layers.tif", objects, source.geometry)


def warnings_for(source: Any, scene: Assembled) -> list[str]:
    """What a reader of the outputs has to know."""
    notes = []
    if source.geometry.crs is None:
        notes.append("The scene has no CRS: geometries are in its own coordinates and areas in pixels (area_px).")
    if scene.ambiguous_links:
        notes.append(f"{scene.ambiguous_links} links between tiles could not be decided from masks alone.")
    return notes


def _losses(lost: Losses, shape: tuple[int, int]) -> list[str]:
    """One warning for what could not be read; InputError where that is the whole scene."""
    if not lost:
        return []
    pixels = lost_pixels(set(lost), shape)
    first, reason = min(lost.items())
    if pixels == shape[0] * shape[1]:
        raise InputError(reason)
    return [
        f"{pixels} pixels in {len(lost)} windows could not be read and count as no data; the first: rows "
        f"{first[0]}-{first[1]}, columns {first[2]}-{first[3]} ({reason})."
    ]


def forecast(plan: ScenePlan, out: str | Path) -> Forecast:
    """Estimate a run by timing the model on one tile of the scene (after one to warm up)."""
    bundle = open_bundle(plan)
    predictor = Predictor(bundle.build(), bundle.adapter, plan.options)
    tiles = plan.grid.tiles
    with open_scene(plan, bundle.adapter) as source:
        middle = tiles[len(tiles) // 2]
        list(predict_tiles(source, [middle], predictor))
        started = time.perf_counter()
        list(predict_tiles(source, [middle], predictor))
        seconds = time.perf_counter() - started
    work = work_path(plan, out)
    done = sum(is_finished(plan, number, work) for number in range(len(plan.shards)))
    left = sum(len(s) for n, s in enumerate(plan.shards) if not is_finished(plan, n, work))
    side, classes = plan.options.tile or 0, len(bundle.adapter.classes)
    width = min(plan.shape[1], block_width(plan.grid, classes))
    return Forecast(
        tiles=len(tiles),
        shards=len(plan.shards),
        finished_shards=done,
        # What the process holds now, and the open rows of the blender with their copies; of a shard a few tiles.
        memory_bytes=psutil.Process().memory_info().rss + 2 * side * width * (classes + 1) * 4,
        disk_bytes=disk_bytes(plan, len(tiles), classes),
        seconds=left * seconds,
    )


def _run_shards(plan: ScenePlan, work: Path, executor: ExecutorOptions, on_progress: Progress | None) -> None:
    done = 0

    def tiles_done(tiles: int) -> None:
        nonlocal done
        done += tiles
        if on_progress:
            on_progress(f"{plan.stem}: tiles", done, len(plan.grid))

    def shard_done(number: int, computed: bool) -> None:
        # The serial executor tells of each tile; the others, and shards that were there, come whole.
        if executor.kind != "serial" or not computed:
            tiles_done(len(plan.shards[number]))

    run_shards(plan, work, executor, shard_done, lambda: tiles_done(1))
