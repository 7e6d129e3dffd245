"""Long objects that a tile missed: a river that ends at both sides of a tile is one river.

A model that misses 5 % of what it sees breaks every fifth river of five tiles. No strip says that the ends belong
together; but where long fragments of a class run into a tile that has no partner for them, they are joined, the pixels
between stay empty, and the link is counted as ambiguous. Exact fragments have no such ends.

Two objects' ends at a tile are joined. More are paired so that the ways across bend least. What a tile leaves over
waits until the tiles around it are known, and is joined to the one thing that a neighbouring tile left over, if there
is one: both tiles missed it. All this depends on what the tiles hold, never on the order in which they came.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.ends import End, ends_of
from pipelines.grid import Grid
from pipelines.linking import Fragment

GUESS = -2.0  # the certainty of such a link: below all others, which lie in [-1, 1]
FAR_GUESS = -3.0  # of one across two tiles
LONG = 0.4  # of a tile's length: what is shorter may be two houses on either side
MOST = 8  # ends that are paired; beyond it there is too much to choose from
BENT = 2.0  # cost of a right angle at both ends: ways that bend more are not believed across two tiles
LENGTH = 0.1  # cost of a way as long as a tile


class Noted(NamedTuple):
    """An end, and the fragment it is of."""

    key: int
    end: End


class Group(NamedTuple):
    """The ends of fragments that are known to be one object."""

    keys: frozenset[int]
    ends: tuple[Noted, ...]


def long_ends(
    grid: Grid, number: int, boxes: NDArray[np.int64], runs: NDArray[np.int32], offsets: Sequence[int]
) -> dict[int, tuple[End, ...]]:
    """The ends of a tile's long fragments (boxes, runs and offsets of all) at its inner borders, by their place."""
    axes = len(grid.shape)
    low, high = (side[0] for side in grid.windows(np.array([number])))
    long = (boxes[:, axes:] - boxes[:, :axes] >= LONG * (high - low)).any(axis=1)
    cut = (boxes[:, :axes] <= low) & (low > 0) | (boxes[:, axes:] >= high) & (high < np.array(grid.shape))
    found = np.flatnonzero(long & cut.any(axis=1)).tolist()
    return {n: tuple(ends_of(runs[offsets[n] : offsets[n + 1]], low, high, grid.shape)) for n in found}


