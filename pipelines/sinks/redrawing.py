"""Outlines that leave the pixel edges: with fewer corners, or with right angles as a surveyor would draw buildings.

The rules of regular outlines are buildingregulariser's (MIT, extra `footprints`). Whatever it makes of an object, the
object stays one row, and where little of it would be left it keeps the outline of its pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

from adapters.errors import InputError
from pipelines.sinks.areas import crs_of, metres_per_unit
from pipelines.sinks.cog import HasPlace

LEAST_IOU = 0.6  # of the regular outline with the pixels': below, it is another shape


@dataclass(frozen=True)
class Outline:
    """How far outlines may leave the pixel edges, in metres: simplified, or regular as buildings are; None: not."""

    simplify_m: float | None = None
    regularise_m: float | None = None


def redrawn(shapes: geopandas.GeoSeries, geometry: HasPlace | None, outline: Outline) -> geopandas.GeoSeries:
    """Valid outlines as wanted, each object by itself: neighbours that shared an edge may overlap or part.

    Simplified ones are at most so many metres from the pixel edges (Douglas-Peucker; GEOS may also drop a ring's first
    corner, and is then up to half as far again from it). InputError without a CRS, where there are no metres.
    """
    if not (outline.simplify_m or outline.regularise_m):
        return shapes
    if geometry is None or geometry.crs is None:
        raise InputError("outlines in metres need a scene with a CRS")
    if shapes.empty:
        return shapes
    crs = crs_of(geometry.crs)
    assert crs is not None
    east, north = metres_per_unit(shapes.total_bounds, crs)
    drawn = shapely.transform(shapes.values, lambda points: points * (east, north))
    if outline.regularise_m:
        drawn = regularised(np.asarray(drawn), outline.regularise_m)
    if outline.simplify_m:
        drawn = shapely.simplify(drawn, outline.simplify_m, preserve_topology=True)
    return geopandas.GeoSeries(
        shapely.transform(drawn, lambda points: points / (east, north)), index=shapes.index, crs=shapes.crs
    )


def regularised(shapes: NDArray[np.object_], metres: float) -> NDArray[np.object_]:
    """(N,) polygons in metres → as many, whose edges meet at 90 or 45 degrees; holes kept, circles found.

    metres: how far an edge may leave the pixels' before a corner stays.
    """
    from buildingregulariser import regularize_geodataframe

    if not len(shapes):
        return shapes
    frame = geopandas.GeoDataFrame({"number": np.arange(len(shapes))}, geometry=geopandas.GeoSeries(shapes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes it gives up on, which are found below
        parts = regularize_geodataframe(
            frame, parallel_threshold=metres, simplify_tolerance=metres, num_cores=1, neighbor_alignment=False
        )
    result = shapes.copy()
    for number, found in parts.groupby("number").geometry:
        whole = shapely.union_all(shapely.make_valid(found.values))
        if _is_alike(whole, shapes[number]):
            result[number] = whole
    return result


def _is_alike(shape: shapely.Geometry, pixels: shapely.Geometry) -> bool:
    if shape is None or shape.geom_type not in ("Polygon", "MultiPolygon") or shape.is_empty:
        return False
    both = shapely.area(shapely.intersection(shape, pixels))
    return bool(both >= LEAST_IOU * (shapely.area(shape) + shapely.area(pixels) - both))
