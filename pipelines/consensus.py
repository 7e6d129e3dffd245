"""Objects seen in several views of one tile: keep those of the first view, as the views together see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from maskformer.masks import MaskSet

SAME = 0.5  # mask IoU above which two views show one object; above it, the match is unique for disjoint masks


def agree(views: Sequence[MaskSet]) -> MaskSet:
    """Merge the views of one tile (same canvas).

    Every object of the first view is matched to at most one of each other view (same class, mask IoU above
    0.5). Its mask becomes the majority of the masks found, ties going to the first view; its score the mean
    over all views, counting 0 where a view does not see it. So what flips disagree on sinks in score. The order stays
    that of the first view; an object that no majority sees has no pixel left.
    """
    first, *others = views
    if not others or not len(first):
        return first
    votes = first.to_dense().astype(np.int16)
    own = votes.astype(bool)
    seen = np.ones(len(first), np.int16)
    scores = first.scores.astype(np.float64)
    for other in others:
        for mine, theirs in _matches(first, other):
            votes[mine] += other[theirs : theirs + 1].to_dense()[0]
            seen[mine] += 1
            scores[mine] += other.scores[theirs]
    twice = 2 * votes
    majority = (twice > seen[:, None, None]) | ((twice == seen[:, None, None]) & own)
    return MaskSet.from_dense(majority, first.labels, scores / len(views))


def _matches(first: MaskSet, other: MaskSet) -> list[tuple[int, int]]:
    if not len(other):
        return []
    iou = first.iou(other) * (first.labels[:, None] == other.labels[None, :])
    rows, columns = linear_sum_assignment(-iou)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if iou[r, c] > SAME]
