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
from pipelines.ends import End
from pipelines.evidence import EQUAL, Tie

CONVINCING = 0.5  # mean gain of likeness from which traits overrule nesting ranks; a right angle is 1


class Fragment(NamedTuple):
    """One object of one tile, but for its runs."""

    tile: int
    label: int
    score: float
    area: int
    seen_whole_by: tuple[int, ...]  # tiles that see all of a fragment which its own tile's inner border cuts
    ends: tuple[End, ...] = ()  # where that border cuts a long one
    traits: NDArray[np.float16] | None = None  # (D,) class probabilities or embedding, where the model gives any


class Link(NamedTuple):
    """Two fragments (keys) that one strip matched."""

    certainty: float
    shared: int
    first: int
    second: int


Runs = Mapping[int, NDArray[np.int32]]


def components(
    fragments: Mapping[int, Fragment], runs: Runs, links: Sequence[Link], ties: Sequence[Tie]
) -> tuple[list[list[int]], int]:
    """Partition the fragments of a cluster, given with their runs in scene coordinates, into objects.

    Returns the objects (sorted keys each) and how many links stayed ambiguous: refused because they would
    have put two fragments of one tile into one object, or decided although the masks do not say how.
    """
    tiles = {fragment.tile for fragment in fragments.values()}
    if not ties and len(tiles) == len(fragments) and all(link.shared for link in links):  # every link fits
        return [sorted(fragments)], 0
    joined = _Joined(fragments)
    refused = 0
    for link in sorted(links, key=lambda one: (-one.certainty, -one.shared, one.first, one.second)):
        known = joined.find(link.first) == joined.find(link.second)
        fits = joined.unite(link.first, link.second)
        refused += not fits or (not link.shared and not known)  # no pixel in common: a guess across a gap
    joined.moved.clear()
    if ties:
        refused += _settle(fragments, runs, joined, sorted(ties, key=lambda one: (one.first, one.second)))
    return joined.groups(), refused


class _Joined:
    """Union-find in which no set may hold two fragments of one tile."""

    def __init__(self, fragments: Mapping[int, Fragment]) -> None:
        self.parent = {key: key for key in fragments}
        self.tiles = {key: {fragment.tile} for key, fragment in fragments.items()}
        self.members = {key: [key] for key in fragments}
        self.moved: set[int] = set()  # tiles of the smaller sides since somebody looked

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
        self.moved |= self.tiles[b]
        self.tiles[a] |= self.tiles.pop(b)
        self.members[a] += self.members.pop(b)
        return True

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for key in sorted(self.parent):
            found.setdefault(self.find(key), []).append(key)
        return list(found.values())


def _known_sizes(fragments: Mapping[int, Fragment], joined: _Joined, keys: Sequence[int]) -> NDArray[np.int64]:
    """(n,) areas of the objects that fragments belong to by now, in the tiles where all of these have a part.

    Tells fragments apart that fill their tile alike, once other tiles have shown which of them is the larger one.
    """
    roots = [joined.find(key) for key in keys]
    common = set.intersection(*(joined.tiles[root] for root in roots))
    sizes = [sum(fragments[n].area for n in joined.members[root] if fragments[n].tile in common) for root in roots]
    return np.array(sizes, np.int64)


def _settle(fragments: Mapping[int, Fragment], runs: Runs, joined: _Joined, ties: list[Tie]) -> int:
    """Decide the ties: first what other links already force, then nested ones, then the rest; count the
    guesses.

    After each decision everything it forces elsewhere follows before the next tie is decided. A decision
    can force something only in ties of the tiles that its smaller side brought in, so each tie is looked at
    a few times.
    """
    sides = _Sides(fragments, runs)
    ties_of: dict[int, list[int]] = {}
    for number, tie in enumerate(ties):
        for key in (tie.first[0], tie.second[0]):
            ties_of.setdefault(fragments[key].tile, []).append(number)
    _follow(joined, ties, ties_of, list(range(len(ties))))
    waiting = [tie for tie in ties if all(_remaining(joined, tie))]
    waiting.sort(key=lambda tie: not (sides[tie.first].nested and sides[tie.second].nested))
    ambiguous = 0
    for tie in waiting:
        ambiguous += _decide(fragments, joined, tie, sides)
        _follow(joined, ties, ties_of, [])
    return ambiguous


def _follow(joined: _Joined, ties: list[Tie], ties_of: Mapping[int, list[int]], queue: list[int]) -> None:
    """Unite whatever has one partner left in the ties of `queue` and of the tiles that moved, until nothing
    does.
    """
    while queue or joined.moved:
        if joined.moved:
            tiles = sorted(joined.moved)
            joined.moved.clear()
            queue = sorted({*queue, *(number for tile in tiles for number in ties_of.get(tile, ()))})
        _forced(joined, ties[queue.pop(0)])


def _remaining(joined: _Joined, tie: Tie) -> tuple[list[int], list[int]]:
    """Positions of both sides that are not in one object with a fragment of the other side yet."""
    first = [joined.find(key) for key in tie.first]
    second = [joined.find(key) for key in tie.second]
    both = set(first) & set(second)
    return (
        [n for n, root in enumerate(first) if root not in both],
        [n for n, root in enumerate(second) if root not in both],
    )


