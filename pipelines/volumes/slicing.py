"""A volume as slices with context (2.5-D), and what was found on slices back as a volume.

The slice at position p across `axis` is the picture of the other two axes in their order. With `context` neighbours on
each side its channels are those of slice p - context, then p - context + 1, ... p + context; beyond the ends the
outermost slice is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from maskformer.masks import MaskSet


@dataclass(frozen=True)
class Slices:
    """Slices of `values` (C, d, h, w), `valid` (d, h, w) across `axis` (0 to 2)."""

    values: NDArray
    valid: NDArray[np.bool_]
    axis: int
    context: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, height, width) of the pictures."""
        a, b, c = np.moveaxis(self.valid, self.axis, 0).shape
        return a, b, c

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, position: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """The picture ((2 context + 1) C, h, w) around a slice and what is valid in the slice itself."""
        turned = np.moveaxis(self.values, self.axis + 1, 1)
        near = np.clip(np.arange(position - self.context, position + self.context + 1), 0, len(self) - 1)
        picture = np.ascontiguousarray(np.moveaxis(turned[:, near], 1, 0))
        return picture.reshape(-1, *picture.shape[2:]), np.moveaxis(self.valid, self.axis, 0)[position]

    def batches(self, size: int) -> Iterator[list[int]]:
        """Positions in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield list(range(start, min(start + size, len(self))))


@dataclass(frozen=True)
class ContextAdapter:
    """An adapter whose inputs are pictures of `Slices`: each slice of the context is scaled as one of its own."""

    adapter: DomainAdapter

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "adapter":  # copying asks before the field is there
            raise AttributeError(name)
        return getattr(self.adapter, name)

    def inputs(self, array: NDArray, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """((2 n + 1) C, h, w) -> the same, float32, on the model's scale."""
        step = len(self.adapter.channels)
        if len(array) != step * (2 * self.adapter.context_slices + 1):
            raise ValueError(f"expected {2 * self.adapter.context_slices + 1} slices of {step}, found {len(array)}")
        parts = [self.adapter.inputs(array[k : k + step], valid) for k in range(0, len(array), step)]
        return np.concatenate(parts)


def turn_objects(objects: MaskSet, axis: int) -> MaskSet:
    """Objects of (slices, height, width) on the volume whose axis `axis` is the slices'; costs their boxes."""
    if axis == 0 or not len(objects):
        return objects if axis == 0 else MaskSet.empty(_turned(objects.shape, axis))
    shape = _turned(objects.shape, axis)
    parts = []
    for number in range(len(objects)):
        box = objects.boxes[number]
        window = [slice(int(a), int(b)) for a, b in zip(box[:3], box[3:])]
        mask = np.moveaxis(objects[[number]].crop(window).to_dense()[0], 0, axis) if objects.areas[number] else None
        if mask is None:
            parts.append(MaskSet.empty(shape))
            continue
        one = MaskSet.from_dense(np.ascontiguousarray(mask)[None], [objects.labels[number]], [objects.scores[number]])
        parts.append(one.place(shape, _turned(tuple(part.start for part in window), axis)))
    return MaskSet.concatenate(parts)


def _turned(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    rest = list(shape[1:])
    rest.insert(axis, shape[0])
    return tuple(rest)
