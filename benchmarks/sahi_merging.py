"""SAHI's merging of the same objects of the same tiles: its own post-processing over polygons on pixel edges.

Its own drawing of polygons is not used: it makes them one pixel too wide to the right and below, which would cost it a
quarter of a 3-px line. Holes are left out, because its merged masks have none.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, NamedTuple

import numpy as np
import rasterio.features
from shapely.geometry import MultiPolygon, Polygon

from maskformer.masks import MaskSet
from pipelines.grid import Grid, Tile
from pipelines.sinks.outlines import outlines

Parts = list[tuple[Tile, MaskSet]]


class Setting(NamedTuple):
    """What SAHI's `get_sliced_prediction` calls postprocess_type, _match_metric and _match_threshold."""

    kind: str
    metric: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.kind} {self.metric} {self.threshold}"


DEFAULT = Setting("GREEDYNMM", "IOS", 0.5)
GRID = tuple(
    Setting(*one)
    for one in itertools.product(("GREEDYNMM", "NMM", "NMS"), ("IOS", "IOU"), (0.05, 0.1, 0.3, 0.5, 0.7, 0.9))
)


def predictions(grid: Grid, parts: Parts) -> list[Any]:
    """The objects of all tiles as SAHI's predictions, moved to their place in the scene."""
    from sahi.prediction import ObjectPrediction

    height, width = grid.shape
    found = []
    for tile, masks in parts:
        top, left = tile.offset
        for outline, label, score in zip(outlines(masks), masks.labels, masks.scores, strict=True):
            rings = [np.asarray(part.exterior.coords[:-1]).ravel().tolist() for part in outline.geoms]
            one = ObjectPrediction(
                segmentation=rings,
                category_id=int(label),
                category_name=str(label),
                score=float(score),
                shift_amount=[left, top],
                full_shape=[height, width],
            )
            found.append(one.get_shifted_object_prediction())
    return found


def merge(shape: tuple[int, ...], objects: list[Any], setting: Setting) -> tuple[MaskSet, float]:
    """What SAHI makes of its predictions, class by class, and the seconds of its own call alone."""
    from sahi.postprocess.combine import GreedyNMMPostprocess, NMMPostprocess, NMSPostprocess

    process = {"GREEDYNMM": GreedyNMMPostprocess, "NMM": NMMPostprocess, "NMS": NMSPostprocess}[setting.kind](
        match_threshold=setting.threshold, match_metric=setting.metric, class_agnostic=False
    )
    began = time.perf_counter()
    found = process(list(objects))
    seconds = time.perf_counter() - began
    sets = [_drawn(shape, one) for one in found]
    return MaskSet.concatenate(sets or [MaskSet.empty(shape)]), seconds


def by_sahi(grid: Grid, parts: Parts, setting: Setting) -> MaskSet:
    """The objects of all tiles, put together by SAHI."""
    return merge(grid.shape, predictions(grid, parts), setting)[0]


def _drawn(shape: tuple[int, ...], one: Any) -> MaskSet:
    """One of SAHI's objects on the canvas: the pixels whose centre lies in its polygons."""
    rings = [np.array(ring).reshape(-1, 2) for ring in one.mask.segmentation]
    polygon = MultiPolygon([Polygon(ring) for ring in rings if len(ring) > 2])
    low = np.floor(np.min([ring.min(axis=0) for ring in rings], axis=0)).astype(int).clip(0)
    high = np.ceil(np.max([ring.max(axis=0) for ring in rings], axis=0)).astype(int).clip(low + 1, shape[::-1])
    size = (high - low)[::-1]
    window = rasterio.Affine.translation(*low.tolist())
    mask = rasterio.features.rasterize([polygon], out_shape=tuple(size.tolist()), transform=window)
    found = MaskSet.from_dense(mask[None], np.array([one.category.id]), np.array([one.score.value], np.float32))
    return found.place(shape, low[::-1].tolist())
