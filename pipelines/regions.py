"""Connected regions of a class map as objects, collected window by window: no map of the whole scene is held.

A region that crosses from one window into the next is joined there: pieces that touch along the common line and are of
one class are one region (union-find, as in two-pass component labelling). What is kept are the pieces as runs, and two
lines of piece numbers: that of the last row above and that of the last column to the left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from maskformer.masks import MaskSet
from pipelines.grid import Window

Ints = NDArray[np.int64]


def regions(ids: NDArray[np.uint8], classes: int) -> MaskSet:
    """Connected regions (4 neighbours, so one polygon each) of a class map (H, W) as objects of score 1, by class.

    ids: 1..classes; other values are no class.
    """
    pieces, _ = _pieces(ids, classes)
    return pieces


class RegionCollector:
    """Takes the windows of a class map, each after those above it and to its left, and gives back `regions` of it all.

    The windows tile the map of `shape`; canonical order aside, the objects are those of `regions`.
    """

    def __init__(self, shape: tuple[int, int], classes: int) -> None:
        self.shape, self.classes = shape, classes
        self._found: list[MaskSet] = []
        self._count = 0
        # (2, length): number of the piece, 0 for none, and its class, in the last row and column that were seen.
        self._above = np.zeros((2, shape[1]), np.int64)
        self._left = np.zeros((2, shape[0]), np.int64)
        self._joins: list[Ints] = []  # (n, 2) pieces that are one region

    def add(self, window: Window, ids: NDArray[np.uint8]) -> None:
        """The next window, (rows, columns), and its class ids."""
        pieces, numbers = _pieces(ids, self.classes)
        lines = np.stack([np.where(numbers > 0, numbers + self._count, 0), ids])
        self._found.append(pieces.place(self.shape, [part.start for part in window]))
        self._count += len(pieces)
        rows, columns = window
        if rows.start:
            self._joins.append(_touching(self._above[:, columns], lines[:, 0]))
        if columns.start:
            self._joins.append(_touching(self._left[:, rows], lines[:, :, 0]))
        self._above[:, columns], self._left[:, rows] = lines[:, -1], lines[:, :, -1]

    def finish(self) -> MaskSet:
        """All regions of what was added."""
        if not self._count:
            return MaskSet.empty(self.shape)
        one, other = np.concatenate([*self._joins, np.zeros((0, 2), np.int64)]).T - 1
        links = coo_array((np.ones(len(one), bool), (one, other)), shape=(self._count, self._count))
        _, groups = connected_components(links, directed=False)
        return MaskSet.concatenate(self._found).union(groups)


def _touching(before: Ints, after: Ints) -> Ints:
    """(n, 2) pieces on either side of a line, (2, length) each, that touch and are of one class."""
    same = (before[0] > 0) & (after[0] > 0) & (before[1] == after[1])
    return np.unique(np.stack([before[0], after[0]], 1)[same], axis=0)


def _pieces(ids: NDArray[np.uint8], classes: int) -> tuple[MaskSet, Ints]:
    """The regions, class by class, and the map (H, W) of their numbers from 1."""
    numbers = np.zeros(ids.shape, np.int64)
    kinds: list[int] = []
    for index in range(classes):
        numbered, count = ndimage.label(ids == index + 1)
        if count:
            numbers[numbered > 0] = numbered[numbered > 0] + len(kinds)
            kinds += [index] * count
    if not kinds:
        return MaskSet.empty(ids.shape), numbers
    return MaskSet.from_label_map(numbers, dict(enumerate(kinds, start=1))), numbers
