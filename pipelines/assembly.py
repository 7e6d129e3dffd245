"""Tiles back into one scene: objects by the stitching law, classes by blended probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters.base import DomainAdapter
from maskformer.masks import MaskSet
from pipelines.blending import Blender, block_width, column_blocks
from pipelines.config import PredictOptions
from pipelines.grid import Grid, Tile
from pipelines.predictor import Predictor, TileResult
from pipelines.regions import RegionCollector
from pipelines.shard_file import Found
from pipelines.shards import predict_tiles
from pipelines.stitching import Stitcher

NODATA = 255
DEFAULT_SEMANTIC = 0.5  # a pixel is "nothing" where no class reaches this, unless the classes cover the plane

Window = tuple[slice, ...]
Band = Callable[[Window, np.ndarray, np.ndarray], None]  # window (h, w), (K, h, w) probabilities, (h, w) seen


@dataclass(frozen=True)
class Assembled:
    """`objects` on the scene canvas in canonical order; `ambiguous_links` is what masks could not decide."""

    objects: MaskSet
    ambiguous_links: int


def assemble(
    results: Iterable[tuple[Tile, TileResult]],
    grid: Grid,
    adapter: DomainAdapter,
    options: PredictOptions,
    on_band: Band,
) -> Assembled:
    """`stitch` and `blend` in one pass over tiles that come once, in row-major order."""
    blender = Blender(grid, len(adapter.classes))

    def fragments() -> Iterator[tuple[Tile, Found]]:
        for tile, result in results:
            yield tile, (result.objects, result.traits)
            for band in blender.add(tile, result.probabilities.astype(np.float32), result.valid):
                on_band(*band)

    scene = stitch(fragments(), grid, adapter, options)
    for band in blender.finish():
        on_band(*band)
    return scene


def stitch(
    fragments: Iterable[tuple[Tile, Found]], grid: Grid, adapter: DomainAdapter, options: PredictOptions
) -> Assembled:
    """The scene's objects from those of all tiles of `grid`, given in row-major order with their traits.

    Objects pass the adapter's overlap rule, then the score and area limits of `options`: after stitching, for a
    fragment at a seam is smaller than its object.
    """
    stitcher = Stitcher(grid)
    parts = [stitcher.add(tile, objects, traits) for tile, (objects, traits) in fragments]
    parts.append(stitcher.finish())
    objects = adapter.outputs(MaskSet.concatenate(parts))
    return Assembled(limit(objects, options).canonical(), stitcher.ambiguous_links)


def blend(
    results: Callable[[Callable[[Tile], bool]], Iterable[tuple[Tile, TileResult]]],
    grid: Grid,
    channels: int,
    on_band: Band,
) -> None:
    """Blend the classes of the tiles of `grid`, block of columns by block of columns, so that a wide scene needs no
    more memory than a narrow one.

    results: asked for the tiles a block needs, gives them in row-major order. Every finished band of blended
    probabilities goes to `on_band` and is forgotten.
    """
    for columns in column_blocks(grid, block_width(grid, channels)):
        blender = Blender(grid, channels, columns)
        needed = iter(results(blender.sees))
        for tile in grid:
            if not blender.sees(tile):
                bands = blender.skip(tile)
            else:
                found, result = next(needed)
                assert found == tile, "tiles in row-major order"
                bands = blender.add(tile, result.probabilities.astype(np.float32), result.valid)
            for band in bands:
                on_band(*band)
        blender.finish()


def limit(objects: MaskSet, options: PredictOptions) -> MaskSet:
    """Only the objects that reach the score and the area asked for."""
    return objects[(objects.areas >= options.min_area) & (objects.scores >= (options.score or 0.0))]


@dataclass(frozen=True)
class ClassMapper:
    """Turns bands of probabilities into bands of class ids and passes them on to `write(window, ids)`."""

    adapter: DomainAdapter
    threshold: float
    write: Callable[[Window, np.ndarray], None]

    def __call__(self, window: Window, probabilities: np.ndarray, valid: np.ndarray) -> None:
        self.write(window, class_map(probabilities, valid, self.adapter, self.threshold))


class RegionMapper:
    """Objects of a per-pixel task: the regions of the class map.

    Cut at `thresholds["regions"]` where there is one, else as the class map is: at the best IoU, neighbours flow
    together.
    """

    def __init__(self, shape: tuple[int, int], adapter: DomainAdapter, thresholds: Mapping[str, float]) -> None:
        self._collector = RegionCollector(shape, len(adapter.classes))
        threshold = thresholds.get("regions", thresholds.get("semantic", DEFAULT_SEMANTIC))
        self._mapper = ClassMapper(adapter, threshold, self._collector.add)

    def __call__(self, window: Window, probabilities: np.ndarray, valid: np.ndarray) -> None:
        self._mapper(window, probabilities, valid)

    def replace_objects(self, scene: Assembled, options: PredictOptions) -> Assembled:
        """The scene with the regions for objects."""
        found = limit(self._collector.finish(), options)
        return Assembled(found.canonical(), scene.ambiguous_links)


def class_map(probabilities: np.ndarray, valid: np.ndarray, adapter: DomainAdapter, threshold: float) -> np.ndarray:
    """(K, h, w) probabilities → (h, w) uint8 class ids; 0 where nothing reaches `threshold`, 255 where invalid."""
    best = probabilities.argmax(0)
    ids = (best + 1).astype(np.uint8)
    if not adapter.covers:
        ids[probabilities.max(0) < threshold] = 0
    ids[~valid] = NODATA
    return ids


def predict_in_memory(
    source: Any,
    predictor: Predictor,
    thresholds: Mapping[str, float],
    on_band: Band | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> tuple[Assembled, np.ndarray]:
    """Predict a whole source (or a view of one) at once: the objects and the (H, W) uint8 class map.

    For evaluation, where the truth is in memory anyway. `on_band` sees the probabilities too, `on_tile` how many
    tiles of how many are done.
    """
    options = predictor.options
    assert options.tile is not None and options.overlap is not None, "settled options"
    ids = np.zeros(source.shape, np.uint8)

    def write(window: Window, band: np.ndarray) -> None:
        ids[window] = band

    mapper = ClassMapper(predictor.adapter, thresholds.get("semantic", DEFAULT_SEMANTIC), write)
    mapped = RegionMapper(source.shape, predictor.adapter, thresholds) if options.task == "semantic" else None

    def both(window: Window, probabilities: np.ndarray, valid: np.ndarray) -> None:
        mapper(window, probabilities, valid)
        if mapped:
            mapped(window, probabilities, valid)
        if on_band:
            on_band(window, probabilities, valid)

    grid = Grid(source.shape, options.tile, options.overlap)

    def results() -> Iterator[tuple[Tile, TileResult]]:
        for done, result in enumerate(predict_tiles(source, grid.tiles, predictor), start=1):
            yield result
            if on_tile:
                on_tile(done, len(grid))

    scene = assemble(results(), grid, predictor.adapter, options, both)
    return (mapped.replace_objects(scene, options) if mapped else scene), ids
