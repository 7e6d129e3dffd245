"""A shard: the predictions of a few rows of tiles, computed as one piece of work and kept as one file.

`shard-0003.npz` holds every tile's objects, probabilities and valid pixels (`pipelines.shard_file`); `shard-0003.json`
beside it holds the format, the plan's key, the file's hash, the seconds it took and what of the scene could not be
read, and is written last: a shard is finished when format, key and hash agree.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions
from pipelines.grid import Tile
from pipelines.predictor import Predictor, TileResult, batched
from pipelines.raster_cache import bounded_cache
from pipelines.reading import Losses, Waiting, read_ahead, scene_reader
from pipelines.scene import ScenePlan
from pipelines.shard_file import FORMAT, Found, nothing, read_objects, read_tiles, write_tiles
from pipelines.sinks.folder import atomic_write, sha256
from pipelines.work_folder import alone_with

log = logging.getLogger(__name__)


def predict_shard(plan: ScenePlan, number: int, work: Path, tile_done: Callable[[], None] | None = None) -> bool:
    """Compute shard `number` into `work`, unless its file is there and whole. True where it computed.

    Where another run is at this shard, wait for it and find it.
    """
    if is_finished(plan, number, work):
        return False
    with alone_with(work, number):
        if is_finished(plan, number, work):
            return False
        _compute(plan, number, work, tile_done)
        return True


def warm_up(plan: ScenePlan) -> None:
    """Get this process ready for shards of `plan`: its number of threads, and its model in memory."""
    import torch

    torch.set_num_threads(plan.threads)
    warm_predictor(plan)


def _compute(plan: ScenePlan, number: int, work: Path, tile_done: Callable[[], None] | None) -> None:
    predictor = warm_predictor(plan)
    started = time.perf_counter()
    every = plan.grid.tiles
    tiles = [every[index] for index in plan.shards[number]]
    with bounded_cache(), scene_reader(plan, predictor.adapter) as source:
        waiting = Waiting()

        def results() -> Iterator[TileResult]:
            for _, result in predict_tiles(source, tiles, predictor, waiting):
                yield result
                if tile_done:
                    tile_done()

        def record() -> dict[str, Any]:
            rows = [[*window, reason] for window, reason in sorted(source.lost_in(tiles).items())]
            seconds = round(time.perf_counter() - started, 3)
            return {"seconds": seconds, "waited": round(waiting.seconds, 3), "lost": rows}

        _write(plan, number, work, results(), len(predictor.adapter.classes), record)


def predict_tiles(
    source: Any, tiles: list[Tile], predictor: Predictor, waiting: Waiting | None = None
) -> Iterator[tuple[Tile, TileResult]]:
    """Predict `tiles` of `source`, reading ahead of the model. Tiles without a valid pixel are not run.

    `waiting` takes the seconds for which the model stood still, because its tiles were not read yet.
    """
    groups = list(batched(iter(tiles), predictor.batch, lambda t: tuple(s.stop - s.start for s in t.window)))
    for group, arrays in zip(groups, read_ahead(source, groups, waiting), strict=True):
        yield from zip(group, _predict(arrays, predictor), strict=True)


def is_finished(plan: ScenePlan, number: int, work: Path) -> bool:
    """Whether shard `number` of this very plan lies complete in `work`."""
    data, marker = _paths(work, number)
    if not (data.exists() and marker.exists()):
        return False
    record = json.loads(marker.read_text())
    if record["key"] != plan.key:
        return False
    if record.get("format") != FORMAT:
        log.warning("%s: written by another version of maskbridge, and computed anew", data)
        return False
    return bool(record["sha256"] == sha256(data))


def read_shards(plan: ScenePlan, work: Path, wanted: Callable[[Tile], bool]) -> Iterator[tuple[Tile, TileResult]]:
    """The wanted tiles of the scene in row-major order, one at a time."""
    for number, tiles in _tiles_of_shards(plan):
        chosen = [place for place, tile in enumerate(tiles) if wanted(tile)]
        results = read_tiles(_paths(work, number)[0], [tile.shape for tile in tiles], chosen)
        yield from ((tiles[place], result) for place, result in zip(chosen, results, strict=True))


def read_fragments(plan: ScenePlan, work: Path) -> Iterator[tuple[Tile, Found]]:
    """The objects of all tiles of the scene in row-major order, tile by tile, and their traits."""
    for number, tiles in _tiles_of_shards(plan):
        yield from zip(tiles, read_objects(_paths(work, number)[0], [tile.shape for tile in tiles]), strict=True)


def _tiles_of_shards(plan: ScenePlan) -> Iterator[tuple[int, list[Tile]]]:
    every = plan.grid.tiles
    for number, indices in enumerate(plan.shards):
        yield number, [every[index] for index in indices]


def read_losses(plan: ScenePlan, work: Path) -> Losses:
    """What the finished shards could not read of the scene."""
    lost: Losses = {}
    for number in range(len(plan.shards)):
        for *window, reason in json.loads(_paths(work, number)[1].read_text())["lost"]:
            lost[tuple(window)] = reason  # type: ignore[index]
    return lost


def shard_seconds(number: int, work: Path, what: str = "seconds") -> float | None:
    """How long finished shard `number` took to compute, or of that the model `waited`; None where it is not there."""
    try:
        return float(json.loads(_paths(work, number)[1].read_text())[what])
    except (OSError, ValueError, KeyError):
        return None


def _predict(arrays: list[tuple[np.ndarray, np.ndarray]], predictor: Predictor) -> list[TileResult]:
    seen = [pair for pair in arrays if pair[1].any()]
    results = iter(predictor(seen) if seen else [])
    classes = len(predictor.adapter.classes)
    return [next(results) if valid.any() else nothing(valid.shape, classes) for _, valid in arrays]


def warm_predictor(plan: ScenePlan) -> Predictor:
    """This process' predictor for `plan`, built at the first call."""
    with _BUILDING:  # a worker may have several threads
        return _predictor(plan.model, plan.model_digest, plan.settled.model_dump_json())


_BUILDING = threading.Lock()


@lru_cache(maxsize=1)
def _predictor(model: str, digest: str, options: str) -> Predictor:
    """Built once a process: every further shard of the run finds it ready."""
    bundle = load_bundle(model)
    if bundle.digest != digest:
        raise RuntimeError(f"{model}: the model changed since the run was planned")
    return Predictor(bundle.build(), bundle.adapter, PredictOptions.model_validate_json(options))


def _write(
    plan: ScenePlan,
    number: int,
    work: Path,
    results: Iterator[TileResult],
    classes: int,
    record: Callable[[], dict[str, Any]],
) -> None:
    """Write `results` while they are computed, and then what `record` says of them."""
    data, marker = _paths(work, number)
    with atomic_write(data) as temporary:
        write_tiles(temporary, results, classes)
    known = {"format": FORMAT, "key": plan.key, "sha256": sha256(data), **record()}
    with atomic_write(marker) as temporary:
        temporary.write_text(json.dumps(known))


def _paths(work: Path, number: int) -> tuple[Path, Path]:
    return work / f"shard-{number:04d}.npz", work / f"shard-{number:04d}.json"
