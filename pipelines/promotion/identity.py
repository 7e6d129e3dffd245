"""Rule `identity`: truth cut by the artifact's own grid and put together by its own adapter comes back, exactly.

The scenes are made here, large enough for three by three of its tiles: discs, parcels that touch, rivers over the whole
scene, lakes with islands, and, where the adapter lets objects overlap, objects inside objects. Nothing of the network
takes part: what is refused is a grid without enough overlap to know an object again, or an output rule that loses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from maskformer.masks import MaskSet
from pipelines.assembly import ClassMapper, RegionMapper, Window, assemble, limit
from pipelines.config import PredictOptions
from pipelines.grid import Grid, Tile
from pipelines.predictor import TileResult
from pipelines.promotion.policy import Verdict
from pipelines.promotion.units import class_ids
from pipelines.regions import regions

Rng = np.random.Generator
LARGEST = 2200  # pixels a side of a made scene; fewer than three tiles of more than 800 px are seams enough


def check_identity(adapter: DomainAdapter, options: PredictOptions, seed: int = 0) -> Verdict:
    """Cut, stitch and compare every family. `options` settled: the artifact's tile, overlap and task."""
    assert options.tile is not None and options.overlap is not None, "settled options"
    side = min(3 * options.tile - 2 * options.overlap - options.tile // 3, LARGEST)  # the last tile is shifted inside
    rng = np.random.default_rng(seed)
    faults, objects = [], 0
    families = {**FAMILIES, **({"nested": nested} if adapter.overlap == "free" else {})}
    for name, make in families.items():
        truth = _labelled(make(rng, max(side, 48)), rng, adapter)
        objects += len(truth)
        fault = _fault(truth, adapter, options)
        if fault:
            faults.append(f"{name}: {fault}")
    grid = f"tiles of {options.tile} px with {options.overlap} px of overlap"
    says = f"{grid}: {'; '.join(faults)}" if faults else f"{objects} objects come back exactly through {grid}"
    return Verdict("identity", not faults, says, {"faults": faults, "objects": objects})


def _fault(truth: MaskSet, adapter: DomainAdapter, options: PredictOptions) -> str | None:
    """What came back wrong."""
    found, ids = _round_trip(truth, adapter, options)
    wrong = int((ids != class_ids(truth)).sum()) if adapter.overlap == "exclusive" or options.task == "semantic" else 0
    if wrong:
        return f"{wrong} pixels of the class map changed"
    wanted = regions(class_ids(truth), len(adapter.classes)) if options.task == "semantic" else truth
    wanted = limit(wanted, options)
    if found.same_set(wanted):
        return None
    if len(found) != len(wanted):
        return f"{len(wanted)} objects became {len(found)}"
    return f"{len(wanted)} objects came back with other outlines, classes or scores"


def _round_trip(truth: MaskSet, adapter: DomainAdapter, options: PredictOptions) -> tuple[MaskSet, NDArray[np.uint8]]:
    assert options.tile is not None and options.overlap is not None
    grid = Grid(truth.shape, options.tile, options.overlap)
    shape = (truth.shape[0], truth.shape[1])
    ids = np.zeros(shape, np.uint8)

    def write(window: Window, band: np.ndarray) -> None:
        ids[window] = band

    mapper = ClassMapper(adapter, 0.5, write)
    mapped = RegionMapper(shape, adapter, {}) if options.task == "semantic" else None

    def on_band(window: Window, probabilities: np.ndarray, valid: np.ndarray) -> None:
        mapper(window, probabilities, valid)
        if mapped:
            mapped(window, probabilities, valid)

    scene = assemble(_tiles(truth, grid, adapter, options), grid, adapter, options, on_band)
    return (mapped.replace_objects(scene, options) if mapped else scene).objects, ids


def _tiles(
    truth: MaskSet, grid: Grid, adapter: DomainAdapter, options: PredictOptions
) -> Iterator[tuple[Tile, TileResult]]:
    """What a perfect model gives for each tile."""
    classes = len(adapter.classes)
    for tile in grid:
        seen = truth.crop(tile.window)
        probabilities = (class_ids(seen)[None] == np.arange(1, classes + 1)[:, None, None]).astype(np.float16)
        objects = MaskSet.empty(tile.shape) if options.task == "semantic" else seen
        yield tile, TileResult(objects, probabilities, np.ones(tile.shape, bool))


def _labelled(truth: MaskSet, rng: Rng, adapter: DomainAdapter) -> MaskSet:
    """The family with classes of this adapter and scores that pass any threshold, under its overlap rule."""
    truth = truth.with_labels(rng.integers(0, len(adapter.classes), len(truth)))
    return adapter.outputs(truth.with_scores(np.ones(len(truth)))).canonical()


def discs(rng: Rng, side: int) -> MaskSet:
    """Separate discs on a lattice, moved by chance; some are cut by the scene's border."""
    step = 24
    ids = np.zeros((side, side), np.int32)
    for number, (row, column) in enumerate(np.ndindex(-(-side // step), -(-side // step)), start=1):
        y, x = (np.array([row, column]) * step + rng.uniform(8, 16, 2)).tolist()
        _draw(ids, number, y, x, rng.uniform(3, 7))
    return MaskSet.from_label_map(ids)


def parcels(rng: Rng, side: int) -> MaskSet:
    """Strips and fields that touch and tile the plane."""
    rows = np.cumsum(rng.random(side) < 1 / 21)
    columns = np.cumsum(rng.random(side) < 1 / 33)
    return MaskSet.from_label_map((rows[:, None] * (columns[-1] + 1) + columns[None] + 1).astype(np.int32))


def rivers(rng: Rng, side: int) -> MaskSet:
    """Bands that wind from one border to the other, through every tile on their way."""
    ids = np.zeros((side, side), np.int32)
    across = np.arange(side)
    for number, middle in enumerate(range(20, side - 20, 60), start=1):
        swing = middle + 10 * np.sin(across / rng.uniform(15, 40))
        ids[np.abs(np.arange(side)[:, None] - swing[None]) < rng.uniform(3, 6)] = number
    return MaskSet.from_label_map(ids)


def lakes(rng: Rng, side: int) -> MaskSet:
    """A lake larger than a tile, an island in it with a pond in it, and small lakes around."""
    ids = np.zeros((side, side), np.int32)
    middle = side / 2
    for number, share in enumerate((0.45, 0.25, 0.1), start=1):
        _draw(ids, number, middle, middle, share * side)
    for number, place in enumerate(((0.04, 0.04), (0.04, 0.96), (0.96, 0.04)), start=4):
        _draw(ids, number, place[0] * side, place[1] * side, 0.03 * side)
    return MaskSet.from_label_map(ids)


def nested(rng: Rng, side: int) -> MaskSet:
    """Discs inside discs, each whole: objects that overlap."""
    inner, outer = discs(rng, side), lakes(rng, side)
    return MaskSet.concatenate([outer, inner])


def _draw(ids: NDArray[np.int32], number: int, y: float, x: float, radius: float) -> None:
    top, left = max(int(y - radius), 0), max(int(x - radius), 0)
    part = ids[top : int(y + radius) + 2, left : int(x + radius) + 2]
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    part[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = number


FAMILIES: dict[str, Callable[[Rng, int], MaskSet]] = {one.__name__: one for one in (discs, parcels, rivers, lakes)}
