"""Label rasters and arrays: pixels with class values, or with object numbers, become objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import Resampling, reproject
from scipy import ndimage

from adapters.channels import Channel, ChannelSet
from adapters.classes import BACKGROUND, IGNORE, ClassSet
from adapters.errors import InputError
from adapters.reading import listing
from maskformer.masks import MaskSet
from pipelines.annotations.base import Annotations, Region, count_by_class
from pipelines.annotations.options import LabelOptions
from pipelines.annotations.placing import extent_text
from pipelines.sources.arrays import load, read_header
from pipelines.sources.base import Source
from pipelines.sources.geotiff import RasterSource

_ARRAYS = ("msk", "mask", "masks", "label", "labels", "gt", "annotation", "y", "arr_0")
_FOUR = ndimage.generate_binary_structure(2, 1)
_EIGHT = ndimage.generate_binary_structure(2, 2)
_OUTSIDE, _KNOWN, _UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class _Grid:
    """Label values on the scene's pixels: values (H, W), state (H, W) of _OUTSIDE, _KNOWN, _UNKNOWN."""

    file: str
    values: NDArray
    state: NDArray[np.uint8]
    note: str | None = None


def raster_labels(path: str | Path, source: Source, classes: ClassSet, options: LabelOptions) -> Annotations:
    """Objects of a label raster. The file's nodata value says nothing (ignore), unless the classes claim it.

    A raster with another CRS or grid is resampled to the scene's pixels by the nearest value; without a CRS on either
    side it must have the scene's size and is taken pixel for pixel.
    """
    with RasterSource(path, _band(path, options)) as labels:
        if len(labels.channels) != 1:
            raise InputError(
                f"{path}: expected one band of labels, found {len(labels.channels)} "
                f"({listing(labels.channels)}); name one with `layer`"
            )
        planes, valid = labels.read()
        values = planes[0]
        state = np.where(valid, _KNOWN, _UNKNOWN).astype(np.uint8)
        if labels.nodata is not None and np.isfinite(labels.nodata) and classes.claims(_whole(labels.nodata)):
            state[values == labels.nodata] = _KNOWN
        return _objects(_on_scene(values, state, labels, source), classes, options)


def array_labels(path: str | Path, source: Source, classes: ClassSet, options: LabelOptions) -> Annotations:
    """Objects of an array of the scene's size, (H, W) or with one more axis of length 1."""
    address = f"{path}#{options.layer}" if options.layer and "#" not in str(path) else path
    header, _ = read_header(address, _ARRAYS)
    shape = tuple(n for n in header.shape if n != 1) if len(header.shape) > 2 else header.shape
    if header.dtype.kind not in "biuf":
        raise InputError(f"{path}: expected numbers, found {header.dtype}")
    if len(shape) != 2:
        raise InputError(f"{path}: expected labels of shape {source.file_shape}, found {header.shape}")
    values = load(header).reshape(shape)
    state = np.full(shape, _KNOWN, np.uint8)
    if values.dtype.kind == "f":
        state[~np.isfinite(values)] = _UNKNOWN
    return _objects(_pixel_for_pixel(str(path), values, state, source), classes, options)


def _band(path: str | Path, options: LabelOptions) -> ChannelSet | None:
    if options.layer is None:
        return None
    index = (int(options.layer),) if options.layer.isdigit() and int(options.layer) > 0 else ()
    return ChannelSet((Channel(options.layer, index),))


def _on_scene(values: NDArray, state: NDArray[np.uint8], labels: RasterSource, source: Source) -> _Grid:
    """The labels on the scene's pixels, by the rule in `raster_labels`."""
    here, there = source.geometry, labels.geometry
    if here.crs is None or there.crs is None:
        return _pixel_for_pixel(str(labels.path), values, state, source)
    shift = ~here.transform @ there.transform
    same = np.allclose(list(shift)[:6], (1, 0, 0, 0, 1, 0), atol=1e-3) and here.crs == there.crs
    if same and values.shape == source.shape:
        return _Grid(str(labels.path), values, state)
    moved = {
        "src_transform": there.transform,
        "src_crs": there.crs,
        "dst_transform": here.transform,
        "dst_crs": here.crs,
        "resampling": Resampling.nearest,
        "tolerance": 0.0,  # exact: GDAL's default may be off by 1/8 px
    }
    placed = np.zeros(source.shape, values.dtype)
    reproject(values, placed, **moved)
    covered = np.zeros(source.shape, np.uint8)
    reproject(state, covered, **moved)
    if not covered.any():
        unit = here.crs.to_string()[:60]
        raise InputError(
            f"{labels.path}: the labels do not overlap the scene {source.path}: labels "
            f"{extent_text(there.bounds(labels.shape))} ({there.crs.to_string()[:60]}); scene "
            f"{extent_text(here.bounds(source.shape))} ({unit})"
        )
    return _Grid(str(labels.path), placed, covered, "resampled to the scene's pixels by the nearest value")


