"""Arithmetic of row runs: the few vectorised loops `MaskSet` and the stitcher are built from.

A run is a half-open interval on one line of the canvas. The *flat* position of pixel `x` on line `y` is `y
* (width + 1) + x`: one position is left free behind every line, so that a run which ends on the right
border never touches the run that begins the next line.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]

LONG_OBJECT = 4096  # runs from which a crop finds its rows by bisection instead of looking at all of them


def expand(starts: Ints, counts: Ints) -> Ints:
    """Concatenate `arange(start, start + count)` for every pair: (R,), (R,) -> (sum(counts),)."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)


def segment_sums(values: NDArray, offsets: Ints) -> Ints:
    """Sum `values` (R,) over the segments `offsets[i]:offsets[i + 1]`; empty segments give 0."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total[offsets[1:]] - total[offsets[:-1]]


def offsets_of(owners: Ints, count: int) -> Ints:
    """CSR offsets (count + 1,) of a sorted owner array (R,)."""
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    return offsets


def merge(owners: Ints, starts: Ints, stops: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Unite the flat runs of each owner: sorted by owner and position, overlapping and touching runs joined.

    `size` is the number of flat positions of the canvas; owners must be small enough that owner * size fits
    63 bits.
    """
    if not len(owners):
        return owners, starts, stops
    if (int(owners.max()) + 1) * (size + 1) >= 2**63:
        raise ValueError(f"canvas of {size} positions with {int(owners.max()) + 1} objects does not fit 63 bits")
    base = owners * size
    keys, ends = base + starts, base + stops
    if np.any(keys[1:] < keys[:-1]):
        order = np.argsort(keys, kind="stable")
        keys, ends = keys[order], ends[order]
    reach = np.maximum.accumulate(ends)  # never leaks into the next owner: its keys are larger than any end before
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] > reach[:-1]
    last = np.roll(first, -1)
    owner, start = np.divmod(keys[first], size)
    return owner, start, reach[last] - owner * size


def overlapping_pairs(a_start: Ints, a_stop: Ints, b_start: Ints, b_stop: Ints) -> tuple[Ints, Ints]:
    """Indices (i, j) of all pairs of runs that share a position; both sides sorted by start, any overlaps
    inside.

    Every such pair is found once: either b begins inside a, or a begins strictly inside b. The cost is the
    sort plus the number of pairs.
    """
    low = np.searchsorted(b_start, a_start, "left")
    count = np.searchsorted(b_start, a_stop, "left") - low
    i = np.repeat(np.arange(len(a_start)), count)
    j = expand(low, count)
    low = np.searchsorted(a_start, b_start, "right")
    count = np.maximum(np.searchsorted(a_start, b_stop, "left") - low, 0)
    return (
        np.concatenate([i, expand(low, count)]),
        np.concatenate([j, np.repeat(np.arange(len(b_start)), count)]),
    )


def count_overlapping_pairs(a_start: Ints, a_stop: Ints, b_start: Ints, b_stop: Ints) -> int:
    """How many pairs `overlapping_pairs` would give; costs only the sort."""
    inside_a = np.searchsorted(b_start, a_stop, "left") - np.searchsorted(b_start, a_start, "left")
    inside_b = np.searchsorted(a_start, b_stop, "left") - np.searchsorted(a_start, b_start, "right")
    return int(inside_a.sum() + np.maximum(inside_b, 0).sum())


def sum_pairs(i: Ints, j: Ints, values: Ints, columns: int) -> tuple[Ints, Ints, Ints]:
    """Add up `values` of equal (i, j); sorted by (i, j)."""
    keys, inverse = np.unique(i * columns + j, return_inverse=True)
    totals = np.zeros(len(keys), np.int64)
    np.add.at(totals, inverse, values)
    return keys // max(columns, 1), keys % max(columns, 1), totals


