"""What a model finds, counted block by block: the units that the bootstrap draws.

A block is a square of one scored place. Objects that cross its edge belong to the block of their box's middle, pairs to
that of the true object; pixels to the block they lie in. Sums over blocks divide to the scores of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from adapters.classes import ClassSet
from maskformer.masks import MaskSet
from pipelines.metrics import UNSEEN, match, pairs_of, without_ignored
from pipelines.promotion.frozen import Part
from pipelines.promotion.outputs import Outputs

Floats = NDArray[np.float64]

BLOCKS = 64  # of a place, at most: many enough to draw from, large enough to hold whole objects
SIDES = (32, 256)  # px: least and most of a block


@dataclass(frozen=True)
class Counts:
    """Of U blocks and K classes, each (U, K): pixels shared, found and true; objects matched, false and missed; the sum
    of the matches' IoU. Or of sums over blocks.
    """

    shared: Floats
    found: Floats
    true: Floats
    tp: Floats
    fp: Floats
    fn: Floats
    iou_sum: Floats

    NAMES: ClassVar[tuple[str, str]] = ("iou", "pq")  # of the scores of pixels and of objects

    def summed(self, weights: Floats) -> Self:
        """weights (S, U) → the counts (S, K) of S draws."""
        return type(self)(*(weights @ getattr(self, field.name) for field in fields(self)))

    def iou(self) -> Floats:
        """(…, K) pixels shared over pixels united; NaN where there are none."""
        return ratio(self.shared, self.found + self.true - self.shared)

    def pq(self) -> Floats:
        """(…, K) panoptic quality of objects: the sum of IoU over tp + fp / 2 + fn / 2."""
        return ratio(2 * self.iou_sum, 2 * self.tp + self.fp + self.fn)

    def of_pixels(self) -> Floats:
        """(…, K) the score named first in `NAMES`."""
        return self.iou()

    def of_objects(self) -> Floats:
        """(…, K) the score named second."""
        return self.pq()

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def block_of(shape: tuple[int, int]) -> NDArray[np.int64]:
    """(H, W) number of each pixel's block, the same for every model."""
    side = int(np.clip(np.sqrt(shape[0] * shape[1] / BLOCKS), *SIDES))
    across = -(-shape[1] // side)
    return (np.arange(shape[0]) // side)[:, None] * across + (np.arange(shape[1]) // side)[None]


def count(part: Part, outputs: Outputs, classes: ClassSet, covers: bool) -> Counts:
    """Compare one place with its labels. Only things are counted as objects; where labels are boxes, by boxes."""
    blocks, number = block_of(part.shape), len(classes)
    size = int(blocks[-1, -1]) + 1
    truth = class_ids(part.truth.objects)
    ignore = np.zeros(part.shape, bool) if part.truth.ignore is None else part.truth.ignore
    if covers:
        ignore = ignore | (truth == 0)
    seen = ~ignore & (outputs.ids != UNSEEN)

    def pixels(where: NDArray[np.bool_], ids: NDArray) -> Floats:
        flat = blocks[where] * (number + 1) + ids[where]
        table = np.bincount(flat, minlength=size * (number + 1)).reshape(size, number + 1)
        return table[:, 1:].astype(np.float64)

    thing = np.array(classes.is_thing)
    wanted = part.truth.objects[thing[part.truth.objects.labels]]
    objects = without_ignored(outputs.objects[thing[outputs.objects.labels]], ignore)
    pairs = pairs_of(objects, wanted, "box" if part.box_labels else "mask").above(0.5, strictly=True)
    chosen = match(pairs, pairs.iou)
    mine, theirs = _middle_block(objects, blocks), _middle_block(wanted, blocks)
    hit, missed = pairs.truth[chosen], np.setdiff1d(np.arange(len(wanted)), pairs.truth[chosen])
    false = np.setdiff1d(np.arange(len(objects)), pairs.prediction[chosen])

    def tally(where: NDArray, labels: NDArray, values: NDArray | None = None) -> Floats:
        return np.bincount(where * number + labels, values, size * number).reshape(size, number).astype(np.float64)

    return Counts(
        shared=pixels(seen & (outputs.ids == truth), truth),
        found=pixels(seen, outputs.ids),
        true=pixels(seen, truth),
        tp=tally(theirs[hit], wanted.labels[hit]),
        fp=tally(mine[false], objects.labels[false]),
        fn=tally(theirs[missed], wanted.labels[missed]),
        iou_sum=tally(theirs[hit], wanted.labels[hit], pairs.iou[chosen]),
    )


def class_ids(objects: MaskSet) -> NDArray[np.uint8]:
    """(H, W) class ids as in semantic.tif, later objects on top."""
    ids = np.concatenate([[0], objects.labels + 1]).astype(np.uint8)
    return ids[objects.to_label_map()]


def _middle_block(objects: MaskSet, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    top, left, bottom, right = objects.boxes.T
    return blocks[(top + bottom - 1) // 2, (left + right - 1) // 2]


def ratio(above: Floats, below: Floats) -> Floats:
    """NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
