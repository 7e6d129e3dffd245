"""Soft masks: how probable each pixel in and around an object is, a byte each.

A mask that was cut on a coarse grid keeps an object's centre to a quarter of a voxel on the fine one, probabilities to
a tenth. So where the model's grid is not the file's, objects travel as bytes and are cut only at the end.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maskformer.masks import MaskSet

INSIDE = 128  # the least byte of a pixel in the mask
MARGIN = 8  # pixels around the mask that are kept: as far as two views of one border may lie apart


class Soft(NamedTuple):
    """Bytes 0..255 (255: certain) of a box that begins at `offset` on the canvas; beyond it everything is 0."""

    offset: tuple[int, ...]
    values: NDArray[np.uint8]


@dataclass(frozen=True)
class SoftSet:
    """Objects of one slice and the soft mask of each; a voxel is in the mask where its byte is INSIDE or more."""

    objects: MaskSet
    soft: Sequence[Soft]

    def soft_of(self, number: int) -> Soft:
        return self.soft[number]


@dataclass(frozen=True)
class HardSet:
    """Objects whose masks are all that is known of them."""

    objects: MaskSet

    def soft_of(self, number: int) -> Soft:
        return hard(self.objects, number)


def hard(objects: MaskSet, number: int) -> Soft:
    """A mask as a soft one: 255 inside, 0 outside."""
    ndim = len(objects.shape)
    box = objects.boxes[number]
    window = [slice(int(a), int(b)) for a, b in zip(box[:ndim], box[ndim:])]
    found = objects[[number]].crop(window)
    values = found.to_dense()[0] if len(found) else np.zeros([w.stop - w.start for w in window], bool)
    return Soft(tuple(w.start for w in window), values.astype(np.uint8) * 255)


def quantised(probability: NDArray, inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Probabilities as bytes that agree with the mask: what lies in it is at least one half, the rest below."""
    values = np.rint(np.clip(probability, 0, 1) * 255).astype(np.uint8)
    return np.where(inside, np.maximum(values, INSIDE), np.minimum(values, INSIDE - 1))


def soft_of_maps(objects: MaskSet, maps: Sequence[NDArray], own: bool = True) -> list[Soft]:
    """Soft masks of a slice's objects out of one map of probabilities (h, w) each.

    own: False where disjoint objects share a map: then each takes what lies around it, and nothing of the others.
    """
    result = []
    owner = None if own else objects.to_label_map()
    for number, probability in enumerate(maps):
        box = objects.boxes[number]
        top, left = (max(int(v) - MARGIN, 0) for v in box[:2])
        bottom, right = (min(int(v) + MARGIN, n) for v, n in zip(box[2:], objects.shape))
        window = (slice(top, bottom), slice(left, right))
        inside = objects[[number]].crop(window).to_dense()[0]
        near = np.asarray(probability[window])
        if owner is not None:
            around = ndimage.binary_dilation(inside, iterations=MARGIN // 2)
            near = np.where(around & np.isin(owner[window], (0, number + 1)), near, 0)
        result.append(Soft((top, left), quantised(near, inside)))
    return result


def together(parts: Sequence[Soft]) -> Soft:
    """The mean of several soft masks, each 0 beyond its box."""
    if len(parts) == 1:
        return parts[0]
    low = np.min([p.offset for p in parts], axis=0)
    high = np.max([np.add(p.offset, p.values.shape) for p in parts], axis=0)
    total = np.zeros(high - low, np.uint16)
    for part in parts:
        start = np.subtract(part.offset, low)
        total[tuple(slice(a, a + n) for a, n in zip(start, part.values.shape))] += part.values
    return Soft(tuple(int(v) for v in low), np.rint(total / len(parts)).astype(np.uint8))


@dataclass
class SoftStore:
    """Soft masks of all slices' objects, found again by slice, class and mask once the objects are linked.

    Packed: a mask of 100 x 100 pixels takes about 1 kB.
    """

    _found: dict[tuple[int, int, bytes], tuple[tuple[int, ...], tuple[int, ...], bytes]] = field(default_factory=dict)

    def add(self, position: int, found: SoftSet) -> None:
        """Keep the soft masks of slice `position`."""
        objects = found.objects
        for number, one in enumerate(found.soft):
            runs = objects.runs[objects.offsets[number] : objects.offsets[number + 1]]
            key = (position, int(objects.labels[number]), runs.tobytes())
            self._found[key] = (one.offset, one.values.shape, zlib.compress(one.values.tobytes(), 1))

    def get(self, position: int, label: int, runs: NDArray[np.int32]) -> Soft | None:
        """The soft mask of the object with these runs (row, start, stop), or None."""
        found = self._found.get((position, label, np.ascontiguousarray(runs, np.int32).tobytes()))
        if found is None:
            return None
        offset, shape, packed = found
        return Soft(offset, np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape))


@dataclass(frozen=True)
class LinkedSet:
    """Linked objects (slices, height, width) with the soft masks of their slices; `axis` is the slices' on the grid.

    `objects` and the soft masks are on the grid, `linked` on the canvas the slices lie in.
    """

    linked: MaskSet
    objects: MaskSet
    axis: int
    store: SoftStore

    def soft_of(self, number: int) -> Soft:
        """The soft mask of one object: that of each slice, or where none is known (a bridged gap) the mask."""
        linked = self.linked
        runs = linked.runs[linked.offsets[number] : linked.offsets[number + 1]]
        at, starts = np.unique(runs[:, 0], return_index=True)
        label = int(linked.labels[number])
        pieces = []
        for position, part in zip(at.tolist(), np.split(runs[:, 1:], starts[1:])):
            own = MaskSet(linked.shape[1:], part, [0, len(part)], [label])
            pieces.append((position, self.store.get(position, label, own.runs) or hard(own, 0)))
        low = np.min([p.offset for _, p in pieces], axis=0)
        high = np.max([np.add(p.offset, p.values.shape) for _, p in pieces], axis=0)
        values = np.zeros((int(at[-1] - at[0]) + 1, *(high - low)), np.uint8)
        for position, piece in pieces:
            start = np.subtract(piece.offset, low)
            window = tuple(slice(a, a + n) for a, n in zip(start, piece.values.shape))
            values[(position - int(at[0]), *window)] = piece.values
        offset = [int(v) for v in low]
        offset.insert(self.axis, int(at[0]))
        return Soft(tuple(offset), np.moveaxis(values, 0, self.axis))