def _forced(joined: _Joined, tie: Tie) -> None:
    """Unite what has only one partner left, where both sides have as many fragments left."""
    rows, columns = _remaining(joined, tie)
    while rows and len(rows) == len(columns):
        partners = {
            r: [c for c in columns if tie.iou[r, c] > 0 and joined.fits(tie.first[r], tie.second[c])] for r in rows
        }
        single = next(((r, found[0]) for r, found in partners.items() if len(found) == 1), None)
        if single is None:
            for column in columns:
                suitors = [r for r in rows if column in partners[r]]
                if len(suitors) == 1:
                    single = suitors[0], column
                    break
        if single is None or not joined.unite(tie.first[single[0]], tie.second[single[1]]):
            return
        rows, columns = _remaining(joined, tie)


def _decide(fragments: Mapping[int, Fragment], joined: _Joined, tie: Tie, sides: _Sides) -> int:
    """Pair the rest of a tie by evidence, then equal scores, nesting rank, likeness of traits, nearest score.

    Returns how many of the links are a guess (two partially overlapping objects look nested in either tile)
    or refused.
    """
    rows, columns = _remaining(joined, tie)
    if not rows or not columns:
        return 0
    one, other = sides[tie.first].of(rows), sides[tie.second].of(columns)
    table = tie.iou[np.ix_(rows, columns)]
    mine = _known_sizes(fragments, joined, [tie.first[r] for r in rows])
    theirs = _known_sizes(fragments, joined, [tie.second[c] for c in columns])
    # of twins that nobody has told apart yet it makes no difference which is which
    proven = (one.twins and not np.ptp(mine)) or (other.twins and not np.ptp(theirs))
    nested = one.nested and other.nested
    if one.same_scores(other):  # to the bit, and no two alike: the same object seen twice
        preference = (one.scores[:, None] != other.scores[None, :]).astype(float)
        proven = True
    elif nested:
        if len(rows) == len(columns):  # k-th smallest with k-th smallest; squares make crossing pairs dearer
            away = (one.ranks(mine)[:, None] - other.ranks(theirs)[None, :]) ** 2
        else:
            away = np.abs(np.log(one.areas[:, None] / other.areas[None, :]))
        preference = away / max(away.max(), 1e-12) + 1e-3 * np.abs(one.scores[:, None] - other.scores[None, :])
    else:
        preference = np.abs(one.scores[:, None] - other.scores[None, :])
    allowed = np.array([[joined.fits(tie.first[r], tie.second[c]) for c in columns] for r in rows])
    chosen = _assigned(table, preference, allowed)
    if not proven:
        unlike = _unlikeness([fragments[tie.first[r]] for r in rows], [fragments[tie.second[c]] for c in columns])
        other_way = chosen if unlike is None else _assigned(table, unlike + 1e-3 * preference, allowed)
        if unlike is not None and (unlike[chosen] - unlike[other_way]).mean() > (CONVINCING if nested else 0):
            chosen = other_way
    ambiguous = 0
    for row, column in zip(*chosen, strict=True):
        if table[row, column] <= 0:
            continue
        fits = allowed[row, column] and joined.unite(tie.first[rows[row]], tie.second[columns[column]])
        ambiguous += not (fits and proven)
    return ambiguous


def _assigned(
    table: NDArray[np.float64], preference: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns paired by the greatest evidence, then by the least `preference`."""
    wanted = table - EQUAL * 1e3 * preference
    rows, columns = linear_sum_assignment(np.where(allowed, wanted, -1e3), maximize=True)
    return rows, columns


def _unlikeness(first: Sequence[Fragment], second: Sequence[Fragment]) -> NDArray[np.float64] | None:
    """(n, m) half the squared distance of unit traits, less what all have in common; None where some have none.

    0 for the same direction, 2 for opposite ones.
    """
    traits = [one.traits for one in (*first, *second)]
    if any(one is None for one in traits):
        return None
    table = np.array(traits, np.float64)
    table -= table.mean(axis=0)  # fragments of one class agree in most: what tells them apart is the rest
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return 1 - table[: len(first)] @ table[len(first) :].T


class _Side:
    """Areas, scores and nesting of the fragments of one tile in a tie."""

    def __init__(self, fragments: Mapping[int, Fragment], runs: Runs, keys: Sequence[int]) -> None:
        some = [fragments[key] for key in keys]
        mine = [runs[key] for key in keys]
        top = np.max([one.max(axis=0) for one in mine], axis=0)
        masks = MaskSet(
            (*(top[:-2] + 1).tolist(), int(top[-1])),
            np.concatenate(mine),
            np.cumsum([0, *(len(one) for one in mine)]),
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

    def same_scores(self, other: _Side) -> bool:
        """Whether both sides have the same scores, all different."""
        mine = np.unique(self.scores)
        return len(mine) == len(self.scores) and np.array_equal(mine, np.sort(other.scores))

    def ranks(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rank by area, then by `sizes`; what is equal in both shares the mean of its ranks."""
        areas = self.areas
        alike = areas[None, :] == areas[:, None]
        smaller = (areas[None, :] < areas[:, None]) | (alike & (sizes[None, :] < sizes[:, None]))
        equal = alike & (sizes[None, :] == sizes[:, None])
        return smaller.sum(axis=1) + (equal.sum(axis=1) - 1) / 2


class _Sides(dict[tuple[int, ...], _Side]):
    """The sides of ties, made when first asked for: a tile has the same ones in several strips."""

    def __init__(self, fragments: Mapping[int, Fragment], runs: Runs) -> None:
        super().__init__()
        self.fragments, self.runs = fragments, runs

    def __missing__(self, keys: tuple[int, ...]) -> _Side:
        self[keys] = side = _Side(self.fragments, self.runs, keys)
        return side
