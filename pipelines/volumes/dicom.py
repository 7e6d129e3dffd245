"""A DICOM series as a volume: slices in order, CT in Hounsfield units, MR as stored."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import pixel_array

from adapters.channels import ChannelSet
from adapters.errors import InputError
from adapters.volume import SeriesRule
from pipelines.sources.base import Selection
from pipelines.sources.unpack import check_space, temporary_folder
from pipelines.volumes.discretion import discreet_pydicom
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.series import Choice, Series, Slice, choose_series, find_series, read_header
from pipelines.volumes.source import VolumeSource

__all__ = ["Choice", "Series", "choose_series", "find_series", "holds_dicom", "open_dicom", "open_series"]

AIR = -1024  # HU: what scanners' padding around the round field of view becomes
_LOOKED_AT = 2000  # files until a folder counts as one without DICOM


def holds_dicom(path: Path) -> bool:
    """Whether a file is, or a folder holds, DICOM."""
    files = [path] if path.is_file() else itertools.islice((p for p in path.rglob("*") if p.is_file()), _LOOKED_AT)
    return any(read_header(p) is not None for p in files)


def open_dicom(
    folder: Path,
    channels: ChannelSet | None,
    series: str | None,
    rule: SeriesRule | None,
    allow_uneven: bool,
) -> VolumeSource:
    """The series of a folder that the UID or the rule chooses; see `pipelines.volumes.source.open_volume`."""
    choice = choose_series(find_series(folder), rule, series, folder)
    source = open_series(choice.series, folder, channels, allow_uneven)
    source.notes = choice.notes() + source.notes
    return source


def open_series(
    series: Series, where: Path, channels: ChannelSet | None = None, allow_uneven: bool = False
) -> VolumeSource:
    """One series, decoded once into a temporary file (its size is checked first) and read from there by windows.

    The array is (slice, row, column), slices rising along their normal. InputError for an uneven or tilted stack
    (unless allowed: then linearly resampled), for missing pixel data and for pixels that cannot be decoded.
    """
    hopeless = any("share a place" in p for p in series.problems)
    if series.problems and (not allow_uneven or hopeless):
        hint = "" if hopeless else "; --allow-uneven has them resampled onto an even grid"
        raise InputError(f"{where}: series {series.uid}: {'; '.join(series.problems)}{hint}")
    datasets = _headers(series, where)
    decoder = _Decoder.of(series, datasets, where)
    bytes_needed = len(series.slices) * series.rows * series.columns * decoder.dtype.itemsize
    check_space(where, bytes_needed * (2 if series.problems else 1), Path(tempfile.gettempdir()))
    folder, remove = temporary_folder()
    try:
        shape = (len(series.slices), series.rows, series.columns)
        stored = np.memmap(folder / "slices.raw", decoder.dtype, "w+", shape=shape)
        for number, one in enumerate(series.slices):
            stored[number] = decoder.read(number, one)
        geometry, notes = geometry_of(series), [*series.notes, *decoder.notes]
        if series.problems:
            stored, geometry = _even(series, stored, geometry, folder)
            notes += [f"resampled onto an even grid: {p}" for p in series.problems]
            notes.append("no DICOM-SEG can refer to these slices any more")
        stored.flush()
    except BaseException:
        remove()
        raise
    name = (series.modality or "image").casefold()
    also = channels.names if channels is not None and len(channels) == 1 else ()
    selection = Selection.of([(name, "image", *also)], channels, where)
    source = VolumeSource(
        where,
        list(dict.fromkeys(s.path for s in series.slices)),
        "dicom",
        geometry,
        [None if b is None else stored.__getitem__ for b in selection.bands],
        selection,
        selection.result_dtype(stored.dtype),
    )
    source.modality = series.modality
    source.reference = None if series.problems else datasets
    source.notes = notes
    source.extra = {
        "series": series.uid,
        "study": series.study,
        "patient": series.patient,
        "frame_of_reference": series.frame_of_reference,
    }
    source._closers = [remove]
    return source


def geometry_of(series: Series) -> VolumeGeometry:
    """Grid (slice, row, column) of the stack; LPS becomes RAS. A single slice is as thick as its header says."""
    row, column = np.array(series.orientation[:3]), np.array(series.orientation[3:])
    count = len(series.slices)
    way = series.normal
    if count > 1:
        way = (series.positions[-1] - series.positions[0]) / (count - 1)
    affine = np.eye(4)
    # PixelSpacing: between rows first, then between columns; `row` is the direction along a row
    affine[:3, :3] = np.column_stack([way, column * series.pixel[0], row * series.pixel[1]])
    affine[:3, 3] = series.positions[0]
    affine[:2] *= -1
    return VolumeGeometry((count, series.rows, series.columns), affine)


def _headers(series: Series, where: Path) -> list[Any]:
    """Datasets of the slices in order without pixels (one for a multi-frame file); InputError where pixels lack."""
    datasets, missing = [], 0
    for path in dict.fromkeys(s.path for s in series.slices):
        try:
            # private tags that make no sense are kept as they are, and never looked at
            with discreet_pydicom():
                dataset = pydicom.dcmread(path, defer_size=1024, force=True)
        except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{where}: a slice of series {series.uid} cannot be read: {type(error).__name__}"
            ) from error
        missing += not any(k in dataset for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if tag in dataset:
                delattr(dataset, tag)
        datasets.append(dataset)
    if missing:
        raise InputError(f"{where}: series {series.uid}: {missing} of {len(datasets)} files have no pixel data")
    return datasets


@dataclass
class _Decoder:
    """Reads slices in the units that `rescaled` says, as `dtype`."""

    where: Path
    series: Series
    scaling: list[tuple[float, float]]
    padding: list[tuple[float, float] | None]
    dtype: np.dtype
    rescaled: bool
    notes: list[str]

    @classmethod
    def of(cls, series: Series, datasets: list[Any], where: Path) -> _Decoder:
        by_path = dict(zip(dict.fromkeys(s.path for s in series.slices), datasets))
        scaling = [_scaling(by_path[s.path], s.frame) for s in series.slices]
        given = [s for s in scaling if s is not None]
        values = [s or (1.0, 0.0) for s in scaling]
        notes: list[str] = []
        varied = len(set(values)) > 1
        rescaled = series.modality in ("CT", "PT") or varied
        if series.modality == "CT" and not given:
            notes.append("the CT has no rescale slope: stored values were taken for Hounsfield units")
        elif varied and series.modality != "CT":
            slopes = [v[0] for v in values]
            notes.append(f"the rescale slope differs between slices ({min(slopes):.4g} to {max(slopes):.4g}): applied")
        if not rescaled:
            values = [(1.0, 0.0)] * len(values)
        padding = [_padding(by_path[s.path]) if series.modality == "CT" else None for s in series.slices]
        return cls(where, series, values, padding, _dtype(datasets, values), rescaled, notes)

    def read(self, number: int, one: Slice) -> NDArray:
        """(rows, columns) of one slice."""
        try:
            with discreet_pydicom():
                raw = pixel_array(one.path, index=one.frame)
        except Exception as error:  # the decoders' plugins raise anything; the reason is passed on
            raise InputError(
                f"{self.where}: series {self.series.uid}: slice {number + 1} cannot be decoded: "
                f"{' '.join(str(error).split())[:200] or type(error).__name__}"
            ) from error
        if raw.shape != (self.series.rows, self.series.columns):
            raise InputError(
                f"{self.where}: series {self.series.uid}: slice {number + 1} holds {raw.shape} pixels, its header "
                f"declares {(self.series.rows, self.series.columns)}"
            )
        slope, intercept = self.scaling[number]
        values = raw if (slope, intercept) == (1.0, 0.0) else raw * np.float64(slope) + intercept
        limits = self.padding[number]
        if limits is not None:
            values = np.where((raw >= limits[0]) & (raw <= limits[1]), AIR, values)
        if self.dtype.kind == "i":
            values = np.clip(values, np.iinfo(self.dtype).min, np.iinfo(self.dtype).max)
        return values.astype(self.dtype)


def _scaling(dataset: Any, frame: int | None) -> tuple[float, float] | None:
    holders = [dataset]
    if frame is not None:
        groups = [dataset.PerFrameFunctionalGroupsSequence[frame]]
        groups += list(dataset.get("SharedFunctionalGroupsSequence", None) or [])[:1]
        holders = [i for g in groups for i in (g.get("PixelValueTransformationSequence", None) or [])[:1]] + holders
    for holder in holders:
        if "RescaleSlope" in holder or "RescaleIntercept" in holder:
            slope = float(holder.get("RescaleSlope", 1) or 1)
            return slope, float(holder.get("RescaleIntercept", 0) or 0)
    return None


def _padding(dataset: Any) -> tuple[float, float] | None:
    """(lowest, highest) stored value that marks padding, or None."""
    value = dataset.get("PixelPaddingValue")
    if value is None or isinstance(value, bytes):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    first, last = float(value), float(value if limit is None or isinstance(limit, bytes) else limit)
    return min(first, last), max(first, last)


def _dtype(datasets: list[Any], scaling: list[tuple[float, float]]) -> np.dtype:
    """The narrowest type that holds every value exactly; float32 where values are not whole."""
    bits = max(int(d.get("BitsStored", d.get("BitsAllocated", 16)) or 16) for d in datasets)
    signed = any(int(d.get("PixelRepresentation", 0) or 0) for d in datasets)
    whole = all(s.is_integer() and i.is_integer() for s, i in scaling)
    if not whole or bits > 16 or "BitsStored" not in datasets[0]:
        return np.dtype(np.float32)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = [v * s + i for s, i in set(scaling) for v in (low, high)] + [AIR]
    # CT stays signed 16 bit as everywhere: its headers declare 16 bits and use 12
    if all(-(2**15) <= v < 2**15 for v in ends) or signed:
        return np.dtype(np.int16)
    return np.dtype(np.int32) if min(ends[:-1]) < 0 else np.dtype(np.uint16)


def _even(series: Series, stored: NDArray, geometry: VolumeGeometry, folder: Path) -> tuple[np.memmap, VolumeGeometry]:
    """The stack on an even grid with slices straight above each other, linearly interpolated; float32.

    Keeps the pixel grid of the first slice and widens it so that every slice of a tilted stack fits; what no slice
    saw is not a number, hence not valid.
    """
    row, column = np.array(series.orientation[:3]), np.array(series.orientation[3:])
    offsets, step = series.offsets, series.step
    count = round((offsets[-1] - offsets[0]) / step) + 1
    # in pixels (row, column): how far each slice lies from straight above the first
    drift = (series.positions - series.positions[0]) @ np.column_stack([column, row]) / series.pixel
    drift = np.where(np.abs(drift) < 1e-3, 0.0, drift)
    low, high = np.floor(drift.min(axis=0)).astype(int), np.ceil(drift.max(axis=0)).astype(int)
    shape = (count, series.rows + int(high[0] - low[0]), series.columns + int(high[1] - low[1]))
    result = np.memmap(folder / "even.raw", np.float32, "w+", shape=shape)
    for number in range(count):
        place = offsets[0] + number * step
        upper = int(np.clip(np.searchsorted(offsets, place), 1, len(offsets) - 1))
        share = float(np.clip((place - offsets[upper - 1]) / (offsets[upper] - offsets[upper - 1]), 0, 1))
        share = round(share, 6)
        planes = [
            (1 - share, _shifted(stored[upper - 1], drift[upper - 1] - low, shape[1:])) if share < 1 else None,
            (share, _shifted(stored[upper], drift[upper] - low, shape[1:])) if share > 0 else None,
        ]
        result[number] = sum(w * p for w, p in (x for x in planes if x is not None))
    affine = geometry.affine.copy()
    normal = series.normal * step * np.array([-1, -1, 1])
    affine[:3, 0] = normal
    affine[:3, 3] += affine[:3, 1] * low[0] + affine[:3, 2] * low[1]
    return result, VolumeGeometry(shape, affine)


def _shifted(plane: NDArray, shift: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The plane moved by `shift` >= 0 pixels on a wider canvas, linearly; NaN where it does not reach."""
    result = np.full(shape, np.nan, np.float32)
    whole = np.floor(shift + 1e-6).astype(int)
    part = np.clip(shift - whole, 0, 1).astype(np.float32)
    values = plane.astype(np.float32)
    for axis in (0, 1):
        if part[axis] > 1e-4:  # out[k + 1/part] lies between two rows; the last one is given up
            lower, upper = np.delete(values, -1, axis), np.delete(values, 0, axis)
            values = lower * part[axis] + upper * (1 - part[axis])
            whole[axis] += 1
    result[whole[0] : whole[0] + values.shape[0], whole[1] : whole[1] + values.shape[1]] = values
    return result
