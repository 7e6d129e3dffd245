"""MaskSet: N objects on one canvas, which may overlap. The currency of the whole project.

Objects are stored as row runs in one CSR layout: `runs[offsets[i]:offsets[i + 1]]` are the runs of object
i, rows `(row, start, stop)` on a picture and `(slice, row, start, stop)` in a volume. So cropping,
shifting, uniting, areas and IoU are vectorised and cost what the objects cost, not what the canvas costs.
The form is unique (runs sorted, never touching), and equality of arrays is equality of sets. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskformer import dense_overlaps, identity, label_maps, run_lengths
from maskformer import runs as rle


class MaskSet:
    """N possibly overlapping masks with a class index, a score and a stable id each; immutable.

    runs: (R, ndim + 1) int32; offsets: (N + 1,) int64; labels: (N,) class indices; scores: (N,) float32, 1
    by default. Runs of an object that come unsorted, touching or overlapping are brought into the unique
    form. Raises ValueError where shapes do not fit or a run leaves the canvas.
    """

    def __init__(
        self,
        shape: Sequence[int],
        runs: ArrayLike,
        offsets: ArrayLike,
        labels: ArrayLike,
        scores: ArrayLike | None = None,
    ) -> None:
        canvas = tuple(int(n) for n in shape)
        if len(canvas) < 2 or min(canvas) < 0 or max(canvas) >= 2**31:
            raise ValueError(f"expected a canvas of at least two axes, each 0 to 2**31 - 1 long, got {canvas}")
        run_array = rle.as_rows(runs, canvas)
        offset_array = np.array(offsets, np.int64)
        rising = offset_array.ndim == 1 and len(offset_array) and (np.diff(offset_array) >= 0).all()
        if not rising or offset_array[0] != 0 or offset_array[-1] != len(run_array):
            raise ValueError(f"expected offsets (N + 1,) rising from 0 to {len(run_array)}, got {offset_array}")
        self._fill(canvas, run_array, offset_array, labels, scores)
        start, stop = self._flat()
        if not rle.is_tidy(start, stop, offset_array):
            tidy = MaskSet.from_flat(canvas, self._owners(), start, stop, labels, scores)
            self.__dict__.update(tidy.__dict__)

    def _fill(
        self, shape: tuple[int, ...], runs: NDArray, offsets: NDArray, labels: ArrayLike, scores: ArrayLike | None
    ) -> None:
        count = len(offsets) - 1
        label_array = np.array(labels).reshape(-1) if np.size(labels) else np.zeros(0, np.int64)
        if label_array.dtype.kind not in "iu":
            raise ValueError(f"expected labels that are integer class indices, got {label_array.dtype}")
        score_array = np.ones(count, np.float32) if scores is None else np.array(scores, np.float32).reshape(-1)
        if len(label_array) != count or len(score_array) != count:
            raise ValueError(
                f"expected {count} labels and scores, got {len(label_array)} labels and {len(score_array)} scores"
            )
        if not np.isfinite(score_array).all():
            raise ValueError("expected finite scores, got NaN or infinity")
        self._shape = shape
        self._runs = rle.readonly(np.ascontiguousarray(runs, np.int32))
        self._offsets = rle.readonly(np.ascontiguousarray(offsets, np.int64))
        self._labels = rle.readonly(label_array.astype(np.int64))
        self._scores = rle.readonly(score_array)

    @classmethod
    def _trusted(
        cls, shape: tuple[int, ...], runs: NDArray, offsets: NDArray, labels: NDArray, scores: NDArray | None
    ) -> MaskSet:
        """A set whose runs are already in the unique form."""
        made = cls.__new__(cls)
        made._fill(shape, runs, offsets, labels, scores)
        return made

    def __reduce__(self) -> tuple:
        return _rebuild, (self._shape, self._runs, self._offsets, self._labels, self._scores)

    @classmethod
    def empty(cls, shape: Sequence[int]) -> MaskSet:
        """No objects on a canvas of `shape`."""
        return cls(shape, np.zeros((0, len(shape) + 1), np.int32), [0], np.zeros(0, np.int64))

    @classmethod
    def from_dense(cls, masks: ArrayLike, labels: ArrayLike, scores: ArrayLike | None = None) -> MaskSet:
        """masks (N, *shape), nonzero = inside; order kept, empty masks become objects of area 0."""
        dense = np.asarray(masks)
        if dense.ndim < 3:
            raise ValueError(f"expected masks (N, height, width) or (N, depth, height, width), got {dense.shape}")
        dense = dense if dense.dtype == bool else dense != 0
        count, shape = len(dense), dense.shape[1:]
        line, start, stop = rle.lines_to_runs(dense.reshape(int(np.prod(dense.shape[:-1])), shape[-1]))
        lines = int(np.prod(shape[:-1]))
        owner, line = np.divmod(line, max(lines, 1))
        found = rle.columns(shape, line, start, stop)
        return cls._trusted(shape, found, rle.offsets_of(owner, count), np.asarray(labels), rle.optional(scores))

    @classmethod
    def from_label_map(cls, label_map: ArrayLike, labels: Mapping[int, int] | None = None) -> MaskSet:
        """Every nonzero value of an integer map is one object, in order of value.

        `labels` gives the class index of each value (class 0 for all without it); a value it lacks is a
        ValueError.
        """
        values = np.asarray(label_map)
        if values.ndim < 2 or values.dtype.kind not in "iub":
            raise ValueError(f"expected an integer map of two or three axes, got {values.dtype} {values.shape}")
        names, owner, line, start, stop = label_maps.read(values)
        unknown = [] if labels is None else [int(value) for value in names if int(value) not in labels]
        if unknown:
            raise ValueError(f"expected a class for every value of the map, got none for {unknown[:10]}")
        classes = [0 if labels is None else labels[int(value)] for value in names]
        found = rle.columns(values.shape, line, start, stop)
        offsets = rle.offsets_of(owner, len(names))
        return cls._trusted(values.shape, found, offsets, np.array(classes, np.int64), None)

    @classmethod
    def concatenate(cls, sets: Sequence[MaskSet]) -> MaskSet:
        """The objects of several sets on the same canvas, in order."""
        if not sets:
            raise ValueError("expected at least one MaskSet to concatenate, got none")
        shapes = {one.shape for one in sets}
        if len(shapes) > 1:
            raise ValueError(f"expected sets on one canvas, got canvases {sorted(shapes)}")
        counts = np.concatenate([np.diff(one._offsets) for one in sets])
        return cls._trusted(
            sets[0].shape,
            np.concatenate([one._runs for one in sets]),
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([one._labels for one in sets]),
            np.concatenate([one._scores for one in sets]),
        )

    @classmethod
    def from_coco_rle(
        cls,
        rles: Sequence[Mapping],
        labels: ArrayLike,
        scores: ArrayLike | None = None,
        shape: Sequence[int] | None = None,
    ) -> MaskSet:
        """Masks in COCO run lengths (`{"size": [h, w], "counts": str | bytes | list}`).

        `shape` for an empty list.
        """
        canvas, owner, start, stop = run_lengths.decode(rles, shape)
        return cls.from_flat(canvas, owner, start, stop, labels, scores)

    @classmethod
    def from_flat(
        cls,
        shape: tuple[int, ...],
        owners: NDArray[np.int64],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        labels: ArrayLike,
        scores: ArrayLike | None = None,
    ) -> MaskSet:
        """Object `owners[k]` holds the flat run `starts[k]:stops[k]` (see `maskformer.runs`).

        Any order, overlaps.
        """
        owners, starts, stops = rle.merge(owners, starts, stops, rle.flat_size(shape))
        offsets = rle.offsets_of(owners, np.size(labels))
        return cls._trusted(
            shape, rle.from_flat(shape, starts, stops), offsets, np.asarray(labels), rle.optional(scores)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The canvas, (height, width) or (depth, height, width)."""
        return self._shape

    @property
    def runs(self) -> NDArray[np.int32]:
        """(R, ndim + 1) rows `(row, start, stop)` or `(slice, row, start, stop)`, half-open."""
        return self._runs

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(N + 1,) where each object's runs begin."""
        return self._offsets

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class indices."""
        return self._labels

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,) confidence, 1 where none was given."""
        return self._scores

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """(N,) pixels."""
        return rle.readonly(rle.segment_sums(self._runs[:, -1] - self._runs[:, -2], self._offsets))

    @cached_property
    def boxes(self) -> NDArray[np.int64]:
        """(N, 2 * ndim) half-open bounding boxes `[start..., stop...]`; zeros for an empty object."""
        return rle.readonly(rle.bounding_boxes(self._runs, self._offsets))

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(N,) 63-bit ids: a hash of the class, the first pixel and, among objects that share both, their
        rank.

        They depend on classes and geometry in canvas coordinates, not on the order or the canvas size.
        """
        return rle.readonly(identity.stable_ids(self._labels, self._first_pixels, self._canonical_order))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int | slice | ArrayLike) -> MaskSet:
        """The chosen objects as a set.

        By number, slice, integer array (repeats allowed) or boolean array (N,).
        """
        chosen = rle.positions(index, len(self))
        counts = np.diff(self._offsets)[chosen]
        return MaskSet._trusted(
            self._shape,
            self._runs[rle.expand(self._offsets[chosen], counts)],
            np.concatenate([[0], np.cumsum(counts)]),
            self._labels[chosen],
            self._scores[chosen],
        )

    def __repr__(self) -> str:
        return f"MaskSet({len(self)} objects on {'x'.join(map(str, self._shape))})"

    def __eq__(self, other: object) -> bool:
        """Exact: canvas, runs, labels, scores and order."""
        if not isinstance(other, MaskSet):
            return NotImplemented
        parts = ("_offsets", "_labels", "_scores", "_runs")
        same = all(np.array_equal(getattr(self, part), getattr(other, part)) for part in parts)
        return same and self._shape == other._shape

    __hash__ = None  # type: ignore[assignment]

    def same_set(self, other: MaskSet) -> bool:
        """Equal but for the order of the objects."""
        return self.canonical() == other.canonical()

    def with_labels(self, labels: ArrayLike) -> MaskSet:
        """The same masks with other class indices (N,)."""
        return MaskSet._trusted(self._shape, self._runs, self._offsets, np.asarray(labels), self._scores)

    def with_scores(self, scores: ArrayLike) -> MaskSet:
        """The same masks with other scores (N,)."""
        return MaskSet._trusted(self._shape, self._runs, self._offsets, self._labels, np.asarray(scores))

    def canonical(self) -> MaskSet:
        """Sorted by first pixel, class, area, runs, score: the order of every file."""
        return self[self._canonical_order]

    def crop(self, window: Sequence[slice]) -> MaskSet:
        """The part inside `window` (one slice an axis) in the window's coordinates.

        Order kept, empty objects dropped; objects whose box misses the window are never looked at.
        """
        return self.crop_indexed(window)[0]

    def crop_indexed(self, window: Sequence[slice]) -> tuple[MaskSet, NDArray[np.int64]]:
        """`crop`, and the positions (M,) of its objects in this set."""
        if len(window) != len(self._shape):
            raise ValueError(f"expected a window of {len(self._shape)} slices, got {len(window)}")
        if any(part.step not in (None, 1) for part in window):
            raise ValueError(f"expected a window of steps 1, got {tuple(window)}")
        bounds = np.array([part.indices(n)[:2] for part, n in zip(window, self._shape, strict=True)])
        low, high = bounds[:, 0], np.maximum(bounds[:, 0], bounds[:, 1])
        ndim = len(self._shape)
        near = np.flatnonzero(((self.boxes[:, :ndim] < high) & (self.boxes[:, ndim:] > low)).all(axis=1))
        found, counts = rle.crop(self._runs, self._offsets[near], self._offsets[near + 1], low, high)
        chosen = near[counts > 0]
        offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])])
        shape = tuple(int(n) for n in high - low)
        return MaskSet._trusted(shape, found, offsets, self._labels[chosen], self._scores[chosen]), chosen

    def place(self, shape: Sequence[int], offset: Sequence[int]) -> MaskSet:
        """The same objects on a canvas of `shape`, moved by `offset`; ValueError where one would leave it."""
        if len(shape) != len(self._shape) or len(offset) != len(self._shape):
            raise ValueError(f"expected shape and offset of {len(self._shape)} axes, got {shape} and {offset}")
        moved = self._runs + np.array([*offset, offset[-1]], np.int64)
        canvas = tuple(int(n) for n in shape)
        rle.check_inside(canvas, moved)
        return MaskSet._trusted(canvas, moved, self._offsets, self._labels, self._scores)

    def union(self, groups: ArrayLike) -> MaskSet:
        """One object for every value of `groups` (N,), in rising order: the union of its members.

        Class of the largest member (the lower class among equals), score weighted by the members' areas
        (the plain mean where all are empty). Sums are made in the order of the set.
        """
        group = np.asarray(groups)
        if group.shape != (len(self),) or (group.dtype.kind not in "iu" and len(self)):
            raise ValueError(f"expected {len(self)} integer groups, got {group.dtype} {group.shape}")
        names, member = np.unique(group, return_inverse=True)
        start, stop = self._flat()
        label, score = identity.merge(member, len(names), self._labels, self.areas, self._scores)
        owner = np.repeat(member, np.diff(self._offsets))
        return MaskSet.from_flat(self._shape, owner, start, stop, label, score)

    def overlaps(self, other: MaskSet) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All pairs that share a pixel: `(i, j, pixels)`, sorted; costs the runs that meet, not N x M.

        Where masks are so large and ragged that the pixels are fewer than the runs that meet, they are multiplied.
        """
        if self._shape != other._shape:
            raise ValueError(f"expected two sets on one canvas, got {self._shape} and {other._shape}")
        a_owner, a_start, a_stop = self._by_position()
        b_owner, b_start, b_stop = other._by_position()
        pairs = rle.count_overlapping_pairs(a_start, a_stop, b_start, b_stop)
        if dense_overlaps.is_cheaper(self, other, pairs):
            table = dense_overlaps.intersections(self, other)
            i, j = np.nonzero(table)
            return i, j, table[i, j]
        i, j = rle.overlapping_pairs(a_start, a_stop, b_start, b_stop)
        shared = np.minimum(a_stop[i], b_stop[j]) - np.maximum(a_start[i], b_start[j])
        return rle.sum_pairs(a_owner[i], b_owner[j], shared, len(other))

    def intersections(self, other: MaskSet) -> NDArray[np.int64]:
        """(N, M) shared pixels."""
        i, j, pixels = self.overlaps(other)
        table = np.zeros((len(self), len(other)), np.int64)
        table[i, j] = pixels
        return table

    def iou(self, other: MaskSet) -> NDArray[np.float64]:
        """(N, M) intersection over union; 0 where both are empty."""
        shared = self.intersections(other)
        united = self.areas[:, None] + other.areas[None, :] - shared
        return np.divide(shared, united, out=np.zeros(shared.shape), where=united > 0)

    def to_dense(self) -> NDArray[np.bool_]:
        """(N, *shape) bool."""
        start, stop = self._flat()
        base = self._owners() * rle.flat_size(self._shape)
        steps = np.zeros(len(self) * rle.flat_size(self._shape), np.int8)
        steps[base + start] = 1
        steps[base + stop] = -1
        np.cumsum(steps, out=steps)
        padded = steps.view(bool).reshape(len(self), *self._shape[:-1], self._shape[-1] + 1)
        return np.ascontiguousarray(padded[..., :-1])

    def to_label_map(self) -> NDArray[np.int32]:
        """int32 map of `shape`: 1..N by position in the set, later objects on top, 0 where there is none."""
        return self._paint(np.arange(len(self)))

    def layers(self) -> list[NDArray[np.int32]]:
        """Few label maps (values 1..N by position in the set) in each of which no objects overlap; lossless.

        Colours the graph of overlaps, most constrained object first (DSATUR, Brelaz 1979): exact for two
        layers, and in practice as many maps as the deepest pile of objects. No objects give no maps.
        """
        layer = self.layer_numbers()
        return [self._paint(np.flatnonzero(layer == n)) for n in range(layer.max(initial=-1) + 1)]

    def layer_numbers(self) -> NDArray[np.int64]:
        """(N,) number of the map of `layers` that each object lies in, without making the maps."""
        i, j, _ = self.overlaps(self)
        return label_maps.colour_graph(i[i != j], j[i != j], len(self))

    def to_coco_rle(self) -> list[dict]:
        """COCO run lengths of every object, compressed: `{"size": [h, w], "counts": str}`; pictures only."""
        if len(self._shape) != 2:
            raise ValueError(f"expected a picture for COCO run lengths, got a canvas {self._shape}")
        return run_lengths.encode(self._shape, self._owners(), *self._flat(), len(self))

    def _owners(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), np.diff(self._offsets))

    def _flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Flat start and stop of every run (see `maskformer.runs`)."""
        return rle.to_flat(self._shape, self._runs)

    def _by_position(self) -> tuple[NDArray, NDArray, NDArray]:
        start, stop = self._flat()
        order = np.argsort(start, kind="stable")
        return self._owners()[order], start[order], stop[order]

    @cached_property
    def _first_pixels(self) -> NDArray[np.int64]:
        return identity.first_pixels(self._runs, self._offsets)

    @cached_property
    def _canonical_order(self) -> NDArray[np.int64]:
        keys = (*self._first_pixels.T, self._labels, self.areas)
        return identity.canonical_order(keys, self._runs, self._offsets, self._scores)

    def _paint(self, numbers: NDArray) -> NDArray[np.int32]:
        chosen = self[numbers]
        return label_maps.paint(self._shape, *chosen._flat(), chosen._offsets, numbers + 1)


def _rebuild(shape: tuple[int, ...], runs: NDArray, offsets: NDArray, labels: NDArray, scores: NDArray) -> MaskSet:
    return MaskSet._trusted(shape, runs, offsets, labels, scores)
