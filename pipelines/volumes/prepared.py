"""Cases made ready for training: on the model's grid, labels as label maps, kept in memory up to a bound.

A slice is asked for thousands of times, so a case is read, turned and resampled once. What does not fit the bound lies
in a temporary file and is read slice by slice. (MONAI's CacheDataset bounds the number of cases, not their bytes, and
gives out whole volumes; a slice of one would cost its whole volume again.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from adapters.base import DomainAdapter
from adapters.errors import InputError
from adapters.medical import for_volume
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.config import RunConfig
from pipelines.labelled import load_adapter
from pipelines.sources.unpack import check_space, temporary_folder
from pipelines.volumes.bias import flatten
from pipelines.volumes.cases import LabelledCase, gather_cases, split_cases
from pipelines.volumes.labels import VolumeLabels, read_labels
from pipelines.volumes.resampling import plan_resampling
from pipelines.volumes.restoring import forward_values
from pipelines.volumes.slicing import Slices
from pipelines.volumes.source import VolumeSource, open_volume


class Keeper:
    """Gives out arrays: of memory until `limit` bytes are given, then of temporary files."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.files = limit, 0, 0
        self._folder: Path | None = None
        self._remove: Callable[[], Any] = lambda: None

    def keep(self, array: NDArray, first: int, path: Path) -> NDArray:
        """A copy of `array` in which the slices across axis `first` lie one after the other.

        InputError, naming `path`, where the disk of the temporary files is too small.
        """
        turned = np.moveaxis(array, first, -3)
        return np.moveaxis(self._place(turned, path), -3, first)

    def close(self) -> None:
        """Remove the files; arrays that lie in them must not be used any more."""
        self._remove()
        self._folder, self._remove = None, lambda: None

    def _place(self, array: NDArray, path: Path) -> NDArray:
        if self.used + array.nbytes <= self.limit:
            self.used += array.nbytes
            return np.ascontiguousarray(array)
        if self._folder is None:
            self._folder, self._remove = temporary_folder()
        check_space(path, array.nbytes, Path(tempfile.gettempdir()))
        file = self._folder / f"{self.files}.npy"
        self.files += 1
        placed = np.lib.format.open_memmap(file, mode="w+", dtype=array.dtype, shape=array.shape)
        placed[...] = array
        placed.flush()
        return placed


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on the model's grid.

    values (C, d, h, w) in the file's units; valid (d, h, w), True where there is a value; layers (L, d, h, w): 0
    nothing, n + 1 object n, every object whole in one layer; labels (N,) class of each object; ignore (d, h, w) or
    None. adapter: its channels fitted to this volume, where the domain's adapter asks for that. axes: those its slices
    are across. right_left: the axis between the patient's right and left. digest: of the image's bytes.
    """

    patient: str
    digest: str
    adapter: DomainAdapter
    values: NDArray
    valid: NDArray[np.bool_]
    layers: NDArray
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_] | None
    axes: tuple[int, ...]
    right_left: int
    _slices: dict[int, Slices] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.valid.shape

    def slices(self, axis: int) -> Slices:
        """The pictures across an axis, on the model's scale."""
        if axis not in self._slices:
            self._slices[axis] = Slices(self.values, self.valid, axis, self.adapter)
        return self._slices[axis]

    def labels_of(self, axis: int, position: int) -> NDArray:
        """(L, h, w) label maps of one slice."""
        return np.moveaxis(self.layers, 1 + axis, 0)[position]

    def ignored(self, axis: int, position: int) -> NDArray[np.bool_]:
        """(h, w) True where nobody knows."""
        if self.ignore is None:
            shape = np.delete(self.shape, axis)
            return np.zeros(shape, bool)
        known: NDArray[np.bool_] = np.moveaxis(self.ignore, axis, 0)[position]
        return known

    def mirror_axis(self, axis: int) -> int | None:
        """The axis of the pictures across `axis` (0 rows, 1 columns) that runs right to left; None: the slices do."""
        if axis == self.right_left:
            return None
        return self.right_left - (self.right_left > axis)

    @cached_property
    def content(self) -> dict[int, dict[int, NDArray[np.int64]]]:
        """axis -> class -> positions of the slices that show it."""
        found: dict[int, dict[int, NDArray[np.int64]]] = {}
        lookup = np.concatenate([[-1], self.labels])
        for axis in self.axes:
            seen: dict[int, list[int]] = {}
            for position in range(self.shape[axis]):
                for label in np.unique(lookup[np.unique(self.labels_of(axis, position))]):
                    if label >= 0:
                        seen.setdefault(int(label), []).append(position)
            found[axis] = {label: np.array(places, np.int64) for label, places in sorted(seen.items())}
        return found

    @property
    def objects(self) -> MaskSet:
        """The labelled objects as masks."""
        parts = [
            MaskSet.from_label_map(layer, {n + 1: int(c) for n, c in enumerate(self.labels)}) for layer in self.layers
        ]
        return MaskSet.concatenate(parts) if parts else MaskSet.empty(self.shape)


