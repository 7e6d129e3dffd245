"""From the model's grid back to the file's: class probabilities slice by slice, objects one by one.

Probabilities are brought to the file's grid and cut there, not the other way round: a class keeps its place to a tenth
of a voxel. Only the few slices that lie around one of the file's are held, and of those only classes that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adapters.base import DomainAdapter
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.volumes.agreement import Agreed
from pipelines.volumes.probabilities import LEAST, ClassMaps, mixed
from pipelines.volumes.resampling import Resampling, _weights, pile
from pipelines.volumes.soft import INSIDE

_NOTHING = 0.004  # one step of a byte


@dataclass(frozen=True)
class Decision:
    """Which class a voxel gets. threshold: where no class reaches it, none, unless the classes cover everything."""

    adapter: DomainAdapter
    rules: VolumeRules
    threshold: float

    @property
    def least(self) -> float:
        """Probability below which a class is left out: where classes cover everything, even the least one can win."""
        return 0.0 if self.adapter.covers else LEAST

    def __call__(self, one: ClassMaps) -> NDArray[np.uint8]:
        """Probabilities of a slice -> (h, w) uint8 ids: 0 nothing, k + 1 class k."""
        classes, probabilities = one
        shape = probabilities.shape[1:]
        if not len(classes):
            return np.zeros(shape, np.uint8)
        if self.adapter.overlap == "layered":
            # one label a voxel: inner classes are painted over the outer ones, which hold them anyway
            ids = np.zeros(shape, np.uint8)
            names = self.adapter.classes.names
            order = sorted(range(len(classes)), key=lambda n: (len(self.rules.outer(names[classes[n]])), classes[n]))
            for n in order:
                ids[probabilities[n] >= self.threshold] = classes[n] + 1
            return ids
        best = probabilities[0].copy()
        ids = np.full(shape, classes[0] + 1, np.uint8)
        for k, one_map in zip(classes[1:].tolist(), probabilities[1:]):  # a third of the time of numpy's argmax
            more = one_map > best
            ids[more] = k + 1
            np.maximum(best, one_map, out=best)
        if not self.adapter.covers:
            ids[best < self.threshold] = 0
        return ids


def restore_labels(
    slices: Iterable[ClassMaps], axis: int, resampling: Resampling, known: NDArray[np.bool_], decide: Decision
) -> NDArray[np.uint8]:
    """Class map on the source's grid out of the class probabilities of the target's slices across `axis`.

    known: voxels of the source that hold a value; the others get no class.
    """
    # the source's grid in the target's axis order; in memory slice after slice
    turned = resampling.turned
    view = np.zeros((turned[axis], *(n for a, n in enumerate(turned) if a != axis)), np.uint8)
    for position, one in enumerate(_between(slices, axis, resampling)):
        view[position] = decide(one)
    labels = resampling.turn_back(np.moveaxis(view, 0, axis))
    if not known.all():
        labels[~known] = 0
    return labels


def _between(slices: Iterable[ClassMaps], axis: int, resampling: Resampling) -> Iterator[ClassMaps]:
    """The probabilities of every slice of the source across `axis`, in order."""
    steps = [(m, n, 1 / f) for n, m, f in resampling._steps()]
    plane = [_weights(*steps[a]) for a in range(3) if a != axis]
    across = _weights(*steps[axis])
    stream = enumerate(slices)
    held: dict[int, ClassMaps] = {}
    taken = -1
    for row in range(across.shape[0]):
        part = slice(across.indptr[row], across.indptr[row + 1])
        places, shares = across.indices[part], across.data[part]
        for gone in [p for p in held if p < places.min()]:
            del held[gone]
        while taken < places.max():
            taken, one = next(stream)
            held[taken] = one if resampling.is_exact else ClassMaps(one.classes, _in_plane(one.maps, plane))
        yield mixed([held[int(p)] for p in places], shares)
    for _ in stream:  # whoever makes the slices is to come to its end
        pass


def _in_plane(maps: NDArray[np.float32], plane: list[sparse.csr_matrix]) -> NDArray[np.float32]:
    """Maps (n, h, w) on the source's grid; only the box in which a map is more than nothing is looked at."""
    result = np.zeros((len(maps), *(matrix.shape[0] for matrix in plane)), np.float32)
    for one, into in zip(maps, result):
        there = one >= _NOTHING
        parts: list[tuple[slice, slice]] = []
        for matrix, lines in zip(plane, (there.any(axis=1), there.any(axis=0))):
            places = np.flatnonzero(lines)
            if not len(places):
                break
            part = slice(int(places[0]), int(places[-1]) + 1)
            rows = np.flatnonzero(np.diff(matrix[:, part].indptr))
            parts.append((part, slice(int(rows[0]), int(rows[-1]) + 1)))
        else:
            (top, high), (left, wide) = parts
            half = plane[0][high, top] @ one[top, left]
            into[high, wide] = (plane[1][wide, left] @ half.T).T
    return result


def restore_objects(found: Iterable[Agreed], resampling: Resampling) -> MaskSet:
    """Objects on the source's grid, each cut there from its soft mask; costs what their boxes cost."""
    parts, labels, scores = [], [], []
    for number, one in enumerate(found):
        soft = one.soft
        values: NDArray = soft.values >= INSIDE if resampling.is_exact else soft.values.astype(np.float32) / 255
        mask, offset = resampling._move(values, soft.offset, forward=False)
        parts.append((number, mask, offset))
        labels.append(one.label)
        scores.append(one.score)
    if not parts:
        return MaskSet.empty(resampling.source.shape)
    return pile(resampling.source.shape, parts, len(parts)).with_labels(labels).with_scores(scores)


def forward_values(
    resampling: Resampling, values: NDArray, known: NDArray[np.bool_]
) -> tuple[NDArray, NDArray[np.bool_]]:
    """Values (C, d, h, w) and what is known of them on the model's grid; voxels without a value reach none that has.

    Where something is unknown, each voxel is the mean of the known ones around it, by their weights.
    """
    if known.all():
        return resampling.forward(values), np.ones(resampling.target.shape, bool)
    if resampling.is_exact:
        return resampling.forward(values), resampling.forward_mask(known)
    share = resampling.forward(known.astype(np.float32))
    summed = resampling.forward(np.where(known, values, 0))
    mean = np.divide(summed, share, out=np.zeros_like(summed), where=share > 1e-4)
    return mean, share >= 0.5
