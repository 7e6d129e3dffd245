"""From the model's grid back to the file's: class probabilities slice by slice, objects one by one.

Probabilities are brought to the file's grid and cut there, not the other way round: a class keeps its place to a tenth
of a voxel. Only the few slices that lie around one of the file's are held, and of those only classes that can win.
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
from pipelines.volumes.resampling import Resampling, _interpolate, _weights, pile
from pipelines.volumes.soft import INSIDE

_SURE = 0.9  # of the threshold: a class below this in all slices around cannot reach the threshold between them


@dataclass(frozen=True)
class Decision:
    """Which class a voxel gets. threshold: where no class reaches it, none, unless the classes cover everything."""

    adapter: DomainAdapter
    rules: VolumeRules
    threshold: float

    def candidates(self, probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
        """Classes (rising) that can win a voxel of this slice (K, h, w), or of one between it and its neighbours."""
        if self.adapter.covers:
            return np.arange(len(probabilities))
        return np.flatnonzero(probabilities.max(axis=(1, 2)) >= _SURE * self.threshold)

    def __call__(self, classes: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(n, h, w) probabilities of `classes` -> (h, w) uint8 ids: 0 nothing, k + 1 class k."""
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
        ids = (classes + 1).astype(np.uint8)[probabilities.argmax(axis=0)]
        if not self.adapter.covers:
            ids[probabilities.max(axis=0) < self.threshold] = 0
        return ids


def restore_labels(
    slices: Iterable[NDArray[np.float32]], axis: int, resampling: Resampling, known: NDArray[np.bool_], decide: Decision
) -> NDArray[np.uint8]:
    """Class map on the source's grid out of the class probabilities (K, h, w) of the target's slices across `axis`.

    known: voxels of the source that hold a value; the others get no class.
    """
    turned = np.zeros(resampling.turned, np.uint8)  # the source's grid in the target's axis order
    view = np.moveaxis(turned, axis, 0)
    for position, (classes, probabilities) in enumerate(_between(slices, axis, resampling, decide)):
        view[position] = decide(classes, probabilities)
    labels = resampling._turn_back(turned)
    labels[~known] = 0
    return labels


_Held = tuple[NDArray[np.int64], NDArray[np.float32]]  # classes, and the probability maps of these


def _between(
    slices: Iterable[NDArray[np.float32]], axis: int, resampling: Resampling, decide: Decision
) -> Iterator[_Held]:
    """Classes and probabilities of every slice of the source across `axis`, in order."""
    steps = [(m, n, 1 / f) for n, m, f in resampling._steps()]
    plane = [_weights(*steps[a]) for a in range(3) if a != axis]
    across = _weights(*steps[axis])
    stream = enumerate(slices)
    held: dict[int, _Held] = {}
    taken = -1
    for row in range(across.shape[0]):
        part = slice(across.indptr[row], across.indptr[row + 1])
        places, shares = across.indices[part], across.data[part]
        for gone in [p for p in held if p < places.min()]:
            del held[gone]
        while taken < places.max():
            taken, one = next(stream)
            classes = decide.candidates(one)
            held[taken] = classes, _in_plane(one[classes], plane, resampling.is_exact)
        yield _mixed([held[int(p)] for p in places], shares)
    for _ in stream:  # whoever makes the slices is to come to its end
        pass


def _in_plane(maps: NDArray[np.float32], plane: list[sparse.csr_matrix], exact: bool) -> NDArray[np.float32]:
    if exact:
        return maps
    if not len(maps):
        return np.zeros((0, *(matrix.shape[0] for matrix in plane)), np.float32)
    nothing = sparse.identity(len(maps), np.float32, "csr")
    return _interpolate(maps, [nothing, *plane])


def _mixed(parts: list[_Held], shares: NDArray[np.float32]) -> _Held:
    """The weighted mean; a class that one of the slices does not hold is 0 there."""
    if len(parts) == 1:
        return parts[0]
    classes = np.unique(np.concatenate([found for found, _ in parts]))
    shape = parts[0][1].shape[1:]
    total = np.zeros((len(classes), *shape), np.float32)
    for (found, maps), share in zip(parts, shares):
        for place, one in zip(np.searchsorted(classes, found), maps):
            total[place] += share * one
    return classes, total


def restore_objects(found: Iterable[Agreed], resampling: Resampling) -> MaskSet:
    """Objects on the source's grid, each cut there from its soft mask; costs what their boxes cost."""
    parts, labels, scores = [], [], []
    for number, one in enumerate(found):
        soft = one.soft
        values = soft.values >= INSIDE if resampling.is_exact else soft.values.astype(np.float32) / 255
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
