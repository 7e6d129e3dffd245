"""Arithmetic of row runs: the few vectorised loops `MaskSet` and the stitcher are built from.

A run is a half-open interval on one line of the canvas. The *flat* position of pixel `x` on line `y` is
`y * (width + 1) + x`: one position is left free behind every line, so that a run which ends on the right border
never touches the run that begins the next line.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


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

    `size` is the number of flat positions of the canvas; owners must be small enough that owner * size fits 63 bits.
    """
    if not len(owners):
        return owners, starts, stops
    if (int(owners.max()) + 1) * (size + 1) >= 2**63:
        raise ValueError(
            f"canvas of {size} positions with {int(owners.max()) + 1} objects does not fit 63 bits"
        )
    base = owners * size
    keys, ends = base + starts, base + stops
    if np.any(keys[1:] < keys[:-1]):
        order = np.argsort(keys, kind="stable")
        keys, ends = keys[order], ends[order]
    reach = np.maximum.accumulate(
        ends
    )  # never leaks into the next owner: its keys are larger than any end before
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] > reach[:-1]
    last = np.roll(first, -1)
    owner, start = np.divmod(keys[first], size)
    return owner, start, reach[last] - owner * size


def overlapping_pairs(a_start: Ints, a_stop: Ints, b_start: Ints, b_stop: Ints) -> tuple[Ints, Ints]:
    """Indices (i, j) of all pairs of runs that share a position; both sides sorted by start, any overlaps inside.

    Every such pair is found once: either b begins inside a, or a begins strictly inside b. The cost is the sort plus
    the number of pairs.
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


# COCO run lengths (format: github.com/cocodataset/cocoapi, common/maskApi): column-major counts, beginning with
# zeros; from the fourth on as the difference to the count two before; five bits a character, least first, bit 6 says
# that more follow, the last character's bit 5 is the sign; plus 48.


def encode_counts(counts: Ints, offsets: Ints) -> list[str]:
    """Compressed COCO strings of the run lengths `counts[offsets[i]:offsets[i + 1]]`."""
    position = np.arange(len(counts)) - np.repeat(offsets[:-1], np.diff(offsets))
    rest = counts.copy()
    late = np.flatnonzero(position > 2)
    rest[late] -= counts[late - 2]
    characters: list[NDArray] = []
    alive: list[NDArray] = []
    more = np.ones(len(rest), bool)
    while more.any():
        alive.append(more)
        low = rest & 31
        rest = rest >> 5
        unfinished = np.where(low & 16, rest != -1, rest != 0)
        characters.append((low + 32 * unfinished + 48).astype(np.uint8))
        more = more & unfinished
    if not characters:
        return [""] * (len(offsets) - 1)
    keep = np.stack(alive, axis=1)
    text = np.stack(characters, axis=1)[keep].tobytes().decode("ascii")
    ends = segment_sums(keep.sum(axis=1), offsets).cumsum()
    return [text[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def decode_counts(text: str | bytes) -> Ints:
    """Run lengths of one compressed COCO string; ValueError where it is not one."""
    raw = (
        np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    )
    if len(raw) and (raw.min() < 0 or raw.max() > 63 or raw[-1] & 32):
        raise ValueError(
            "expected a compressed COCO string (characters 48..111, last one closed), got other bytes"
        )
    last = np.flatnonzero((raw & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    place = np.arange(len(raw)) - np.repeat(first, last - first + 1)
    if len(place) and place.max() > 11:
        raise ValueError("expected a compressed COCO string, got a number of more than 60 bits")
    digits = (raw & 31) << (5 * place)
    values = np.add.reduceat(digits, first) if len(first) else digits
    values = values - np.where(raw[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    for parity in (
        3,
        4,
    ):  # undo the differences: counts 1, 3, 5, ... and 2, 4, 6, ... each add up on their own
        values[parity - 2 :: 2] = np.cumsum(values[parity - 2 :: 2])
    return values
