"""Objects that several views saw (mirrored, of other folds, of other planes), brought to one set of objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from maskformer.masks import MaskSet
from pipelines.volumes.soft import INSIDE, Soft, SoftSet, together

SAME = 0.5  # IoU above which two views show one object; above it a match of disjoint masks is unique


class View(Protocol):
    """What one view saw."""

    @property
    def objects(self) -> MaskSet: ...
    def soft_of(self, number: int) -> Soft: ...


class Agreed(NamedTuple):
    """One object of all views. score: the mean over all views, 0 where a view does not see it."""

    label: int
    score: float
    soft: Soft


def agree(views: Sequence[View], same: float = SAME) -> Iterator[Agreed]:
    """The objects of all views, those of the first view first.

    Objects of two views are one where class and place agree (IoU above `same`, one to one). Its soft mask is the mean
    over the views that see it; what only some views see sinks in score, and is left out with the other weak ones.
    """
    taken: list[set[int]] = [set() for _ in views]
    for first, view in enumerate(views):
        groups = {n: [(first, n)] for n in range(len(view.objects)) if n not in taken[first]}
        for other in range(first + 1, len(views)):
            mine = list(groups)
            theirs = [n for n in range(len(views[other].objects)) if n not in taken[other]]
            for a, b in same_objects(view.objects[mine], views[other].objects[theirs], same):
                groups[mine[a]].append((other, theirs[b]))
                taken[other].add(theirs[b])
        for number, members in groups.items():
            soft = together([views[v].soft_of(n) for v, n in members])
            if (soft.values >= INSIDE).any():
                score = sum(float(views[v].objects.scores[n]) for v, n in members) / len(views)
                yield Agreed(int(view.objects.labels[number]), score, soft)


def agree_slices(views: Sequence[SoftSet]) -> SoftSet:
    """`agree` for the views of one slice."""
    if len(views) == 1:
        return views[0]
    found = list(agree(views))
    shape = views[0].objects.shape
    if not found:
        return SoftSet(MaskSet.empty(shape), [])
    parts = [
        MaskSet.from_dense((one.soft.values >= INSIDE)[None], [one.label], [one.score]).place(shape, one.soft.offset)
        for one in found
    ]
    return SoftSet(MaskSet.concatenate(parts), [one.soft for one in found])


def same_objects(first: MaskSet, second: MaskSet, least: float) -> list[tuple[int, int]]:
    """Pairs (i, j) of one class with an IoU above `least`, one to one, of the largest sum of IoU."""
    if not len(first) or not len(second):
        return []
    iou = first.iou(second) * (first.labels[:, None] == second.labels[None, :])
    rows, columns = linear_sum_assignment(-np.where(iou > least, iou, 0.0))
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if iou[r, c] > least]
