"""A volume as slices with context (2.5-D), and what was found on slices back as a volume.

The slice at position p across `axis` is the picture of the other two axes in their order. With n context slices on each
side its channels are those of slice p - n, then p - n + 1, ... p + n; beyond the ends the outermost slice is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.medical import slice_inputs
from maskformer.masks import MaskSet


@dataclass(frozen=True)
class Slices:
    """Slices of `values` (C, d, h, w), `valid` (d, h, w) across `axis` (0 to 2), on the scale of the adapter's model.

    A voxel without a value is 0 in every picture it is part of: each neighbour is masked by what is valid in itself.
    """

    values: NDArray
    valid: NDArray[np.bool_]
    axis: int
    adapter: DomainAdapter

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, height, width) of the pictures."""
        a, b, c = np.moveaxis(self.valid, self.axis, 0).shape
        return a, b, c

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, position: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The picture (C (2 n + 1), h, w) float32 around a slice and what is valid in the slice itself."""
        picture = slice_inputs(self.adapter, self.values, self.valid, position, self.axis)
        return picture, np.moveaxis(self.valid, self.axis, 0)[position]

    def batches(self, size: int) -> Iterator[list[int]]:
        """Positions in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield list(range(start, min(start + size, len(self))))


def turn_objects(objects: MaskSet, axis: int) -> MaskSet:
    """Objects of (slices, height, width) on the volume whose axis `axis` is the slices'; costs their boxes."""
    order = [1, 2]
    order.insert(axis, 0)
    return transposed(objects, order)


def transposed(objects: MaskSet, order: Sequence[int]) -> MaskSet:
    """Objects on the canvas whose axis a is axis `order[a]` of theirs; costs their boxes."""
    if list(order) == [0, 1, 2]:
        return objects
    shape = tuple(objects.shape[a] for a in order)
    parts = [MaskSet.empty(shape)]
    for number in range(len(objects)):
        box = objects.boxes[number]
        window = [slice(int(a), int(b)) for a, b in zip(box[:3], box[3:])]
        inside = objects[[number]].crop(window)
        if not len(inside):
            continue
        mask = np.ascontiguousarray(inside.to_dense()[0].transpose(order))
        one = MaskSet.from_dense(mask[None], [objects.labels[number]], [objects.scores[number]])
        parts.append(one.place(shape, [window[a].start for a in order]))
    return MaskSet.concatenate(parts)