def lines_to_runs(mask: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Runs of a boolean array (L, width): line, start, stop, sorted."""
    lines = np.flatnonzero(mask.any(axis=1))
    padded = np.zeros((len(lines), mask.shape[1] + 2), bool)
    padded[:, 1:-1] = mask[lines]
    edges = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    row, column = np.divmod(edges, mask.shape[1] + 1)  # edges alternate start, stop, start, ... on every line
    return lines[row[0::2]], column[0::2], column[1::2]


def columns(shape: tuple[int, ...], line: NDArray, start: NDArray, stop: NDArray) -> NDArray[np.int32]:
    """Run rows of a line number (row-major over all axes but the last), start and stop."""
    lead = np.unravel_index(line, shape[:-1]) if len(line) else [np.zeros(0, np.int64)] * (len(shape) - 1)
    return np.column_stack([*lead, start, stop]).astype(np.int32)


def from_flat(shape: tuple[int, ...], start: NDArray, stop: NDArray) -> NDArray[np.int32]:
    """Run rows (R, ndim + 1) of flat starts and stops."""
    line = start // (shape[-1] + 1)
    base = line * (shape[-1] + 1)
    return columns(shape, line, start - base, stop - base)


def to_flat(shape: tuple[int, ...], runs: NDArray) -> tuple[Ints, Ints]:
    """Flat starts and stops of run rows (R, ndim + 1)."""
    line = np.zeros(len(runs), np.int64)
    for axis, length in enumerate(shape[:-1]):
        line = line * length + runs[:, axis]
    line *= shape[-1] + 1
    return line + runs[:, -2], line + runs[:, -1]


def flat_size(shape: tuple[int, ...]) -> int:
    """Number of flat positions of a canvas."""
    return math.prod(shape[:-1]) * (shape[-1] + 1)


def check_inside(shape: tuple[int, ...], runs: NDArray) -> None:
    """ValueError where a run leaves the canvas or is empty."""
    if not len(runs):
        return
    low, high = runs.min(axis=0), runs.max(axis=0)
    limit = np.array([*(n - 1 for n in shape[:-1]), shape[-1], shape[-1]])
    if low.min() < 0 or (high > limit).any():
        raise ValueError(f"expected runs inside the canvas {shape}, got runs from {low.tolist()} to {high.tolist()}")
    if (runs[:, -1] <= runs[:, -2]).any():
        raise ValueError("expected runs with start < stop, got an empty or backward one")


def as_rows(runs: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Run rows (R, ndim + 1) of anything like them.

    ValueError where columns or places do not fit the canvas.
    """
    rows = np.array(runs, np.int64) if np.size(runs) else np.zeros((0, len(shape) + 1), np.int64)
    if rows.ndim != 2 or rows.shape[1] != len(shape) + 1:
        raise ValueError(f"expected runs (R, {len(shape) + 1}) on the canvas {shape}, got {rows.shape}")
    check_inside(shape, rows)
    return rows.astype(np.int32)


def is_tidy(starts: Ints, stops: Ints, offsets: Ints) -> bool:
    """Whether the flat runs of every object are sorted and apart."""
    apart = np.ones(len(starts) + 1, bool)
    apart[1:-1] = starts[1:] > stops[:-1]
    apart[offsets] = True  # where the next object begins, anything may
    return bool(apart.all())


def crop(runs: NDArray, first: Ints, last: Ints, low: Ints, high: Ints) -> tuple[NDArray, NDArray]:
    """Runs of the objects `runs[first:last]` inside `low..high` (one bound an axis), and how many each has
    left.
    """
    first, last = first.copy(), last.copy()
    for n in np.flatnonzero(last - first > LONG_OBJECT):  # the first axis is sorted inside an object
        rows = runs[first[n] : last[n], 0]
        first[n], last[n] = first[n] + np.searchsorted(rows, [low[0], high[0]])
    owner = np.repeat(np.arange(len(first)), last - first)
    found = runs[expand(first, last - first)]
    inside = (found[:, -2] < high[-1]) & (found[:, -1] > low[-1]) & (low[-1] < high[-1])
    for axis in range(len(low) - 1):
        inside &= (found[:, axis] >= low[axis]) & (found[:, axis] < high[axis])
    found = found[inside]
    found[:, :-2] -= low[:-1].astype(np.int32)
    found[:, -2] = np.maximum(found[:, -2], low[-1]) - low[-1]
    found[:, -1] = np.minimum(found[:, -1], high[-1]) - low[-1]
    return found, np.bincount(owner[inside], minlength=len(first))


def bounding_boxes(runs: NDArray, offsets: NDArray) -> Ints:
    """(N, 2 * ndim) half-open boxes `[start..., stop...]` of the objects; zeros for an empty one."""
    ndim = runs.shape[1] - 1
    boxes = np.zeros((len(offsets) - 1, 2 * ndim), np.int64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        first = offsets[filled]
        for axis in range(ndim):
            last = -1 if axis == ndim - 1 else axis  # a run holds its last axis as start and stop
            boxes[filled, axis] = np.minimum.reduceat(runs[:, axis], first)
            boxes[filled, ndim + axis] = np.maximum.reduceat(runs[:, last], first) + (axis < ndim - 1)
    return boxes


def positions(index: int | slice | ArrayLike, count: int) -> Ints:
    """Object numbers that `index` (number, slice, integers, or booleans (count,)) chooses among `count`."""
    if isinstance(index, int | np.integer):
        if not -count <= index < count:
            raise IndexError(f"expected an object number below {count}, got {index}")
        return np.array([index]) % count
    if isinstance(index, slice):
        return np.arange(count)[index]
    chosen = np.asarray(index) if np.size(index) else np.zeros(0, np.int64)
    if chosen.dtype == bool and chosen.shape != (count,):
        raise ValueError(f"expected a boolean array of {count}, got {chosen.shape}")
    return np.arange(count)[chosen]


def readonly(array: NDArray) -> NDArray:
    """A view of `array` that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def optional(values: ArrayLike | None) -> NDArray | None:
    """An array, or None where there is none."""
    return None if values is None else np.asarray(values)
