"""Outlines of masks along pixel edges, traced from row runs: exact, valid, and as large as the objects' borders.

Corners are where the borders of two neighbouring rows differ. Along every row line and along every column line corners
pair up into edges, so that a ring is walked by taking row edges and column edges in turn. All objects are traced at
once, and no mask is ever drawn: a road network across a whole scene costs its border, not its bounding box.

Where two pixels of an object touch at a corner only, four corners of the plane meet. If they belong to one 4-connected
part, the ring keeps them together there, and a hole touches the outside in one point; if not, it keeps the parts apart.
Either way no ring meets itself, which is what makes every polygon valid (OGC 06-103r4, 6.1.11).
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from maskformer.masks import MaskSet
from maskformer.runs import overlapping_pairs

Ints = NDArray[np.int64]

STOP, START = 0, 1
UPPER, LOWER = 0, 1


def outlines(objects: MaskSet, clockwise: bool = False) -> NDArray[np.object_]:
    """One MultiPolygon an object (N,), in pixel coordinates x = column, y = row, (0, 0) the outer corner of the first
    pixel; an object of area 0 gives an empty one. Parts are 4-connected, in order of their first pixel.

    Exteriors run counter-clockwise where y points up; with `clockwise` the other way, which is counter-clockwise again
    once a north-up affine has turned y round. Pictures only: ValueError on a volume.
    """
    if len(objects.shape) != 2:
        raise ValueError(f"expected objects on a picture, got a canvas {objects.shape}")
    if not len(objects.runs):
        return np.array([shapely.MultiPolygon()] * len(objects), dtype=object)
    owner = np.repeat(np.arange(len(objects)), np.diff(objects.offsets))
    runs = objects.runs.astype(np.int64)
    part = _parts(owner, runs, objects.shape)
    x, y, run, first_covers_below, across = _corners(owner, runs, part, objects.shape)

    rightwards = first_covers_below != clockwise  # (E,) edges along rows, edge e joins corners 2e and 2e + 1
    begin = np.arange(0, len(x), 2) + ~rightwards
    end = np.arange(0, len(x), 2) + rightwards
    walk, ring_start = _rings(across[end] // 2)

    top = walk[ring_start]  # the ring's uppermost edge: inside lies below an exterior and above a hole
    ring_part, hole = part[run[2 * top]], ~first_covers_below[top]
    ring_order = np.lexsort((top, hole, ring_part))
    points, ring_offsets = _closed(begin[walk], end[walk], ring_start, ring_order)
    polygon_offsets = np.append(np.flatnonzero(~hole[ring_order]), len(ring_order))
    part_owner = owner[ring_part[ring_order]][polygon_offsets[:-1]]
    object_offsets = np.searchsorted(part_owner, np.arange(len(objects) + 1))
    coordinates = np.column_stack([x[points], y[points]]).astype(np.float64)
    return shapely.from_ragged_array(
        shapely.GeometryType.MULTIPOLYGON, coordinates, (ring_offsets, polygon_offsets, object_offsets)
    )


def _parts(owner: Ints, runs: Ints, shape: tuple[int, ...]) -> Ints:
    """(R,) the first run of the 4-connected part each run belongs to."""
    stride = shape[1] + 1
    line = (owner * (shape[0] + 1) + runs[:, 0]) * stride  # one line is left free between objects
    start, stop = line + runs[:, 1], line + runs[:, 2]
    above, below = overlapping_pairs(start, stop, start - stride, stop - stride)
    links = coo_array((np.ones(len(above), np.int8), (above, below)), shape=(len(runs), len(runs)))
    _, label = connected_components(links, directed=False)
    _, first = np.unique(label, return_index=True)
    return first[label]


def _corners(
    owner: Ints, runs: Ints, part: Ints, shape: tuple[int, ...]
) -> tuple[Ints, Ints, Ints, NDArray[np.bool_], Ints]:
    """Corners sorted by object, y, x: their x, y and run; for every pair, the edge along the row line, whether the
    object lies below it; and for every corner the other end of its edge along the column line.
    """
    columns = shape[1] + 1
    count = len(runs)
    row, run = np.tile(runs[:, 0], 4), np.tile(np.arange(count), 4)
    side = np.repeat([LOWER, LOWER, UPPER, UPPER], count)  # of the row line, where the run lies
    kind = np.repeat([START, STOP, START, STOP], count)
    x = np.concatenate([runs[:, 1], runs[:, 2], runs[:, 1], runs[:, 2]])
    y = row + (side == UPPER)
    place = (owner[run] * (shape[0] + 1) + y) * columns + x
    order = np.argsort(place * 2 + kind, kind="stable")
    place, x, y, run, side, kind = (values[order] for values in (place, x, y, run, side, kind))

    twin = np.flatnonzero(place[1:] == place[:-1])  # the runs above and below both end or begin here
    straight = kind[twin] == kind[twin + 1]
    kept = np.ones(len(place), bool)
    kept[twin[straight]] = kept[twin[straight] + 1] = False
    # A saddle, pixels touching at a corner only, is two corners: the first (STOP) ends the edge on the left, the second
    # begins the one on the right. Which of the two continues upwards decides whether the pixels stay joined.
    saddle = twin[~straight]
    rising = side[saddle] == LOWER  # the pixels lie like "/": the run below ends where the run above begins
    joined = part[run[saddle]] == part[run[saddle + 1]]
    down_first = np.zeros(len(place), np.int64)
    down_first[saddle] = rising != joined
    down_first[saddle + 1] = ~(rising != joined)

    x, y, run, side, kind, down_first = (values[kept] for values in (x, y, run, side, kind, down_first))
    upright = np.lexsort((down_first, y, x, owner[run]))
    across = np.empty(len(x), np.int64)
    across[upright[0::2]] = upright[1::2]
    across[upright[1::2]] = upright[0::2]
    below = (kind[0::2] == START) == (side[0::2] == LOWER)
    return x, y, run, below, across


def _rings(following: Ints) -> tuple[Ints, Ints]:
    """Cycles of a permutation (E,): the elements in order of walking, and where in that each cycle begins."""
    step = following.tolist()
    seen = bytearray(len(step))
    walk: list[int] = []
    starts: list[int] = []
    for first in range(len(step)):
        if seen[first]:
            continue
        starts.append(len(walk))
        edge = first
        while not seen[edge]:
            seen[edge] = 1
            walk.append(edge)
            edge = step[edge]
    return np.array(walk, np.int64), np.array(starts, np.int64)


def _closed(begin: Ints, end: Ints, ring_start: Ints, ring_order: Ints) -> tuple[Ints, Ints]:
    """Corner numbers of all rings in `ring_order`, each closed by its first corner, and the rings' offsets."""
    lengths = np.diff(np.append(ring_start, len(begin)))[ring_order]
    offsets = np.concatenate([[0], np.cumsum(2 * lengths + 1)])
    edge = np.arange(lengths.sum()) + np.repeat(
        ring_start[ring_order] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths
    )
    at = np.arange(len(edge)) * 2 + np.repeat(np.arange(len(lengths)), lengths)
    points = np.empty(offsets[-1], np.int64)
    points[at], points[at + 1] = begin[edge], end[edge]
    points[offsets[1:] - 1] = begin[ring_start[ring_order]]
    return points, offsets
