"""What the strips say about which fragments of two tiles are the same object.

Only pixels inside a strip count, and only fragments of one class are compared: the IoU of the two restrictions. Whole
masks or boxes would be the wrong statistic (for a river their overlap goes to zero, for a house in a park it is
total). All strips of a tile are looked at together: a tile of a hundred fragments has eight of them, and the cost is
the number of numpy calls, not of pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from maskformer import runs as rle
from maskformer.masks import MaskSet
from pipelines.grid import Meetings

EQUAL = 1e-9  # IoUs closer than this are equal evidence; IoUs of different counts below 2**29 pixels differ by more
CONTAINED = 0.5  # of the smaller of two fragments that nothing else claims, from which on they are linked late
MANY_PAIRS = 500_000  # of runs, 0.1 s: from here on it is worth asking strip by strip whether pixels are cheaper


class View(NamedTuple):
    """What one strip shows of the fragments of one tile, V of them in canonical order.

    keys, labels, areas: (V,), the area inside the strip; owner, start, stop: (R,) the view of each run, and the run
    in flat positions of the scene.
    """

    keys: NDArray[np.int64]
    labels: NDArray[np.int64]
    areas: NDArray[np.int64]
    owner: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


class Evidence(NamedTuple):
    """Links (L,) between keys of the first and of the second views, and what stayed open.

    certainty: by how much the link's IoU exceeds the best rival of either end; shared: pixels in common.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    certainty: NDArray[np.float64]
    shared: NDArray[np.int64]
    ties: list[Tie]
    left_first: list[tuple[int, int]]  # (strip, key) of what found no partner
    left_second: list[tuple[int, int]]


class Tie(NamedTuple):
    """Fragments (keys) of two tiles that their strip cannot tell apart, and their IoU (n, m), 0 where refused."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    iou: NDArray[np.float64]


def views(fragments: MaskSet, keys: NDArray[np.int64], strips: Meetings) -> list[View]:
    """What each strip shows of a tile's fragments (scene coordinates, canonical order)."""
    axes = len(fragments.shape)
    boxes = fragments.boxes
    near = (boxes[None, :, :axes] < strips.high[:, None]) & (boxes[None, :, axes:] > strips.low[:, None])
    strip, fragment = np.nonzero(near.all(axis=2))
    counts = np.diff(fragments.offsets)[fragment]
    pair = np.repeat(np.arange(len(strip)), counts)
    runs = fragments.runs[rle.expand(fragments.offsets[fragment], counts)]
    low, high = strips.low[strip[pair]], strips.high[strip[pair]]
    start, stop = np.maximum(runs[:, -2], low[:, -1]), np.minimum(runs[:, -1], high[:, -1])
    inside = start < stop
    for axis in range(axes - 1):
        inside &= (runs[:, axis] >= low[:, axis]) & (runs[:, axis] < high[:, axis])
    runs, pair, start, stop = runs[inside], pair[inside], start[inside], stop[inside]
    line = np.zeros(len(runs), np.int64)
    for axis, length in enumerate(fragments.shape[:-1]):
        line = line * length + runs[:, axis]
    line *= fragments.shape[-1] + 1
    fresh = np.ones(len(pair), bool)
    fresh[1:] = pair[1:] != pair[:-1]
    first = np.flatnonzero(fresh)
    seen = pair[first]
    areas = np.add.reduceat(stop - start, first) if len(first) else np.zeros(0, np.int64)
    owner = np.cumsum(fresh) - 1
    view_at = np.searchsorted(strip[seen], np.arange(len(strips.numbers) + 1)).tolist()
    run_at = np.append(first, len(pair))[view_at].tolist()
    start, stop = start + line, stop + line
    own_keys, labels = keys[fragment[seen]], fragments.labels[fragment[seen]]
    return [
        View(own_keys[a:b], labels[a:b], areas[a:b], owner[c:d] - a, start[c:d], stop[c:d])
        for a, b, c, d in zip(view_at, view_at[1:], run_at, run_at[1:])
    ]


