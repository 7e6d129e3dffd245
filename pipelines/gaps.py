"""Long objects that one tile missed: a river that ends at both sides of a tile is one river.

A model that misses 5 % of what it sees breaks every fifth river of five tiles. No strip says that the ends belong
together; but where exactly two long fragments of a class run into a tile that has no partner for either, they are
joined, the pixels between stay empty, and the link is counted as ambiguous. Exact fragments have no such ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Grid
from pipelines.linking import Fragment

GUESS = -2.0  # the certainty of such a link: below all others, which lie in [-1, 1]
LONG = 0.4  # of a tile's length: what is shorter may be two houses on either side


def cut_sides(grid: Grid, number: int, boxes: NDArray[np.int64]) -> list[int]:
    """For each box of a tile: bit 2 a where the tile's inner border cuts its low side along axis a, bit 2 a + 1 the
    high one; 0 for what is not long.
    """
    axes = len(grid.shape)
    low, high = (side[0] for side in grid.windows(np.array([number])))
    long = (boxes[:, axes:] - boxes[:, :axes] >= LONG * (high - low)).any(axis=1)
    bits = 1 << np.arange(2 * axes).reshape(axes, 2)
    found = ((boxes[:, :axes] <= low) & (low > 0)) @ bits[:, 0]
    found += ((boxes[:, axes:] >= high) & (high < np.array(grid.shape))) @ bits[:, 1]
    return np.where(long, found, 0).tolist()


class Gaps:
    """The ends that run into each tile, until all its strips are known."""

    def __init__(self) -> None:
        self._ends: dict[int, list[int]] = {}
        self._unknown: dict[int, int] = {}  # strips of a tile that came whose other tile did not come yet

    def note(self, grid: Grid, fragment: Fragment, key: int, missing: int) -> bool:
        """Keep a fragment without a partner in tile `missing`, if it is long and runs out of its own tile there."""
        if not fragment.sides:
            return False
        facing = 0
        there, here = (np.unravel_index(n, grid.counts) for n in (missing, fragment.tile))
        for axis, (a, b) in enumerate(zip(there, here, strict=True)):
            facing |= int(a < b) << 2 * axis | int(a > b) << 2 * axis + 1
        if not facing & fragment.sides:
            return False
        self._ends.setdefault(missing, []).append(key)
        return True

    def met(self, tile: int, strips: int, others: Sequence[int]) -> list[int]:
        """Count the strips that a new tile and `others` share; returns the tiles with ends of which all are known."""
        self._unknown[tile] = strips - len(others)
        for other in others:
            self._unknown[other] -= 1
        return [n for n in (tile, *others) if not self._unknown[n] and n in self._ends]

    def waiting(self) -> list[int]:
        """Tiles with ends."""
        return sorted(self._ends)

    def pop(self, tile: int) -> list[int]:
        """The ends that run into a tile, sorted."""
        return sorted(self._ends.pop(tile, []))


def bridges(
    fragments: Mapping[int, Fragment], ends: Sequence[int], linked: Collection[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Pairs of ends of one class with nothing else of it to choose; `linked` are pairs known to be one object.

    Only pairs of ends count, not what is linked elsewhere: that depends on the tiles that came.
    """
    found = []
    for label in sorted({fragments[key].label for key in ends}):
        groups: list[list[int]] = []
        for key in (key for key in ends if fragments[key].label == label):
            mine = [g for g in groups if any((a, key) in linked or (key, a) in linked for a in g)]
            groups = [g for g in groups if g not in mine] + [[*itertools.chain(*mine), key]]
        if len(groups) == 2:
            one, other = groups
            if {fragments[key].tile for key in one}.isdisjoint(fragments[key].tile for key in other):
                found.append((min(*one, *other), max(min(one), min(other))))
    return found