class CaseStore:
    """Prepared cases of one training; close it to remove its temporary files.

    InputError as the readers do, and where two patients have the very same image: then one would be held out and
    learned from.
    """

    def __init__(self, adapter: DomainAdapter, limit_mb: int = 4096) -> None:
        self.adapter = adapter
        self.keeper = Keeper(limit_mb << 20)
        self._known: dict[int, PreparedCase] = {}
        self._owner: dict[str, str] = {}

    def prepare(
        self, cases: Sequence[LabelledCase], on_case: Callable[[int, int], None] | None = None
    ) -> list[PreparedCase]:
        """The cases made ready; each is read once in a store's life."""
        result = []
        for number, one in enumerate(cases, start=1):
            if id(one) not in self._known:
                found = prepare_case(one, self.adapter, self.keeper)
                owner = self._owner.setdefault(found.digest, found.patient)
                if owner != found.patient:
                    raise InputError(
                        f"data: case {number} of {len(cases)} has the very image of a case of another patient; "
                        "give both one patient, or leave one out"
                    )
                self._known[id(one)] = found
            result.append(self._known[id(one)])
            if on_case:
                on_case(number, len(cases))
        return result

    def digest(self, one: LabelledCase) -> str:
        """sha256 of a case's image, prepared or not."""
        if id(one) in self._known:
            return self._known[id(one)].digest
        with open_case(one, self.adapter) as source:
            return source.digest()

    def close(self) -> None:
        self._known.clear()
        self.keeper.close()

    def __enter__(self) -> CaseStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_case(one: LabelledCase, adapter: DomainAdapter) -> VolumeSource:
    """The image of a case with the adapter's channels."""
    rules = adapter.volume or VolumeRules()
    return open_volume(one.case.image, adapter.channels, rule=rules.series)


def labels_of(one: LabelledCase, source: VolumeSource, adapter: DomainAdapter) -> VolumeLabels:
    """The labels of a case on the grid of its image."""
    return read_labels(
        one.labels,
        source.geometry,
        adapter.classes,
        adapter.volume,
        instances=one.options.instances,
        resample=one.options.resample,
    )


def check_cases(config: RunConfig) -> None:
    """Every case is there with image, labels and the adapter's channels, and the split can be made; reads no voxel.

    Raises InputError.
    """
    adapter = load_adapter(config)
    cases = gather_cases(config)
    split_cases(cases, config.split)
    for one in cases:
        open_case(one, adapter).close()


def prepare_case(one: LabelledCase, adapter: DomainAdapter, keeper: Keeper) -> PreparedCase:
    """Read a case and bring it onto the model's grid."""
    with open_case(one, adapter) as source:
        return make_ready(source, labels_of(one, source, adapter), adapter, keeper, one.case.patient)


def make_ready(
    source: VolumeSource, known: VolumeLabels, adapter: DomainAdapter, keeper: Keeper, patient: str
) -> PreparedCase:
    """An opened volume and what is known about it, on the model's grid."""
    rules = adapter.volume or VolumeRules()
    resampling = plan_resampling(source.geometry, rules.orientation, adapter.spacing)
    grid = resampling.target
    flatten(source, rules)
    values, valid = forward_values(resampling, *source.read())
    axes = tuple(dict.fromkeys(grid.axis_of(plane) for plane in rules.planes))
    first, path = axes[0], source.path
    objects = resampling.forward_objects(known.objects)
    objects = objects[objects.areas > 0]
    ignore = None if known.ignore is None else resampling.forward(known.ignore, order=0)
    everywhere = bool(valid.all())
    return PreparedCase(
        patient=patient,
        digest=source.digest(),
        adapter=for_volume(adapter, source),
        values=keeper.keep(values, first + 1, path),
        # one True for all of it: no memory
        valid=np.broadcast_to(np.True_, valid.shape) if everywhere else keeper.keep(valid, first, path),
        layers=keeper.keep(_layers(objects), first + 1, path),
        labels=objects.labels.astype(np.int64),
        ignore=None if ignore is None else keeper.keep(ignore, first, path),
        axes=axes,
        right_left=next(axis for axis, (patient_axis, _) in enumerate(grid.directions) if patient_axis == 0),
    )


def _layers(objects: MaskSet) -> NDArray:
    """(L, d, h, w) label maps, in as few bytes as they need; one empty map where there is no object."""
    kind: DTypeLike = np.min_scalar_type(len(objects))
    maps = [layer.astype(kind) for layer in objects.layers()] or [np.zeros(objects.shape, np.uint8)]
    return np.stack(maps)


def pictures(case: PreparedCase, axis: int, size: int) -> Iterator[list[tuple[NDArray[np.float32], NDArray]]]:
    """All slices across an axis in order, `size` at a time."""
    slices = case.slices(axis)
    for positions in slices.batches(size):
        yield [slices[position] for position in positions]
