"""A volume on the grid the model wants, and results back on the grid it came from.

Only flips, a permutation of the axes and a change of spacing: an oblique volume keeps its oblique directions, since a
rotation would blur it and could not be undone exactly. The two grids share their centre, so nothing moves.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from maskformer.masks import MaskSet
from pipelines.volumes.geometry import VolumeGeometry, codes_of

_SLAB = 1 << 22  # voxels a dense matrix product works on at once


@dataclass(frozen=True)
class Resampling:
    """source, target: the two grids. Target axis a is source axis `axes[a]`, run backwards where `flips[a]`."""

    source: VolumeGeometry
    target: VolumeGeometry
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def turned(self) -> tuple[int, int, int]:
        """The source's shape in the target's axis order."""
        a, b, c = (self.source.shape[axis] for axis in self.axes)
        return a, b, c

    @property
    def factors(self) -> tuple[float, float, float]:
        """Target voxels in the length of one source voxel, along each target axis."""
        fine, wanted = self.source.spacing, self.target.spacing
        # Bit-equal lengths come back from the affine with rounding: a factor of 1 must be exactly 1.
        a, b, c = (round(fine[axis] / wanted[i], 9) for i, axis in enumerate(self.axes))
        return a, b, c

    @property
    def is_exact(self) -> bool:
        """Whether every voxel only changes its place: no interpolation in either direction."""
        return self.turned == self.target.shape and self.factors == (1.0, 1.0, 1.0)

    def forward(self, volume: NDArray, order: int = 1) -> NDArray:
        """(..., *source.shape) -> (..., *target.shape).

        order 1: linear, averaging where the grid gets coarser (float32; where nothing is interpolated, a view of the
        volume). order 0: the nearest voxel, any type. Beyond the outermost centres the outermost value holds.
        """
        if volume.shape[-3:] != self.source.shape:
            raise ValueError(f"expected a volume (..., {self.source.shape}), found {volume.shape}")
        turned = self._turn(volume)
        if self.is_exact:
            return turned
        if order == 0:
            steps = zip(self.turned, self.target.shape, self.factors)
            places = np.ix_(*[_nearest(n, m, f) for n, m, f in steps])
            return turned[..., places[0], places[1], places[2]]
        return _interpolate(turned, [_weights(n, m, f) for n, m, f in self._steps()])

    def forward_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (*source.shape) on the target grid: voxels of which at least half lies inside.

        A mask too thin for that keeps the voxel it fills most, so that a small lesion stays one.
        """
        return self.forward(mask) if self.is_exact else _half(self.forward(mask.astype(np.float32)))

    def back_mask(self, mask: NDArray) -> NDArray[np.bool_]:
        """A mask (bool) or probabilities (float) (*target.shape) on the source grid, cut at one half.

        Probabilities keep an object's centre to a tenth of a voxel; a mask that was cut on a coarser grid to a quarter.
        """
        if mask.shape != self.target.shape:
            raise ValueError(f"expected a mask {self.target.shape}, found {mask.shape}")
        if self.is_exact:
            return self._turn_back(mask if mask.dtype == bool else mask >= 0.5)
        values = _interpolate(mask.astype(np.float32), [_weights(m, n, 1 / f) for n, m, f in self._steps()])
        return self._turn_back(_half(values) if mask.dtype == bool else values >= 0.5)

    def back_labels(self, labels: NDArray) -> NDArray:
        """Label map (*target.shape) on the source grid, same type: the label with the largest share of the voxel.

        The shares are linear weights of the eight nearest voxels, whatever the number of labels; among equal shares
        the higher label wins, so a tie never moves an object sideways. Works slice by slice.
        """
        if labels.shape != self.target.shape:
            raise ValueError(f"expected labels {self.target.shape}, found {labels.shape}")
        if self.is_exact:
            return self._turn_back(labels)
        taps = [_taps(n, m, f) for n, m, f in self._steps()]
        result = np.empty(self.turned, labels.dtype)
        for position, (low, share) in enumerate(zip(*taps[0])):
            pair = labels[low : low + 2] if share else labels[low : low + 1]
            result[position] = _vote(pair, share, taps[1], taps[2])
        return self._turn_back(result)

    def forward_objects(self, objects: MaskSet) -> MaskSet:
        """Every object by itself on the target grid, overlaps kept; costs what the objects' boxes cost."""
        return self._objects(objects, self.source, self.target, forward=True)

    def back_objects(self, objects: MaskSet) -> MaskSet:
        """Every object by itself on the source grid, overlaps kept."""
        return self._objects(objects, self.target, self.source, forward=False)

    def _steps(self) -> list[tuple[int, int, float]]:
        return list(zip(self.turned, self.target.shape, self.factors))

    def _turn(self, volume: NDArray) -> NDArray:
        lead = volume.ndim - 3
        turned = volume.transpose(*range(lead), *(lead + a for a in self.axes))
        a, b, c = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return turned[..., a, b, c]

    def turn_back(self, volume: NDArray) -> NDArray:
        """What lies on the source's grid but in the target's axis order, as a view in the source's own."""
        turned = volume[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return turned.transpose(*np.argsort(self.axes))

    def _turn_back(self, volume: NDArray) -> NDArray:
        return np.ascontiguousarray(self.turn_back(volume))

    def _objects(self, objects: MaskSet, grid: VolumeGeometry, other: VolumeGeometry, forward: bool) -> MaskSet:
        if objects.shape != grid.shape:
            raise ValueError(f"expected objects on {grid.shape}, found {objects.shape}")
        parts = []
        for number in np.flatnonzero(objects.areas):
            box = objects.boxes[number]
            window = [slice(int(a), int(b)) for a, b in zip(box[:3], box[3:])]
            mask = objects[int(number)].crop(window).to_dense()[0]
            moved, offset = self._move(mask, [part.start for part in window], forward)
            parts.append((int(number), moved, offset))
        return pile(other.shape, parts, len(objects)).with_labels(objects.labels).with_scores(objects.scores)

    def _move(self, mask: NDArray, start: Sequence[int], forward: bool) -> tuple[NDArray, list[int]]:
        """A box of a mask that begins at `start`: the same on the other grid, and where it begins there."""
        if forward:
            turned = self._turn(mask)
            begin = [
                self.source.shape[a] - start[a] - mask.shape[a] if flip else start[a]
                for a, flip in zip(self.axes, self.flips)
            ]
            steps = self._steps()
        else:
            turned, begin = mask, list(start)
            steps = [(m, n, 1 / f) for n, m, f in self._steps()]
        weights, offset = [], []
        for first, length, step in zip(begin, turned.shape, steps):
            matrix = _weights(*step)[:, first : first + length]
            rows = np.flatnonzero(np.diff(matrix.indptr))
            weights.append(matrix[rows[0] : rows[-1] + 1])
            offset.append(int(rows[0]))
        moved = turned if self.is_exact else _half(_interpolate(turned.astype(np.float32), weights))
        if forward:
            return np.ascontiguousarray(moved), offset
        ends = [n - o - s if flip else o for n, o, s, flip in zip(self.turned, offset, moved.shape, self.flips)]
        place = [ends[int(k)] for k in np.argsort(self.axes)]
        return self._turn_back(moved), place


def plan_resampling(
    geometry: VolumeGeometry,
    orientation: str | None = "RAS",
    spacing_mm: Sequence[float] | None = None,
) -> Resampling:
    """How a volume gets the wanted orientation (None: the file's own) and spacing (mm along the target's axes).

    The target covers the source and shares its centre; where the spacing does not divide the extent the outermost
    voxels reach beyond it by less than half a voxel. ValueError for an orientation or a spacing that is none.
    """
    have = geometry.directions
    want = have if orientation is None else codes_of(orientation)
    axes = [next(i for i, (axis, _) in enumerate(have) if axis == wanted) for wanted, _ in want]
    flips = [have[i][1] != sign for i, (_, sign) in zip(axes, want)]
    fine = [geometry.spacing[i] for i in axes]
    coarse = fine if spacing_mm is None else [float(s) for s in spacing_mm]
    if len(coarse) != 3 or not all(np.isfinite(s) and s > 0 for s in coarse):
        raise ValueError(f"expected three spacings above 0 mm, found {spacing_mm}")
    turned = [geometry.shape[i] for i in axes]
    # The headers' float32 leave 1e-7 of noise: a spacing that is the same but for it changes nothing.
    coarse = [f if abs(f - c) <= 1e-4 * f else c for f, c in zip(fine, coarse)]
    shape = [max(1, int(np.ceil(n * f / c - 1e-3))) for n, f, c in zip(turned, fine, coarse)]
    matrix = np.zeros((3, 3))
    start = np.zeros(3)  # of the target's first voxel, in source indices
    for a, (i, flip) in enumerate(zip(axes, flips)):
        step = coarse[a] / fine[a]
        sign = -1 if flip else 1
        matrix[i, a] = sign * step
        start[i] = (turned[a] - 1) / 2 - sign * step * (shape[a] - 1) / 2
    affine = np.eye(4)
    affine[:3, :3] = geometry.affine[:3, :3] @ matrix
    affine[:3, 3] = geometry.world(start)
    target = VolumeGeometry((shape[0], shape[1], shape[2]), affine, geometry.frame)
    return Resampling(geometry, target, (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def pile(shape: Sequence[int], parts: Sequence[tuple[int, NDArray[np.bool_], Sequence[int]]], count: int) -> MaskSet:
    """Objects 0..count-1, each with its number as label, from boxes `(number, mask, offset)`; several unite."""
    owners, starts, stops = [], [], []
    for number, mask, offset in parts:
        start, stop = MaskSet.from_dense(mask[None], [0]).place(shape, offset)._flat()
        owners.append(np.full(len(start), number, np.int64))
        starts.append(start)
        stops.append(stop)
    owner, start, stop = (np.concatenate(p) if p else np.zeros(0, np.int64) for p in (owners, starts, stops))
    return MaskSet.from_flat(tuple(shape), owner, start, stop, np.arange(count))


def _centres(length: int, target: int, factor: float) -> NDArray[np.float64]:
    """(target,) positions of the target's centres on the source's axis; the middles of both axes coincide."""
    middle = (np.arange(target, dtype=np.float64) - (target - 1) / 2) / factor
    return middle + (length - 1) / 2


def _nearest(length: int, target: int, factor: float) -> NDArray[np.int64]:
    return np.clip(np.floor(_centres(length, target, factor) + 0.5), 0, length - 1).astype(np.int64)


@functools.lru_cache(maxsize=64)
def _weights(length: int, target: int, factor: float) -> sparse.csr_matrix:
    """(target, length) rows that sum to 1: a triangle of the wider of the two grids' spacings."""
    width = max(1.0, 1 / factor)
    centre = _centres(length, target, factor)
    reach = int(np.ceil(width)) + 1
    column = np.floor(centre).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    weight = np.maximum(0.0, 1 - np.abs(column - centre[:, None]) / width)
    weight /= weight.sum(axis=1, keepdims=True)
    # A sampled triangle of a fractional width leans to one side (0.01 voxel): tilted until its mean is the centre.
    away = column - centre[:, None]
    mean = (weight * away).sum(axis=1, keepdims=True)
    spread = (weight * (away - mean) ** 2).sum(axis=1, keepdims=True)
    weight *= 1 - np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 1e-6) * (away - mean)
    row = np.repeat(np.arange(target), column.shape[1])
    inside = np.clip(column, 0, length - 1).ravel()  # the outermost value holds beyond
    kept = weight.ravel() > 1e-9
    entries = (weight.ravel()[kept].astype(np.float32), (row[kept], inside[kept]))
    matrix = sparse.csr_matrix(entries, shape=(target, length))
    matrix.sum_duplicates()
    return matrix


def _interpolate(volume: NDArray, weights: Sequence[sparse.csr_matrix]) -> NDArray[np.float32]:
    """Apply one matrix to each of the last three axes, those that shrink the volume most first.

    The result's voxels lie in memory as the volume's do.
    """
    lead = volume.ndim - 3
    stored = np.argsort([-abs(step) for step in volume.strides[lead:]], kind="stable")
    result = volume.transpose(*range(lead), *(lead + stored))
    matrices = [weights[axis] for axis in stored]
    for axis in sorted(range(3), key=lambda a: matrices[a].shape[0] / matrices[a].shape[1]):
        matrix = matrices[axis]
        if matrix.shape[0] == matrix.shape[1] and (matrix != sparse.identity(matrix.shape[0])).nnz == 0:
            continue
        result = _along(np.ascontiguousarray(result, np.float32), matrix, lead + axis)
    result = np.ascontiguousarray(result, np.float32)
    return result.transpose(*range(lead), *(lead + np.argsort(stored)))


def _along(volume: NDArray[np.float32], matrix: sparse.csr_matrix, axis: int) -> NDArray[np.float32]:
    before, after = volume.shape[:axis], volume.shape[axis + 1 :]
    result = np.empty((*before, matrix.shape[0], *after), np.float32)
    if axis == volume.ndim - 1:  # sparse columns would stride; a dense product by slabs is faster
        dense = np.ascontiguousarray(matrix.toarray().T)
        lines, rows = volume.reshape(-1, volume.shape[-1]), result.reshape(-1, result.shape[-1])
        step = max(1, _SLAB // max(dense.shape))
        for start in range(0, len(lines), step):
            np.matmul(lines[start : start + step], dense, out=rows[start : start + step])
        return result
    flat = volume.reshape(int(np.prod(before, dtype=np.int64)), volume.shape[axis], -1)
    out = result.reshape(len(flat), matrix.shape[0], -1)
    for part, into in zip(flat, out):
        into[...] = matrix @ part
    return result


def _half(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where at least half is covered; where no voxel is, the one that is covered most. 1e-4: float32's rounding."""
    mask = values >= 0.5 - 1e-4
    peak = values.max(initial=0.0)
    return mask if peak == 0 or mask.any() else values >= peak


def _taps(length: int, target: int, factor: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of `length` source voxels the lower of its two target voxels and the share (0..1) of the upper."""
    place = np.clip(_centres(target, length, 1 / factor), 0, target - 1)
    place = np.round(place, 9)
    low = np.minimum(np.floor(place), max(target - 2, 0)).astype(np.int64)
    return low, place - low


def _vote(pair: NDArray, share: float, rows: tuple, columns: tuple) -> NDArray:
    """One slice: labels (1 or 2, h, w) on the target -> the winners at every (row, column)."""
    (row, y), (column, x) = rows, columns
    below = np.minimum(row + 1, pair.shape[1] - 1)
    right = np.minimum(column + 1, pair.shape[2] - 1)
    corners = [(p, r, c) for p in range(len(pair)) for r in (row, below) for c in (column, right)]
    votes = np.stack([pair[p][np.ix_(r, c)] for p, r, c in corners])
    result = votes[0].copy()
    mixed = np.nonzero((votes != votes[0]).any(axis=0))
    if not len(mixed[0]):
        return result
    found = votes[:, mixed[0], mixed[1]]
    across = [(1 - share), share][: len(pair)]
    ys, xs = (1 - y[mixed[0]], y[mixed[0]]), (1 - x[mixed[1]], x[mixed[1]])
    weight = np.stack([z * v * w for z in across for v in ys for w in xs])
    total = np.stack([np.where(found == one, weight, 0).sum(axis=0) for one in found])
    best = total >= total.max(axis=0) - 1e-9
    result[mixed] = np.where(best, found, np.iinfo(found.dtype).min if found.dtype.kind in "iu" else -np.inf).max(
        axis=0
    )
    return result