class Gaps:
    """The ends that run into each tile, until its strips and those of the tiles around it are known."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._ends: dict[int, list[Noted]] = {}
        self._unknown: dict[int, int] = {}  # strips of a tile that came whose other tile did not come yet
        self._left: dict[int, dict[int, list[Group]]] = {}  # what a tile leaves over, by class
        self._waiting: set[int] = set()  # tiles whose rest waits for the tiles around
        self._asked: set[tuple[int, int, int]] = set()

    def note(self, fragment: Fragment, key: int, missing: int) -> bool:
        """Keep a fragment without a partner in tile `missing`, if it is long and runs out of its own tile there."""
        if not fragment.ends:
            return False
        there, here = (np.unravel_index(n, self._grid.counts) for n in (missing, fragment.tile))
        facing = {2 * axis + int(a > b) for axis, (a, b) in enumerate(zip(there, here, strict=True)) if a != b}
        low, high = (side[0] for side in self._grid.windows(np.array([missing])))
        found = [
            Noted(key, end)
            for end in fragment.ends
            if end.side in facing and (low <= end.point).all() and (high > end.point).all()
        ]
        if found:
            self._ends.setdefault(missing, []).extend(found)
        return bool(found)

    def met(self, tile: int, strips: int, others: Sequence[int]) -> list[int]:
        """Count the strips that a new tile and `others` share; returns the tiles of which all strips are known now."""
        self._unknown[tile] = strips - len(others)
        for other in others:
            self._unknown[other] -= 1
        return [n for n in (tile, *others) if not self._unknown[n]]

    def waiting(self) -> list[int]:
        """Tiles with ends whose strips are not known."""
        return sorted(self._ends)

    def pop(self, tile: int) -> list[Noted]:
        """The ends that run into a tile, sorted."""
        return sorted(self._ends.pop(tile, []))

    def leave(self, tile: int, left: dict[int, list[Group]]) -> None:
        """Keep what a tile leaves over, by class."""
        if left:
            self._left[tile] = left
            self._waiting.add(tile)

    def settled(self, known: Iterable[int] | None) -> list[int]:
        """Tiles that left something over, of which two tiles around on every side are known, now that `known` are; None
        for all.
        """
        if known is None:
            found = self._waiting
        elif not self._waiting:
            return []
        else:
            near = {other for tile in known for other in self._around(tile, 2)} & self._waiting
            found = {n for n in near if all(self._unknown.get(other) == 0 for other in self._around(n, 2))}
        self._waiting = self._waiting - found
        return sorted(found)

    def rest(self, tile: int) -> list[int]:
        """Keys of the fragments that a tile left over."""
        return sorted({key for groups in self._left[tile].values() for group in groups for key in group.keys})

    def across_two(self, fragments: Mapping[int, Fragment], tile: int) -> list[tuple[int, int]]:
        """Pairs that a settled tile and one neighbour left over, each given once."""
        found = []
        for label in sorted(self._left[tile]):
            near = self._leaving(tile, label)
            if len(near) != 1 or self._leaving(near[0], label) != [tile]:
                continue
            name = (min(tile, near[0]), max(tile, near[0]), label)
            if name in self._asked:
                continue
            self._asked.add(name)
            groups = _merged([*self._left[tile][label], *self._left[near[0]][label]])
            if len(groups) == 2 and _disjoint(fragments, *groups) and self._way(*groups) <= BENT:
                found.append(_ordered(*groups))
        return found

    def _leaving(self, tile: int, label: int) -> list[int]:
        """The neighbours of a tile that left over something of a class."""
        return [n for n in self._around(tile, 1) if n != tile and label in self._left.get(n, ())]

    def _way(self, one: Group, other: Group) -> float:
        return min(way(a.end, b.end, max(self._grid.tile)) for a in one.ends for b in other.ends)

    def _around(self, tile: int, reach: int) -> Iterator[int]:
        counts = self._grid.counts
        index = [int(n) for n in np.unravel_index(tile, counts)]
        spans = [range(max(n - reach, 0), min(n + reach + 1, count)) for n, count in zip(index, counts, strict=True)]
        for place in itertools.product(*spans):
            number = 0
            for n, count in zip(place, counts, strict=True):
                number = number * count + n
            yield number


def bridges(
    grid: Grid, fragments: Mapping[int, Fragment], noted: Sequence[Noted], linked: Collection[tuple[int, int]]
) -> tuple[list[tuple[int, int]], dict[int, list[Group]]]:
    """Pairs of fragments that a tile between them missed, and by class what it leaves over; `linked` are pairs known to
    be one object.

    Only pairs of ends count, not what is linked elsewhere: that depends on the tiles that came.
    """
    found: list[tuple[int, int]] = []
    left: dict[int, list[Group]] = {}
    for label in sorted({fragments[one.key].label for one in noted}):
        groups = _groups([one for one in noted if fragments[one.key].label == label], linked)
        if len(groups) == 2:
            if _disjoint(fragments, *groups):
                found.append(_ordered(*groups))
            continue
        paired, rest = _paired(grid, fragments, groups) if len(groups) > 2 else ([], groups)
        found += paired
        if rest:
            left[label] = rest
    return found, left


def way(one: End, other: End, length: int) -> float:
    """Cost of the straight way between two ends: 0 straight on, 1 for a right angle at either end, and its length."""
    step = np.subtract(other.point, one.point)
    far = float(np.linalg.norm(step))
    if far == 0:
        return 1 + float(np.dot(one.heading, other.heading))
    bend = float(np.dot(np.subtract(one.heading, other.heading), step)) / far
    return 2 - bend + LENGTH * far / length


def _groups(noted: Sequence[Noted], linked: Collection[tuple[int, int]]) -> list[Group]:
    """The ends by what is known to be one object; an end that two of its tiles show is there once."""
    groups: list[list[Noted]] = []
    for one in noted:
        mine = [
            group
            for group in groups
            if any(a.key == one.key or (a.key, one.key) in linked or (one.key, a.key) in linked for a in group)
        ]
        groups = [group for group in groups if group not in mine] + [[*itertools.chain(*mine), one]]
    return [Group(frozenset(one.key for one in group), tuple(sorted(group))) for group in groups]


def _merged(groups: Sequence[Group]) -> list[Group]:
    """Groups that share a fragment as one."""
    found: list[Group] = []
    for group in groups:
        mine = [one for one in found if one.keys & group.keys]
        found = [one for one in found if one not in mine]
        keys = group.keys.union(*(one.keys for one in mine))
        found.append(Group(keys, tuple(sorted({*group.ends, *(end for one in mine for end in one.ends)}))))
    return found


def _paired(
    grid: Grid, fragments: Mapping[int, Fragment], groups: Sequence[Group]
) -> tuple[list[tuple[int, int]], list[Group]]:
    """The ends of three or more objects in pairs, so that the ways bend least, and the groups without a partner."""
    places = [(n, end) for n, group in enumerate(groups) for end in _apart(group, max(grid.overlap))]
    if len(places) > MOST:
        return [], list(groups)
    size = len(places)
    costs = np.full((size, size), np.inf)
    for a, b in itertools.combinations(range(size), 2):
        (one, first), (other, second) = places[a], places[b]
        if one == other or _disjoint(fragments, groups[one], groups[other]):
            costs[a, b] = way(first.end, second.end, max(grid.tile))
    chosen = _best(costs, tuple(range(size)))[1]
    joined = {(places[a][0], places[b][0]) for a, b in chosen}
    met = {n for pair in joined for n in pair if pair[0] != pair[1]}
    pairs = sorted(_ordered(groups[one], groups[other]) for one, other in joined if one != other)
    return pairs, [group for n, group in enumerate(groups) if n not in met]


def _best(costs: NDArray[np.float64], free: tuple[int, ...]) -> tuple[float, list[tuple[int, int]]]:
    """The cheapest pairs of all of `free`, or of all but one where their number is odd; by trying every way."""
    if len(free) < 2:
        return 0.0, []
    best: tuple[float, list[tuple[int, int]]] = (np.inf, [])
    first, rest = free[0], free[1:]
    for n, other in enumerate(rest):
        if np.isfinite(costs[first, other]):
            cost, pairs = _best(costs, rest[:n] + rest[n + 1 :])
            best = min(best, (cost + float(costs[first, other]), [(first, other), *pairs]))
    return min(best, _best(costs, rest)) if len(free) % 2 else best


def _apart(group: Group, overlap: int) -> list[Noted]:
    """The ends of an object at a tile, without those that another of its tiles shows within two overlaps' length."""
    kept: list[Noted] = []
    for one in group.ends:
        near = (
            np.linalg.norm(np.subtract(a.end.point, one.end.point)) <= 2 * overlap for a in kept if a.key != one.key
        )
        if not any(near):
            kept.append(one)
    return kept


def _disjoint(fragments: Mapping[int, Fragment], one: Group, other: Group) -> bool:
    """Whether no tile has a fragment of both."""
    return {fragments[key].tile for key in one.keys}.isdisjoint(fragments[key].tile for key in other.keys)


def _ordered(one: Group, other: Group) -> tuple[int, int]:
    return min(*one.keys, *other.keys), max(min(one.keys), min(other.keys))