def compare(shape: tuple[int, ...], first: Sequence[View], second: Sequence[View], threshold: float) -> Evidence:
    """Match two tiles' views of every strip, one to one, class by class, from IoU `threshold` on.

    `first[n]` and `second[n]` show strip n of a scene of `shape`. The assignment maximises the sum of IoU, so for
    exact fragments it finds every object (all its links are 1, and a sum of ones cannot be beaten); equal sums fall
    to the order of the views, which must therefore be canonical.
    """
    both = [n for n in range(len(first)) if len(first[n].keys) and len(second[n].keys)]
    left = tuple(
        [(n, key) for n in set(range(len(first))) - set(both) for key in views[n].keys.tolist()]
        for views in (first, second)
    )
    if not both:
        nothing = np.zeros(0, np.int64)
        return Evidence(nothing, nothing, np.zeros(0), nothing, [], *left)
    filled = [(first[n], second[n]) for n in both]
    one, strip = _together([a for a, _ in filled])
    other, there = _together([b for _, b in filled])
    i, j, shared = _shared_pixels(shape, filled, one, other, strip, there)
    smaller = np.minimum(one.areas[i], other.areas[j])
    iou = shared / (one.areas[i] + other.areas[j] - shared)
    strong = iou >= threshold
    links, ties, taken = _match(one, other, strip, i[strong], j[strong], shared[strong], iou[strong])
    free = ~(taken[0][i] | taken[1][j]) & (shared >= CONTAINED * smaller)
    if free.any():  # never so for exact fragments, all of which have found each other by now
        late, _, late_taken = _match(one, other, strip, i[free], j[free], shared[free], iou[free])
        taken[0][late_taken[0]] = taken[1][late_taken[1]] = True
        links += [(first, second, certainty - 1, pixels) for first, second, certainty, pixels in late]
    for views, strips, found, rest in ((one, strip, taken[0], left[0]), (other, there, taken[1], left[1])):
        rest += [(both[n], key) for n, key in zip(strips[~found].tolist(), views.keys[~found].tolist())]
    keys, others, certainty, pixels = (np.concatenate(part) for part in zip(*links))
    return Evidence(keys, others, certainty, pixels, ties, *left)


def _match(
    one: View, other: View, strip: NDArray, i: NDArray, j: NDArray, shared: NDArray, iou: NDArray
) -> tuple[list[tuple[NDArray, NDArray, NDArray, NDArray]], list[Tie], tuple[NDArray, NDArray]]:
    """Links and ties among some pairs, one to one in a strip, and which fragments of both sides are in one."""
    alone = (np.bincount(i, minlength=1)[i] == 1) & (np.bincount(j, minlength=1)[j] == 1)
    links = [(one.keys[i[alone]], other.keys[j[alone]], iou[alone], shared[alone])]
    ties: list[Tie] = []
    taken = np.zeros(len(one.keys), bool), np.zeros(len(other.keys), bool)
    taken[0][i[alone]] = taken[1][j[alone]] = True
    if not alone.all():
        i, j, shared, iou = i[~alone], j[~alone], shared[~alone], iou[~alone]
        borders = np.flatnonzero(np.diff(strip[i], prepend=-1, append=-1)).tolist()  # pairs are sorted by strip
        for a, b in itertools.pairwise(borders):
            at, certainty, tied = _assign(i[a:b], j[a:b], iou[a:b])
            at += a
            links.append((one.keys[i[at]], other.keys[j[at]], certainty, shared[at]))
            taken[0][i[at]] = taken[1][j[at]] = True
            for rows, columns, table in tied:
                ties.append(Tie(tuple(one.keys[rows].tolist()), tuple(other.keys[columns].tolist()), table))
                taken[0][rows] = taken[1][columns] = True
    return links, ties, taken


def _together(several: Sequence[View]) -> tuple[View, NDArray[np.int64]]:
    """Several views as one, and the strip of each of its fragments."""
    counts = [len(one.keys) for one in several]
    before = np.cumsum([0, *counts])
    columns = [np.concatenate(column) for column in zip(*several)]
    columns[3] += np.repeat(before[:-1], [len(one.owner) for one in several])
    return View(*columns), np.repeat(np.arange(len(several)), counts)


