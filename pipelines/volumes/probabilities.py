"""Class probabilities of slices on their way through a volume: smoothed, spooled, averaged over planes.

Nothing here holds more than a few slices, and of those only the classes that are there: memory does not grow with
classes x volume.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

LEVELS = 255  # of a spooled probability: a byte, an error of at most 0.002
LEAST = 0.02  # a class that is nowhere in a slice more probable than this counts as absent: 0


class ClassMaps(NamedTuple):
    """Probabilities of one slice: `classes` (n,) rising, `maps` (n, h, w) float32; the other classes are 0."""

    classes: NDArray[np.int64]
    maps: NDArray[np.float32]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32], least: float = LEAST) -> ClassMaps:
        """The classes of (K, h, w) that reach `least` somewhere."""
        there = np.flatnonzero(probabilities.max(axis=(1, 2), initial=0) >= least)
        return cls(there, probabilities if len(there) == len(probabilities) else probabilities[there])

    def dense(self, classes: int) -> NDArray[np.float32]:
        """(classes, h, w) with the absent ones as 0."""
        result = np.zeros((classes, *self.maps.shape[1:]), np.float32)
        result[self.classes] = self.maps
        return result


def mixed(parts: Sequence[ClassMaps], shares: Sequence[float] | NDArray) -> ClassMaps:
    """The sum of several slices, each times its share."""
    if len(parts) == 1 and shares[0] == 1:
        return parts[0]
    classes = np.unique(np.concatenate([part.classes for part in parts]))
    total = np.zeros((len(classes), *parts[0].maps.shape[1:]), np.float32)
    for part, share in zip(parts, shares):
        for place, one in zip(np.searchsorted(classes, part.classes), part.maps):
            total[place] += np.float32(share) * one
    return ClassMaps(classes, total)


def smoothed(slices: Iterable[ClassMaps], kernel: Sequence[float] = (1, 2, 1)) -> Iterator[ClassMaps]:
    """Each slice averaged with its neighbours by an odd `kernel`; at the ends the rest is weighed up to 1.

    ValueError for a kernel of even length or of a weight below 0.
    """
    weights = np.asarray(kernel, np.float32)
    if weights.ndim != 1 or len(weights) % 2 == 0 or (weights < 0).any() or weights[len(weights) // 2] <= 0:
        raise ValueError(f"expected an odd number of weights from 0, a middle above 0, found {kernel}")
    reach = len(weights) // 2
    held: deque[tuple[int, ClassMaps]] = deque(maxlen=len(weights))
    count = 0
    for one in slices:
        held.append((count, one))
        count += 1
        if count > reach:
            yield _mean(held, count - 1 - reach, weights)
    for centre in range(max(0, count - reach), count):
        yield _mean(held, centre, weights)


def _mean(held: Iterable[tuple[int, ClassMaps]], centre: int, weights: NDArray[np.float32]) -> ClassMaps:
    reach = len(weights) // 2
    near = [(weights[place - centre + reach], one) for place, one in held if abs(place - centre) <= reach]
    total = sum(float(weight) for weight, _ in near)
    return mixed([one for _, one in near], [float(weight) / total for weight, _ in near])


class Spool:
    """Probabilities (K, *shape) as bytes in a temporary file; written by slices of any axis, read by slices of axis 0.

    Blocks of a class lie together, so that a slice across axis 0 is K x d short rows; reads and writes go through the
    file and not through a map, so that the pages do not count as this process' memory.
    """

    def __init__(self, classes: int, shape: Sequence[int], folder: str | Path | None = None) -> None:
        self.classes = classes
        self.shape = tuple(int(n) for n in shape)
        self._file = tempfile.TemporaryFile(dir=folder, prefix="maskbridge-planes-")  # noqa: SIM115 - closed by close()
        self._file.truncate(classes * int(np.prod(self.shape)))

    @property
    def nbytes(self) -> int:
        return self.classes * int(np.prod(self.shape))

    def write(self, axis: int, start: int, one: ClassMaps) -> None:
        """Slice `start` across `axis`, the other two axes in order; what is not written is 0."""
        depth, height, width = self.shape
        bytes_ = np.rint(np.clip(one.maps, 0, 1) * LEVELS).astype(np.uint8)
        for k, plane in zip(one.classes.tolist(), bytes_):
            base = k * depth * height * width
            volume = np.expand_dims(plane, axis)
            if axis == 0:
                self._put(base + start * height * width, volume)
                continue
            for z in range(depth):
                if axis == 1:
                    self._put(base + (z * height + start) * width, volume[z])
                else:
                    page = self._get(base + z * height * width, height * width).reshape(height, width).copy()
                    page[:, start : start + volume.shape[2]] = volume[z]
                    self._put(base + z * height * width, page)

    def read(self, position: int) -> NDArray[np.float32]:
        """Slice `position` of axis 0: (K, height, width)."""
        depth, height, width = self.shape
        pages = [
            self._get((k * depth + position) * height * width, height * width).reshape(height, width)
            for k in range(self.classes)
        ]
        return (np.stack(pages).astype(np.float32) / LEVELS).astype(np.float32, copy=False)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, offset: int, values: NDArray[np.uint8]) -> None:
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(values).tobytes())

    def _get(self, offset: int, count: int) -> NDArray[np.uint8]:
        self._file.seek(offset)
        return np.frombuffer(self._file.read(count), np.uint8)


def averaged(spools: Sequence[Spool]) -> Iterator[ClassMaps]:
    """Slices of axis 0 of the mean of several planes' probabilities, all spooled on one grid."""
    for position in range(spools[0].shape[0]):
        total = spools[0].read(position)
        for other in spools[1:]:
            total += other.read(position)
        yield ClassMaps.of(total / np.float32(len(spools)))