def _pixel_for_pixel(file: str, values: NDArray, state: NDArray[np.uint8], source: Source) -> _Grid:
    if values.shape != tuple(source.file_shape):
        raise InputError(
            f"{file}: expected the size of {source.path}, {source.file_shape[1]} x {source.file_shape[0]} px, found "
            f"{values.shape[1]} x {values.shape[0]} px (without a CRS on both sides labels fit pixel for pixel)"
        )
    (row, column), (height, width) = source.origin, source.shape
    window = (slice(row, row + height), slice(column, column + width))
    return _Grid(file, values[window], state[window], "taken pixel for pixel")


def _objects(grid: _Grid, classes: ClassSet, options: LabelOptions) -> Annotations:
    unknown = grid.state == _UNKNOWN
    if options.outside == "ignore":
        unknown |= grid.state == _OUTSIDE
    known = grid.state == _KNOWN
    found, inverse, amounts = np.unique(grid.values[known], return_inverse=True, return_counts=True)
    counts = {_value(v, grid.file): int(n) for v, n in zip(found, amounts)}
    codes = _instance_codes(counts, classes, options) if options.instances else classes.codes(counts, grid.file, "px")
    table = np.array([codes[v] for v in counts], np.int64)
    coded = np.full(grid.values.shape, BACKGROUND, np.int64)
    coded[known] = table[inverse] if len(table) else BACKGROUND
    unknown |= coded == IGNORE
    if options.instances:
        objects = _by_value(grid.values, coded)
    else:
        objects = _by_region(coded, classes, _FOUR if options.connectivity == 4 else _EIGHT)
    notes = [grid.note] if grid.note else []
    if not options.instances and any(classes.is_thing):
        notes.append(f"each {options.connectivity}-connected region of a thing class is one object")
    report: dict[str, Any] = {
        "file": grid.file,
        "kind": "instance raster" if options.instances else "class raster",
        "features": len(objects),
        "objects": len(objects),
        "counts": count_by_class(objects, classes),
        "values": {str(value): n for value, n in counts.items()},
        "repaired": 0,
        "dropped": 0,
        "outside": int((grid.state == _OUTSIDE).sum()),
        "tiny": 0,
        "ignored": int(unknown.sum()),
        "background": int(((coded == BACKGROUND) & ~unknown).sum()),
        "other_pictures": 0,
        "coordinates": "pixels",
        "boxes": None,
        "assumption": "; ".join(notes) or None,
    }
    return Annotations(objects, Region.of(unknown), report)


def _by_region(coded: NDArray[np.int64], classes: ClassSet, structure: NDArray) -> MaskSet:
    """Regions of things and whole stuff classes, as one label map (class values exclude each other)."""
    numbered = np.zeros(coded.shape, np.int32)
    labels: dict[int, int] = {}
    for index, thing in enumerate(classes.is_thing):
        mask = coded == index
        if not mask.any():
            continue
        regions, count = ndimage.label(mask, structure) if thing else (mask.astype(np.int32), 1)
        numbered[mask] = regions[mask] + len(labels)
        labels.update({len(labels) + 1 + i: index for i in range(count)})
    return MaskSet.from_label_map(numbered, labels)


def _by_value(values: NDArray, coded: NDArray[np.int64]) -> MaskSet:
    """One object for each value of a class, however many pieces it has."""
    owned = coded >= 0
    found, inverse = np.unique(values[owned], return_inverse=True)
    numbered = np.zeros(coded.shape, np.int32)
    numbered[owned] = inverse + 1
    first = np.zeros(len(found), np.int64)
    first[inverse] = coded[owned]
    return MaskSet.from_label_map(numbered, {i + 1: int(c) for i, c in enumerate(first)})


def _instance_codes(counts: dict[int, int], classes: ClassSet, options: LabelOptions) -> dict[int, int]:
    """Every value is an object of one class; 0 and the values the classes set apart are none."""
    if options.default_class is None and len(classes) > 1:
        raise InputError(f"labels: instances: which class are they? Name it with `default_class`: {classes.describe()}")
    index = 0 if options.default_class is None else classes.index(options.default_class)
    background = (0, *(classes.background_values or ()))

    def code(value: int) -> int:
        if value in classes.ignore_values:
            return IGNORE
        return BACKGROUND if value in background else index

    return {value: code(value) for value in counts}


def _value(value: Any, file: str) -> int:
    if float(value) != int(value):
        raise InputError(f"{file}: expected whole numbers as class values, found {value}")
    return int(value)


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
