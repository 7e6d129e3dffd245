"""Objects of slices become objects of the volume: the stitching law for slices that do not overlap (rule 6).

Neighbouring slices see no voxel twice, so the evidence is the IoU of two fragments seen through the slices. Links are
one to one between two slices and taken in order of certainty: IoU first; then, among what is left over, containment:
the top of a ball is one voxel on a disc of sixty, an IoU of 0.02, and yet the same ball. numpy and scipy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from maskformer.masks import MaskSet


@dataclass(frozen=True)
class LinkRules:
    """When two fragments are one object.

    iou: least IoU of neighbouring fragments. cover: least share of the smaller one that lies in the larger, for
    fragments that IoU left alone on both sides; above 1 turns this off. gap: slices in between in which an object may
    be missing; it is filled with what both sides share, so that an object is never in two pieces. 0 by default: with
    any gap, two objects in line behind an empty slice could become one. min_voxels: smaller objects are left out.
    ValueError outside these ranges.
    """

    iou: float = 0.3
    cover: float = 0.5
    gap: int = 0
    min_voxels: float = 1

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1 or self.cover <= 0 or self.gap < 0:
            raise ValueError(f"expected iou in 0..1, cover above 0 and gap from 0, found {self}")


@dataclass
class _Open:
    """An object that may go on: its last fragment and all it has been so far. `serial` is the order of opening."""

    serial: int
    label: int
    last: int  # the slice of its last fragment
    front: MaskSet  # that fragment
    runs: list[NDArray[np.int32]] = field(default_factory=list)
    voxels: int = 0
    score_sum: float = 0.0

    def take(self, position: int, fragment: MaskSet, bridge: Sequence[tuple[int, MaskSet]] = ()) -> None:
        """Grow by the fragment of a slice, and by what fills the slices in between."""
        for place, piece in (*bridge, (position, fragment)):
            column = np.full((len(piece.runs), 1), place, np.int32)
            self.runs.append(np.hstack([column, piece.runs]))
            area = int(piece.areas[0])
            self.voxels += area
            self.score_sum += area * float(fragment.scores[0])
        self.last, self.front = position, fragment


class SliceLinker:
    """Links the objects of slices that come in order; memory is the open objects.

    shape: (slices, height, width). The result depends on the masks alone, not on the order of the objects in a slice.
    """

    def __init__(self, shape: Sequence[int], rules: LinkRules | None = None) -> None:
        depth, height, width = (int(n) for n in shape)
        self.shape = depth, height, width
        self.rules = rules or LinkRules()
        self._open: list[_Open] = []
        self._next = 0
        self._serial = 0

    def add(self, position: int, objects: MaskSet) -> MaskSet:
        """Take the objects of slice `position` (rising; slices without objects may be left out).

        Returns the objects this closed, on the volume's canvas. ValueError for a slice out of order or of another size.
        """
        if not self._next <= position < self.shape[0]:
            raise ValueError(f"expected a slice from {self._next} to {self.shape[0] - 1}, found {position}")
        if objects.shape != self.shape[1:]:
            raise ValueError(f"expected slices of {self.shape[1:]}, found {objects.shape}")
        self._next = position + 1
        closed = self._close(position - 2 - self.rules.gap)
        fragments = objects[objects.areas > 0].canonical()
        free = self._continue(position, fragments)
        for number in free:
            one = _Open(self._serial, int(fragments.labels[number]), position, fragments[[number]])
            one.take(position, one.front)
            self._open.append(one)
            self._serial += 1
        return closed

    def finish(self) -> MaskSet:
        """The objects that are still open."""
        return self._close(self.shape[0])

    def _continue(self, position: int, fragments: MaskSet) -> list[int]:
        """Give fragments to open objects, the nearest slice first; returns those that nobody took."""
        free = list(range(len(fragments)))
        for last in range(position - 1, position - 2 - self.rules.gap, -1):
            waiting = sorted((one for one in self._open if one.last == last), key=lambda one: one.serial)
            if not waiting or not free:
                continue
            # in the canonical order of their fronts, so that equal evidence is decided by the masks
            fronts = MaskSet.concatenate([one.front for one in waiting])
            order = fronts._canonical_order
            waiting, fronts = [waiting[k] for k in order], fronts[order]
            pairs = _pairs(fronts, fragments[free], self.rules)
            for mine, theirs in pairs:
                fragment = fragments[[free[theirs]]]
                bridge = _bridge(waiting[mine], position, fragment)
                waiting[mine].take(position, fragment, bridge)
            taken = {theirs for _, theirs in pairs}
            free = [number for k, number in enumerate(free) if k not in taken]
        return free

    def _close(self, before: int) -> MaskSet:
        """Remove the objects last seen in slice `before` or earlier."""
        done = [one for one in self._open if one.last <= before]
        self._open = [one for one in self._open if one.last > before]
        done = [one for one in done if one.voxels >= self.rules.min_voxels]
        if not done:
            return MaskSet.empty(self.shape)
        runs = [np.concatenate(one.runs) for one in done]
        return MaskSet(
            self.shape,
            np.concatenate(runs),
            np.cumsum([0, *(len(part) for part in runs)]),
            [one.label for one in done],
            [one.score_sum / one.voxels for one in done],
        )


def link_slices(shape: Sequence[int], slices: Iterable[tuple[int, MaskSet]], rules: LinkRules | None = None) -> MaskSet:
    """Link the objects of all slices of a volume `shape`; the result in canonical order."""
    linker = SliceLinker(shape, rules)
    parts = [linker.add(position, objects) for position, objects in slices]
    return MaskSet.concatenate([*parts, linker.finish()]).canonical()


def torn(objects: MaskSet) -> NDArray[np.bool_]:
    """(N,) objects of a volume that skip a slice, or whose parts in two neighbouring slices share no voxel's column.

    The audit after linking: such an object would be two objects under one id.
    """
    result = np.zeros(len(objects), bool)
    for number in range(len(objects)):
        runs = objects.runs[objects.offsets[number] : objects.offsets[number + 1]]
        at, starts = np.unique(runs[:, 0], return_index=True)
        if (np.diff(at) > 1).any():
            result[number] = True
            continue
        pieces = [_picture(objects.shape[1:], part[:, 1:]) for part in np.split(runs, starts[1:])]
        result[number] = any(not len(a.overlaps(b)[0]) for a, b in itertools.pairwise(pieces))
    return result


def _picture(shape: Sequence[int], runs: NDArray) -> MaskSet:
    return MaskSet(shape, runs, [0, len(runs)], [0])


def _pairs(fronts: MaskSet, fragments: MaskSet, rules: LinkRules) -> list[tuple[int, int]]:
    """One to one links between two slices: by IoU, then by containment among those left over on both sides."""
    shared = fronts.intersections(fragments) * (fronts.labels[:, None] == fragments.labels[None, :])
    mine, theirs = fronts.areas[:, None], fragments.areas[None, :]
    iou = shared / (mine + theirs - shared)
    found = _assign(iou, rules.iou)
    cover = shared / np.minimum(mine, theirs)
    for one, other in found:
        cover[one, :] = cover[:, other] = 0.0
    # of equal covers the one that looks more alike: 1e-3 x IoU never outweighs a voxel of a small fragment
    return sorted(found + _assign(np.where(cover >= rules.cover, cover + 1e-3 * iou, 0.0), rules.cover))


def _assign(evidence: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """The assignment of most evidence among pairs that have at least `least`; equal ones go by position."""
    allowed = np.where(evidence >= least, evidence, 0.0)
    rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
    part = allowed[np.ix_(rows, columns)]
    if part.size == 0:
        return []
    # a total order for ties: 1e-9 x difference in rank is beneath any difference of two real IoUs of one slice pair
    rank = np.abs(np.arange(len(rows))[:, None] - np.arange(len(columns))[None, :]) / (len(rows) + len(columns))
    chosen = linear_sum_assignment(np.where(part > 0, part - 1e-9 * rank, 0.0), maximize=True)
    return [(int(rows[i]), int(columns[j])) for i, j in zip(*chosen) if part[i, j] > 0]


def _bridge(one: _Open, position: int, fragment: MaskSet) -> list[tuple[int, MaskSet]]:
    """What fills the slices an object was missing in: the pixels both of its neighbours have."""
    missing = range(one.last + 1, position)
    if not missing:
        return []
    both = np.asarray((one.front.to_dense() & fragment.to_dense()).any(axis=0))[None]
    piece = MaskSet.from_dense(both, [one.label])
    return [(place, piece) for place in missing]
