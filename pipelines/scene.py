"""What a run over one scene will do, fixed before it starts: source, model, grid, shards.

The plan is small, JSON-serialisable and the same on every worker. Its key names everything that could move a
mask, so a shard computed under another plan is never mistaken for this one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from torch import get_num_threads

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.annotations.options import LabelOptions
from pipelines.aoi import restrict
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import PredictOptions, Strict, WriteOptions
from pipelines.grid import Grid
from pipelines.predictor import settle
from pipelines.sources import open_for
from pipelines.sources.geotiff import local


class ScenePlan(Strict):
    """One scene, one model, one grid. `model` is a bundle folder; `reference` is how the user named it.

    `labels` are drawn on the report and change nothing else; `write` says which files there are; `threads` share a
    forward pass on a CPU, on every machine alike, because sums in another order may move the last digit of a score;
    `batch` is what `auto` of the options was settled to, and is kept with the shards (see `pipelines.batching`);
    `run` is the id of the Prefect run that asked, by which a repeated run finds what it had already written.
    """

    source: str
    source_sha256: str
    source_stat: tuple[int, int] | None  # bytes and time of change (ns); None for what is no local file
    shape: tuple[int, int]
    model: str
    model_sha256: str
    model_digest: str
    model_version: str | None
    reference: str
    options: PredictOptions
    labels: str | None = None
    label_options: LabelOptions = LabelOptions()
    write: WriteOptions = WriteOptions()
    threads: int = Field(default_factory=get_num_threads)
    batch: int | None = Field(None, gt=0)
    run: str | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @property
    def grid(self) -> Grid:
        assert self.options.tile is not None and self.options.overlap is not None, "settled in plan_scene"
        return Grid(self.shape, self.options.tile, self.options.overlap)

    @property
    def settled(self) -> PredictOptions:
        """The options with the batch that was found for this run."""
        return self.options if self.batch is None else self.options.model_copy(update={"batch": self.batch})

    @property
    def shards(self) -> tuple[range, ...]:
        """Tile numbers of each shard: whole rows of tiles, at least `shard_tiles` of them."""
        tiles, columns = len(self.grid), self.grid.counts[1]
        step = columns * -(-self.options.shard_tiles // columns)
        return tuple(range(start, min(start + step, tiles)) for start in range(0, tiles, step))

    @property
    def key(self) -> str:
        """Hash of everything that could move a mask; where files lie does not."""
        settings = self.options.model_dump(mode="json")
        if self.options.aoi:
            settings["aoi"] = hashlib.sha256(Path(self.options.aoi).read_bytes()).hexdigest()
        if self.options.device == "cpu":
            settings["threads"] = self.threads
        parts = [self.source_sha256, self.model_digest, self.shape, settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The file's name; an address may carry a signature behind a `?`, which is nobody's business."""
        return Path(self.source.partition("?")[0]).name

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def plan_scene(
    source: str | Path,
    model: str | Path,
    options: PredictOptions,
    labels: str | None = None,
    label_options: LabelOptions = LabelOptions(),  # noqa: B008  (frozen)
    write: WriteOptions = WriteOptions(),  # noqa: B008
) -> ScenePlan:
    """Look at the scene and the model, and settle every open option.

    Raises InputError for a scene that cannot be read, a model that is not there, or a band the model needs
    that the scene lacks: before anything is computed or written.
    """
    bundle = load_bundle(model)
    place = local(source)
    stat = _stat(str(place))  # before the hash: a change in between is found at the end
    with open_for(source, bundle.adapter) as scene:
        shape, digest = scene.shape, scene.digest()
        if options.aoi:
            restrict(scene, options.aoi)
        if write.regularise_m and find_spec("buildingregulariser") is None:
            raise InputError("regular outlines need one more package: pip install 'maskbridge[footprints]'")
        metres = write.simplify_m or write.regularise_m
        if metres and scene.geometry.crs is None:
            raise InputError(f"{source}: has no CRS, so outlines cannot be simplified by {metres} metres")
    return ScenePlan(
        source=str(place.resolve() if isinstance(place, Path) else place),
        source_sha256=digest,
        source_stat=stat,
        shape=(int(shape[0]), int(shape[1])),
        model=str(Path(bundle.folder).resolve()),
        model_sha256=bundle.sha256,
        model_digest=bundle.digest,
        model_version=bundle.version,
        reference=str(model),
        options=settle(options, bundle.adapter, bundle.thresholds, bundle.provenance.get("task")),
        labels=labels,
        label_options=label_options,
        write=write,
    )


def check_unchanged(plan: ScenePlan, source: Any) -> None:
    """InputError where the scene's file is no longer the one that was planned: parts of two scenes would mix."""
    if plan.source_stat is not None and _stat(plan.source) == plan.source_stat:
        return
    if source.digest() != plan.source_sha256:
        raise InputError(f"{plan.source}: changed while it was predicted; nothing was written, run it again")


def _stat(path: str) -> tuple[int, int] | None:
    file = Path(path)
    if not file.is_file():  # a folder, an address: its digest tells
        return None
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def open_bundle(plan: ScenePlan) -> Bundle:
    return load_bundle(plan.model)


@contextmanager
def open_scene(plan: ScenePlan, adapter: DomainAdapter) -> Iterator[Any]:
    """The plan's source with the model's channels, seen only inside the area of interest."""
    with open_for(plan.source, adapter) as source:
        yield restrict(source, plan.options.aoi) if plan.options.aoi else source
