"""From the evidence of many strips to objects: union-find that takes links in order of certainty.

Works on one cluster of fragments (everything that any link or tie connects) at a time, and only on its
content: the result does not depend on the order in which tiles came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from maskformer.masks import MaskSet
from pipelines.evidence import EQUAL


class Fragment(NamedTuple):
    """One object of one tile, in scene coordinates."""

    tile: int
    runs: NDArray[np.int32]
    label: int
    score: float
    area: int
    seen_whole_by: tuple[int, ...]  # tiles that see all of a fragment which its own tile's inner border cuts


class Link(NamedTuple):
    """Two fragments (keys) that one strip matched."""

    certainty: float
    shared: int
    first: int
    second: int


class KeyedTie(NamedTuple):
    """Fragments (keys) of two tiles that their strip cannot tell apart; iou (n, m), 0 where refused."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    iou: NDArray[np.float64]


def components(
    fragments: Mapping[int, Fragment], links: Sequence[Link], ties: Sequence[KeyedTie]
) -> tuple[list[list[int]], int]:
    """Partition the fragments of a cluster into objects.

    Returns the objects (sorted keys each) and how many links stayed ambiguous: refused because they would
    have put two fragments of one tile into one object, or decided although the masks do not say how.
    """
    tiles = {fragment.tile for fragment in fragments.values()}
    if not ties and len(tiles) == len(fragments):  # every link fits
        return [sorted(fragments)], 0
    joined = _Joined(fragments)
    refused = 0
    for link in sorted(links, key=lambda one: (-one.certainty, -one.shared, one.first, one.second)):
        refused += not joined.unite(link.first, link.second)
    if ties:
        refused += _settle(fragments, joined, sorted(ties, key=lambda one: (one.first, one.second)))
    return joined.groups(), refused


class _Joined:
    """Union-find in which no set may hold two fragments of one tile."""

    def __init__(self, fragments: Mapping[int, Fragment]) -> None:
        self.parent = {key: key for key in fragments}
        self.tiles = {key: {fragment.tile} for key, fragment in fragments.items()}

    def find(self, key: int) -> int:
        while self.parent[key] != key:
            self.parent[key] = key = self.parent[self.parent[key]]
        return key

    def fits(self, one: int, other: int) -> bool:
        """Whether the two are, or may become, one object."""
        a, b = self.find(one), self.find(other)
        return a == b or self.tiles[a].isdisjoint(self.tiles[b])

    def unite(self, one: int, other: int) -> bool:
        """Make them one object; False where a tile would then have two fragments in it."""
        a, b = self.find(one), self.find(other)
        if a == b:
            return True
        if not self.tiles[a].isdisjoint(self.tiles[b]):
            return False
        if len(self.tiles[a]) < len(self.tiles[b]):
            a, b = b, a
        self.parent[b] = a
        self.tiles[a] |= self.tiles.pop(b)
        return True

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for key in sorted(self.parent):
            found.setdefault(self.find(key), []).append(key)
        return list(found.values())


def _settle(fragments: Mapping[int, Fragment], joined: _Joined, ties: list[KeyedTie]) -> int:
    """Decide the ties: first what other links already force, then by nesting, last by score; count what is
    left open.

    After each decision everything it forces elsewhere follows, before the next tie is decided.
    """
    sides = [(_Side(fragments, tie.first), _Side(fragments, tie.second)) for tie in ties]
    undecidable = [_undecidable(*pair) for pair in sides]
    waiting = sorted(range(len(ties)), key=lambda n: undecidable[n])
    refused = 0
    while waiting:
        still = []
        for number in waiting:
            rows, columns = _remaining(joined, ties[number])
            if rows and columns:
                still.append(number)
        moved = len(still) < len(waiting)
        for number in still:
            moved |= _forced(joined, ties[number])
        waiting = still
        if moved or not waiting:
            continue
        number = waiting.pop(0)
        made, lost = _decide(joined, ties[number], sides[number])
        refused += lost + (made if undecidable[number] else 0)
    return refused


def _remaining(joined: _Joined, tie: KeyedTie) -> tuple[list[int], list[int]]:
    """Positions of both sides that are not in one object with a fragment of the other side yet."""
    first = [joined.find(key) for key in tie.first]
    second = [joined.find(key) for key in tie.second]
    both = set(first) & set(second)
    return (
        [n for n, root in enumerate(first) if root not in both],
        [n for n, root in enumerate(second) if root not in both],
    )


