"""What one strip says about which fragments of its two tiles are the same object.

Only pixels inside the strip count, and only fragments of one class are compared: the IoU of the two
restrictions. Whole masks or boxes would be the wrong statistic (for a river their overlap goes to zero, for
a house in a park it is total).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from maskformer.masks import MaskSet

EQUAL = 1e-9  # IoUs closer than this are equal evidence; IoUs of different counts below 2**29 pixels differ by more


class Evidence(NamedTuple):
    """Links (L,) between fragment `first` of one tile and `second` of the other, and what stayed open.

    certainty: by how much the link's IoU exceeds the best rival of either end; shared: pixels in common.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    certainty: NDArray[np.float64]
    shared: NDArray[np.int64]
    ties: list[Tie]


class Tie(NamedTuple):
    """Fragments that a strip cannot tell apart.

    Positions (n,) and (m,), and their IoU (n, m), 0 where refused.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    iou: NDArray[np.float64]


NOTHING = np.zeros(0, np.int64)


def compare(one: MaskSet, other: MaskSet, threshold: float) -> Evidence:
    """Match two tiles' views of their strip (same canvas), one to one, class by class, from IoU `threshold`
    on.

    The assignment maximises the sum of IoU, so for exact fragments it finds every object (all its links are
    1, and a sum of ones cannot be beaten); equal sums fall to the order of the sets, which must therefore
    be canonical.
    """
    if not len(one) or not len(other):
        return Evidence(NOTHING, NOTHING, np.zeros(0), NOTHING, [])
    i, j, shared = one.overlaps(other)
    alike = one.labels[i] == other.labels[j]
    i, j, shared = i[alike], j[alike], shared[alike]
    iou = shared / (one.areas[i] + other.areas[j] - shared)
    strong = iou >= threshold
    i, j, shared, iou = i[strong], j[strong], shared[strong], iou[strong]
    alone = (np.bincount(i, minlength=1)[i] == 1) & (np.bincount(j, minlength=1)[j] == 1)
    if alone.all():
        return Evidence(i, j, iou, shared, [])
    first, second, certainty, ties = _assign(i[~alone], j[~alone], iou[~alone])
    pixels = {(a, b): n for a, b, n in zip(i[~alone].tolist(), j[~alone].tolist(), shared[~alone].tolist())}
    shared_there = np.array([pixels[pair] for pair in zip(first.tolist(), second.tolist())], np.int64)
    return Evidence(
        np.concatenate([i[alone], first]),
        np.concatenate([j[alone], second]),
        np.concatenate([iou[alone], certainty]),
        np.concatenate([shared[alone], shared_there]),
        ties,
    )


def _assign(i: NDArray, j: NDArray, iou: NDArray) -> tuple[NDArray, NDArray, NDArray, list[Tie]]:
    """Links with their certainty, and the ties, of pairs that have rivals."""
    rows, row = np.unique(i, return_inverse=True)
    columns, column = np.unique(j, return_inverse=True)
    table = np.zeros((len(rows), len(columns)))
    table[row, column] = iou
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
    ties: list[Tie] = []
    for some_rows, some_columns in _blocks(rest):
        if len(some_rows) == 1 and len(some_columns) == 1:
            at = int(some_rows[0]), int(some_columns[0])
            mine = margin[(matched_row == at[0]) & (matched_column == at[1])]
            if len(mine):  # its rivals went elsewhere: a link, and one of the last to be believed
                late.append((*at, float(mine[0])))
        else:
            ties.append(Tie(rows[some_rows], columns[some_columns], rest[np.ix_(some_rows, some_columns)]))
    first = np.concatenate([matched_row[clear], [a for a, _, _ in late]]).astype(np.int64)
    second = np.concatenate([matched_column[clear], [b for _, b, _ in late]]).astype(np.int64)
    return rows[first], columns[second], np.concatenate([margin[clear], [c for _, _, c in late]]), ties


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