def _shared_pixels(
    shape: tuple[int, ...], strips: Sequence[tuple[View, View]], one: View, other: View, strip: NDArray, there: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Pairs (i, j) of one strip and class that share pixels, sorted, and how many."""
    _, label = np.unique(np.concatenate([one.labels, other.labels]), return_inverse=True)
    group = np.concatenate([strip, there]) * (label.max() + 1) + label
    size = rle.flat_size(shape)  # runs of different strips and classes lie apart
    here_base, there_base = group[: len(strip)] * size, group[len(strip) :] * size
    a_owner, a_start, a_stop = _by_position(one, here_base)
    b_owner, b_start, b_stop = _by_position(other, there_base)
    if len(a_start) + len(b_start) > 1000 and (
        rle.count_overlapping_pairs(a_start, a_stop, b_start, b_stop) > MANY_PAIRS
    ):
        return _strip_by_strip(shape, strips)
    a, b = rle.overlapping_pairs(a_start, a_stop, b_start, b_stop)
    shared = np.minimum(a_stop[a], b_stop[b]) - np.maximum(a_start[a], b_start[b])
    return rle.sum_pairs(a_owner[a], b_owner[b], shared, len(other.keys))


def _by_position(view: View, base: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    start, stop = view.start + base[view.owner], view.stop + base[view.owner]
    order = np.argsort(start, kind="stable")
    return view.owner[order], start[order], stop[order]


def _strip_by_strip(shape: tuple[int, ...], strips: Sequence[tuple[View, View]]) -> tuple[NDArray, NDArray, NDArray]:
    """As `_shared_pixels`, where masks are so ragged that it may be cheaper to multiply pixels."""
    found = []
    i_before = j_before = 0
    for a, b in strips:
        mine = MaskSet.from_flat(shape, a.owner, a.start, a.stop, a.labels)
        theirs = MaskSet.from_flat(shape, b.owner, b.start, b.stop, b.labels)
        i, j, shared = mine.overlaps(theirs)
        alike = a.labels[i] == b.labels[j]
        found.append((i[alike] + i_before, j[alike] + j_before, shared[alike]))
        i_before += len(a.keys)
        j_before += len(b.keys)
    i, j, shared = (np.concatenate(part) for part in zip(*found))
    return i, j, shared


def _assign(i: NDArray, j: NDArray, iou: NDArray) -> tuple[NDArray, NDArray, list[tuple[NDArray, NDArray, NDArray]]]:
    """Links of pairs that have rivals: places among the pairs, certainty; and ties: i's, j's, IoU of each."""
    rows, row = np.unique(i, return_inverse=True)
    columns, column = np.unique(j, return_inverse=True)
    table = np.zeros((len(rows), len(columns)))
    table[row, column] = iou
    place = np.zeros(table.shape, np.int64)
    place[row, column] = np.arange(len(i))
    matched_row, matched_column = linear_sum_assignment(table, maximize=True)
    value = table[matched_row, matched_column]
    real = value > 0
    matched_row, matched_column, value = matched_row[real], matched_column[real], value[real]
    rivals = table.copy()
    rivals[matched_row, matched_column] = 0
    rival = np.maximum(rivals.max(axis=1)[matched_row], rivals.max(axis=0)[matched_column])
    margin = value - rival
    clear = margin > EQUAL
    rest = table.copy()
    rest[matched_row[clear]] = 0
    rest[:, matched_column[clear]] = 0
    late: list[tuple[int, int, float]] = []
    ties = []
    for some_rows, some_columns in _blocks(rest):
        if len(some_rows) == 1 and len(some_columns) == 1:
            at = int(some_rows[0]), int(some_columns[0])
            mine = margin[(matched_row == at[0]) & (matched_column == at[1])]
            if len(mine):  # its rivals went elsewhere: a link, and one of the last to be believed
                late.append((*at, float(mine[0])))
        else:
            ties.append((rows[some_rows], columns[some_columns], rest[np.ix_(some_rows, some_columns)]))
    first = np.concatenate([matched_row[clear], [a for a, _, _ in late]]).astype(np.int64)
    second = np.concatenate([matched_column[clear], [b for _, b, _ in late]]).astype(np.int64)
    return place[first, second], np.concatenate([margin[clear], [c for _, _, c in late]]), ties


def _blocks(table: NDArray) -> list[tuple[NDArray, NDArray]]:
    """Rows and columns of the connected blocks of a table's nonzero entries, by first row."""
    open_rows = dict.fromkeys(np.flatnonzero(table.any(axis=1)).tolist())
    blocks = []
    while open_rows:
        rows = {next(iter(open_rows))}
        columns: set[int] = set()
        while True:
            columns = set(np.flatnonzero(table[sorted(rows)].any(axis=0)).tolist())
            grown = set(np.flatnonzero(table[:, sorted(columns)].any(axis=1)).tolist())
            if grown == rows:
                break
            rows = grown
        for row in rows:
            del open_rows[row]
        blocks.append((np.array(sorted(rows)), np.array(sorted(columns))))
    return blocks
