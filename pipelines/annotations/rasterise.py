"""Geometries in pixel coordinates to masks, each object by itself, so that overlaps stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from maskformer.masks import MaskSet
from maskformer.runs import expand, lines_to_runs, offsets_of


@dataclass(frozen=True)
class Rasterised:
    """objects: the geometries that have a pixel in the picture, in order; kept: (N,) which ones those are.

    tiny: how many caught no pixel centre and got the pixels they touch instead.
    """

    objects: MaskSet
    kept: NDArray[np.bool_]
    tiny: int


def rasterise(
    geometries: Sequence[BaseGeometry] | NDArray[np.object_], labels: NDArray[np.int64], shape: tuple[int, int]
) -> Rasterised:
    """Burn each geometry by itself: a pixel belongs to it if its centre does.

    geometries: valid polygons or multipolygons in pixel coordinates (x = column, y = row, pixel (0, 0) covers 0..1).
    The pixels are those of rasterio.features.rasterize (GDAL's scan line rule, ties included), all objects at once
    and straight to runs: a call of rasterize for each object takes about 1 ms, which 100 000 crowns would feel.
    An object smaller than a pixel may catch no centre and then gets the pixels it touches; the sliver of an object
    that the picture's border cuts off does not.
    """
    array = np.array([*geometries, None], object)[:-1]  # the None keeps numpy from looking into the geometries
    owner, row, start, stop = _scan(array, shape)
    caught = np.zeros(len(array), bool)
    caught[owner] = True
    pieces = [(owner, row, start, stop)]
    tiny = 0
    for i in np.flatnonzero(~caught & _inside(array, shape)):
        line, left, right = _touched(array[i], shape)
        pieces.append((np.full(len(line), i), line, left, right))
        caught[i] = True
        tiny += 1
    owner, row, start, stop = (np.concatenate(parts).astype(np.int64) for parts in zip(*pieces))
    order = np.lexsort((start, row, owner))
    runs = np.column_stack([row, start, stop])[order]
    number = np.cumsum(caught) - 1  # objects without a pixel leave
    offsets = offsets_of(number[owner[order]], int(caught.sum()))
    return Rasterised(MaskSet(shape, runs, offsets, labels[caught]), caught, tiny)


def _scan(
    geometries: NDArray[np.object_], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Owner, row, start and stop of the runs whose pixel centres lie inside; unsorted, may touch.

    An edge crosses the scan line y + 0.5 if it begins on or above it and ends below; between an odd and the next even
    crossing x1, x2 of a ring set lie the columns floor(x1 + 0.5) to floor(x2 + 0.5) - 1. A level edge that lies on a
    scan line is filled if it runs leftwards.
    """
    height, width = shape
    parts, part_owner = shapely.get_parts(geometries, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    begin, end, part = points[edge], points[edge + 1], ring_part[ring[edge]]
    level = begin[:, 1] == end[:, 1]

    down = begin[:, 1] < end[:, 1]
    low, high = np.where(down[:, None], begin, end), np.where(down[:, None], end, begin)
    first = np.clip(np.ceil(low[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(high[:, 1] - 0.5), 0, height).astype(np.int64)
    count = np.where(level, 0, last - first)
    row, which = expand(first, count), np.repeat(np.arange(len(edge)), count)
    (x1, y1), (x2, y2) = low[which].T, high[which].T
    column = np.floor((row + 0.5 - y1) * (x2 - x1) / (y2 - y1) + x1 + 0.5)
    order = np.lexsort((column, row, part[which]))
    column, pairs = column[order], order[0::2]

    on_line = level & (begin[:, 0] > end[:, 0]) & (begin[:, 1] % 1 == 0.5)
    owner = part_owner[np.concatenate([part[which[pairs]], part[on_line]])]
    rows = np.concatenate([row[pairs], np.floor(begin[on_line, 1])])
    start = np.concatenate([column[0::2], np.floor(end[on_line, 0] + 0.5)])
    stop = np.concatenate([column[1::2], np.floor(begin[on_line, 0] + 0.5)])
    start, stop = np.clip(start, 0, width), np.clip(stop, 0, width)
    kept = (start < stop) & (rows >= 0) & (rows < height)
    return owner[kept], *(values[kept].astype(np.int64) for values in (rows, start, stop))  # type: ignore[return-value]


def _inside(geometries: NDArray[np.object_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(N,) which geometries lie wholly in the picture and have some extent."""
    if not len(geometries):
        return np.zeros(0, bool)
    xmin, ymin, xmax, ymax = shapely.bounds(geometries).T  # NaN where empty, and then nothing holds
    return (xmin >= 0) & (ymin >= 0) & (xmax <= shape[1]) & (ymax <= shape[0]) & (xmin < shape[1]) & (ymin < shape[0])


def _touched(geometry: BaseGeometry, shape: tuple[int, int]) -> tuple[NDArray, NDArray, NDArray]:
    """Runs (row, start, stop) of all pixels that a geometry inside the picture touches; at least one."""
    xmin, ymin, xmax, ymax = geometry.bounds
    top, left = min(int(ymin), shape[0] - 1), min(int(xmin), shape[1] - 1)
    size = max(int(np.ceil(ymax)) - top, 1), max(int(np.ceil(xmax)) - left, 1)
    place = Affine.translation(left, top)
    mask = rasterize([geometry], size, transform=place, dtype=np.uint8, all_touched=True).astype(bool)
    if not mask.any():  # thinner than GDAL's arithmetic sees
        point = geometry.representative_point()
        mask[min(int(point.y) - top, size[0] - 1), min(int(point.x) - left, size[1] - 1)] = True
    line, start, stop = lines_to_runs(mask)
    return line + top, start + left, stop + left
