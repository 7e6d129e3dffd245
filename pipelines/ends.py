"""Where a long fragment runs out of its tile: the place on the tile's border, and the way it was going."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REACH = 32  # px back along the fragment from which its heading is taken


class End(NamedTuple):
    """One place where the inner border of a fragment's tile cuts it.

    side: 2 a for the low side along axis a, 2 a + 1 for the high one; point: its middle, in scene pixels; heading: unit
    vector from the fragment's last pixels to there (zeros where they lie all around it).
    """

    side: int
    point: tuple[float, ...]
    heading: tuple[float, ...]


def ends_of(
    runs: NDArray[np.int32], low: NDArray[np.int64], high: NDArray[np.int64], shape: tuple[int, ...]
) -> list[End]:
    """The ends of a fragment given by its runs in scene coordinates, seen by a tile from `low` to `high`.

    On a picture every stretch of the border that the fragment covers is one end; in a volume every face is.
    """
    found = []
    for axis in range(len(shape)):
        for upper, border, inner in ((0, low[axis], low[axis] > 0), (1, high[axis] - 1, high[axis] < shape[axis])):
            for point in _places(runs, axis, int(border), upper) if inner else ():
                found.append(End(2 * axis + upper, tuple(point.tolist()), tuple(_heading(runs, point).tolist())))
    return found


def _places(runs: NDArray, axis: int, border: int, upper: int) -> list[NDArray[np.float64]]:
    """The middles of what lies on one border."""
    axes = runs.shape[1] - 1
    if axis < axes - 1:
        there = runs[runs[:, axis] == border]
        points = np.column_stack([there[:, :-2], (there[:, -2] + there[:, -1] - 1) / 2])
        if axes == 2:  # each run is a stretch of its own
            return list(points)
        return [np.average(points, axis=0, weights=there[:, -1] - there[:, -2])] if len(there) else []
    there = runs[runs[:, -1] > border] if upper else runs[runs[:, -2] <= border]
    points = np.column_stack([there[:, :-2], np.full(len(there), border)]).astype(np.float64)
    parted = (np.diff(points[:, 0]) > 1) & (axes == 2)
    stretches = np.flatnonzero(parted) + 1
    return [part.mean(axis=0) for part in np.split(points, stretches) if len(part)]


def _heading(runs: NDArray, point: NDArray[np.float64]) -> NDArray[np.float64]:
    near = runs[(np.abs(runs[:, :-2] - point[:-1]) <= REACH).all(axis=1)]
    start, stop = np.maximum(near[:, -2], point[-1] - REACH), np.minimum(near[:, -1], point[-1] + REACH + 1)
    near, start, stop = near[stop > start], start[stop > start], stop[stop > start]
    pixels = np.column_stack([near[:, :-2], (start + stop - 1) / 2])
    way = point - np.average(pixels, axis=0, weights=stop - start)
    length = float(np.linalg.norm(way))
    return way / length if length > 0 else way
