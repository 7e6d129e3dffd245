"""Who owns a pixel that several objects claim: the overlap policies, exact, on runs."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskformer.masks import MaskSet
from maskformer.runs import expand, offsets_of

Overlap = Literal["exclusive", "layered", "free"]
OVERLAPS: tuple[Overlap, ...] = ("exclusive", "layered", "free")


def resolve(objects: MaskSet, overlap: Overlap) -> MaskSet:
    """The set with the policy applied; order kept, objects left without a pixel dropped.

    exclusive: a pixel belongs to the object with the highest score (equal scores: to the earlier one).
    layered: the same within each class; classes may overlap. free: nothing changes.
    """
    if overlap == "free" or not len(objects):
        return objects
    shape = objects.shape
    width = shape[-1] + 1  # one free position behind every line, so that lines never touch
    line = np.zeros(len(objects.runs), np.int64)
    for axis, length in enumerate(shape[:-1]):
        line = line * length + objects.runs[:, axis]
    owner = np.repeat(np.arange(len(objects)), np.diff(objects.offsets))
    plane = int(np.prod(shape[:-1], dtype=np.int64)) * width
    base = line * width
    if overlap == "layered":
        base = base + objects.labels[owner] * plane
    rank = np.empty(len(objects), np.int64)
    rank[np.lexsort((np.arange(len(objects)), -objects.scores))] = np.arange(len(objects))
    owner, start, stop = _cover(owner, base + objects.runs[:, -2], base + objects.runs[:, -1], rank)
    order = np.lexsort((start, owner))
    owner, start, stop = owner[order], start[order] % plane, stop[order] % plane
    line = start // width
    lead = np.unravel_index(line, shape[:-1])
    runs = np.column_stack([*lead, start - line * width, stop - line * width])
    result = MaskSet(shape, runs, offsets_of(owner, len(objects)), objects.labels, objects.scores)
    return result[result.areas > 0]


def _cover(
    owner: NDArray, start: NDArray, stop: NDArray, rank: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut the line at every end of a run and give each stretch to the run of lowest rank over it.

    The cost is the number of (run, stretch) pairs: linear in the runs unless many lie on top of each other.
    """
    cuts = np.unique(np.concatenate([start, stop]))
    first = np.searchsorted(cuts, start)
    count = np.searchsorted(cuts, stop) - first
    stretch = expand(first, count)
    best = np.full(len(cuts), len(rank), np.int64)
    np.minimum.at(best, stretch, np.repeat(rank[owner], count))
    covered = np.flatnonzero(best < len(rank))
    number = np.empty(len(rank), np.int64)
    number[rank] = np.arange(len(rank))
    return number[best[covered]], cuts[covered], cuts[covered + 1]
