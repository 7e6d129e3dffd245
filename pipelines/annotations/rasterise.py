"""Geometries in pixel coordinates to masks, each object by itself, so that overlaps stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from maskformer.masks import MaskSet
from maskformer.runs import lines_to_runs


@dataclass(frozen=True)
class Rasterised:
    """objects: the geometries that have a pixel in the picture, in order; kept: (N,) which ones those are.

    tiny: how many caught no pixel centre and got the pixels they touch instead.
    """

    objects: MaskSet
    kept: NDArray[np.bool_]
    tiny: int


def rasterise(geometries: Iterable[BaseGeometry], labels: NDArray[np.int64], shape: tuple[int, int]) -> Rasterised:
    """Burn each geometry into its own bounding box: a pixel belongs to it if its centre does (GDAL's rule).

    geometries: valid polygons or multipolygons in pixel coordinates (x = column, y = row, pixel (0, 0) covers 0..1).
    An object smaller than a pixel may catch no centre and then gets the pixels it touches; the sliver of an object
    that the picture's border cuts off does not.
    """
    runs, offsets, kept, tiny = [], [0], [], 0
    for geometry in geometries:
        mask, corner, fallback = _burn(geometry, shape)
        found = mask is not None and bool(mask.any())
        kept.append(found)
        if mask is None or not found:
            continue
        tiny += fallback
        line, start, stop = lines_to_runs(mask)
        runs.append(np.column_stack([line + corner[0], start + corner[1], stop + corner[1]]))
        offsets.append(offsets[-1] + len(line))
    keep = np.array(kept, bool)
    rows = np.concatenate(runs) if runs else np.zeros((0, 3), np.int64)
    return Rasterised(MaskSet(shape, rows, offsets, labels[keep]), keep, tiny)


def _burn(geometry: BaseGeometry, shape: tuple[int, int]) -> tuple[NDArray[np.bool_] | None, tuple[int, int], bool]:
    """Mask of the geometry's box inside the picture (None: it is outside), its corner, and whether it was tiny."""
    if geometry.is_empty:
        return None, (0, 0), False
    xmin, ymin, xmax, ymax = geometry.bounds
    height, width = shape
    top, left = max(int(np.floor(ymin)), 0), max(int(np.floor(xmin)), 0)
    bottom, right = min(int(np.ceil(ymax)), height), min(int(np.ceil(xmax)), width)
    if top >= bottom or left >= right:
        return None, (0, 0), False
    size, place = (bottom - top, right - left), Affine.translation(left, top)
    mask = rasterize([geometry], size, transform=place, dtype=np.uint8).astype(bool)
    whole = xmin >= 0 and ymin >= 0 and xmax <= width and ymax <= height
    if mask.any() or not whole:
        return mask, (top, left), False
    mask = rasterize([geometry], size, transform=place, dtype=np.uint8, all_touched=True).astype(bool)
    if not mask.any():  # thinner than GDAL's arithmetic sees
        point = geometry.representative_point()
        mask[min(int(point.y), bottom - 1) - top, min(int(point.x), right - 1) - left] = True
    return mask, (top, left), True
