"""Point labels onto the picture: outside, twice, and as discs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from adapters.errors import InputError
from adapters.points import PointRule
from pipelines.annotations.tables import Table

CORNERS = 64  # of the polygon that stands for a disc; it misses 0.16 % of the area


def is_point(geometries: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(N,) which geometries are points."""
    return shapely.get_type_id(geometries) == 0


def one_point_a_row(table: Table) -> Table:
    """Multi-points taken apart: each of their points is an object of its own."""
    types = shapely.get_type_id(table.geometries)
    if not (types == 4).any():
        return table
    # Only where it is safe: an empty geometry has no part and has to stay, to be reported with its row.
    parts = [list(shapely.get_parts(g)) if t == 4 else [g] for g, t in zip(table.geometries, types)]
    parts = [found or [g] for found, g in zip(parts, table.geometries)]
    index = np.repeat(np.arange(len(parts)), [len(found) for found in parts]).tolist()
    geometries = np.array([*(g for found in parts for g in found), None], object)[:-1]
    rows = [table.rows[i] for i in index]
    return Table(
        table.file,
        geometries,
        rows,
        {name: [values[i] for i in index] for name, values in table.columns.items()},
        table.crs,
        table.boxes,
        table.pixels,
        table.class_column,
        None if table.images is None else [table.images[i] for i in index],
        table.size,
        table.row_word,
        table.pictures,
    )


def table_of_points(file: Any, points: NDArray, what: str = "point", **settings: Any) -> Table:
    """A table of (N, 2) x and y in pixels; InputError names the first that is not a finite number."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise InputError(f"{file}: {what} {bad[0] + 1}: expected finite numbers, found {points[bad[0]].tolist()}")
    geometries = np.asarray(shapely.points(points), object).reshape(-1)
    return Table(file, geometries, range(1, len(points) + 1), pixels=True, row_word=what, **settings)


def centres_of(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """Outlines and boxes by their centroids, points as they are."""
    empty = shapely.is_empty(geometries)
    result = geometries.copy()
    result[~empty] = np.atleast_1d(shapely.centroid(geometries[~empty]))
    return result


def to_discs(
    geometries: NDArray[np.object_], shape: Sequence[int], rule: PointRule
) -> tuple[NDArray[np.object_], dict[str, int]]:
    """Points in pixels of the picture become discs, and what was done about odd ones is counted.

    geometries: (N,), others than points stay; points that are left out become empty polygons. shape: (H, W). A point
    is on the picture where 0 <= x < W and 0 <= y < H. Counts: `outside`, `duplicates`, `left_out`.
    """
    which = np.flatnonzero(is_point(geometries))
    points = shapely.get_coordinates(geometries[which])
    size = np.array([shape[1], shape[0]], np.float64)
    outside = ((points < 0) | (points >= size)).any(axis=1)
    if rule.outside == "clip":
        points = np.clip(points, 0, size - 0.5)
    repeated = np.ones(len(points), bool)
    repeated[np.unique(points, axis=0, return_index=True)[1]] = False
    repeated &= ~outside | (rule.outside == "clip")
    left_out = np.zeros(len(points), bool) if rule.outside == "clip" else outside.copy()
    if rule.duplicates == "drop":
        left_out |= repeated
    kept = ~left_out
    discs = np.full(len(points), shapely.Polygon(), object)
    discs[kept] = circles(points[kept], rule.radii(points[kept]))
    result = geometries.copy()
    result[which] = discs
    facts = {"outside": int(outside.sum()), "duplicates": int(repeated.sum()), "left_out": int(left_out.sum())}
    return result, facts


def circles(points: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.object_]:
    """(N,) polygons of `CORNERS` corners round (N, 2) points."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.asarray(shapely.polygons(points[:, None] + radii[:, None, None] * rim), object).reshape(-1)