def _possible(joined: _Joined, tie: KeyedTie, rows: list[int], columns: list[int]) -> NDArray[np.bool_]:
    table = tie.iou[np.ix_(rows, columns)] > 0
    for r, c in np.argwhere(table):
        table[r, c] = joined.fits(tie.first[rows[r]], tie.second[columns[c]])
    return table


def _forced(joined: _Joined, tie: KeyedTie) -> bool:
    """Unite what has only one partner left, where both sides have as many fragments.

    Whether anything was united.
    """
    moved = False
    while True:
        rows, columns = _remaining(joined, tie)
        if not rows or len(rows) != len(columns):
            return moved
        table = _possible(joined, tie, rows, columns)
        single = np.flatnonzero(table.sum(axis=1) == 1)
        if len(single):
            row, column = single[0], int(np.argmax(table[single[0]]))
        else:
            single = np.flatnonzero(table.sum(axis=0) == 1)
            if not len(single):
                return moved
            row, column = int(np.argmax(table[:, single[0]])), single[0]
        if not joined.unite(tie.first[rows[row]], tie.second[columns[column]]):
            return moved
        moved = True


def _decide(joined: _Joined, tie: KeyedTie, sides: tuple[_Side, _Side]) -> tuple[int, int]:
    """Pair the rest of a tie by evidence, then nesting rank, then score: links made, and links refused."""
    rows, columns = _remaining(joined, tie)
    one, other = sides[0].of(rows), sides[1].of(columns)
    table = tie.iou[np.ix_(rows, columns)]
    preference = np.abs(one.scores[:, None] - other.scores[None, :]) * 1e-3
    if one.nested and other.nested:
        if len(rows) == len(columns):  # k-th smallest with k-th smallest; squares make crossing pairs dearer
            away = (one.ranks[:, None] - other.ranks[None, :]) ** 2
        else:
            away = np.abs(np.log(one.areas[:, None] / other.areas[None, :]))
        preference = preference + away / max(away.max(), 1e-12)
    wanted = table - EQUAL * 1e3 * preference
    allowed = _possible(joined, tie, rows, columns)
    made = lost = 0
    for row, column in zip(*linear_sum_assignment(np.where(allowed, wanted, -1e3), maximize=True), strict=True):
        if table[row, column] <= 0:
            continue
        if allowed[row, column] and joined.unite(tie.first[rows[row]], tie.second[columns[column]]):
            made += 1
        else:
            lost += 1
    return made, lost


class _Side:
    """Areas, scores and nesting of the fragments of one tile in a tie."""

    def __init__(self, fragments: Mapping[int, Fragment], keys: Sequence[int]) -> None:
        some = [fragments[key] for key in keys]
        top = np.max([one.runs.max(axis=0) for one in some], axis=0)
        masks = MaskSet(
            (*(top[:-2] + 1).tolist(), int(top[-1])),
            np.concatenate([one.runs for one in some]),
            np.cumsum([0, *(len(one.runs) for one in some)]),
            np.zeros(len(some), np.int64),
        )
        self.areas = masks.areas
        self.scores = np.array([one.score for one in some])
        self.inside = masks.intersections(masks) == np.minimum(self.areas[:, None], self.areas[None, :])
        self.same = self.inside & (self.areas[:, None] == self.areas[None, :])

    def of(self, positions: Sequence[int]) -> _Side:
        """The side made of some of its fragments."""
        part = _Side.__new__(_Side)
        part.areas, part.scores = self.areas[positions], self.scores[positions]
        part.inside = self.inside[np.ix_(positions, positions)]
        part.same = self.same[np.ix_(positions, positions)]
        return part

    @property
    def nested(self) -> bool:
        """Whether of any two one lies inside the other (or is its twin)."""
        return bool(self.inside.all())

    @property
    def twins(self) -> bool:
        """Whether all are the same mask, so that it makes no difference which is which."""
        return bool(self.same.all())

    @property
    def ranks(self) -> NDArray[np.float64]:
        """Rank by area; twins share the mean of theirs."""
        smaller = (self.areas[None, :] < self.areas[:, None]).sum(axis=1)
        equal = (self.areas[None, :] == self.areas[:, None]).sum(axis=1)
        return smaller + (equal - 1) / 2


def _undecidable(one: _Side, other: _Side) -> bool:
    """Partially overlapping objects on both sides of a strip they cover alike.

    Masks do not say which is which.
    """
    return not (one.twins or other.twins or (one.nested and other.nested))
