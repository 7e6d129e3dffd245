"""A folder with one binary mask an object, and pictures of dots.

The folder is the layout of the 2018 Data Science Bowl (BBBC038): `<id>/images/<id>.png`, `<id>/masks/*.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from adapters.base import DomainAdapter
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.annotations.base import Annotations, count_by_class, unite_stuff
from pipelines.annotations.options import LabelOptions
from pipelines.annotations.points import table_of_points
from pipelines.annotations.tables import Table
from pipelines.sources.base import Source

MASKS = {".png", ".tif", ".tiff", ".bmp", ".gif"}
_EIGHT = ndimage.generate_binary_structure(2, 2)


def folder_labels(path: Path, source: Source, adapter: DomainAdapter, options: LabelOptions) -> Annotations:
    """One object a file, whole, so that objects may overlap; empty masks are left out and counted.

    InputError where the folder holds no mask, or a mask of another size than the picture.
    """
    files = mask_files(path)
    name = options.default_class or adapter.classes.names[0]
    if options.default_class is None and len(adapter.classes) > 1:
        raise InputError(f"{path}: which class are the masks? Name it with `default_class`")
    label = adapter.classes.index(name)
    masks = [_one(file, tuple(source.file_shape), label) for file in files]
    empty = sum(not len(mask) for mask in masks)
    whole = MaskSet.concatenate(masks)
    row, column = source.origin
    window = (slice(row, row + source.shape[0]), slice(column, column + source.shape[1]))
    objects = unite_stuff(whole if source.shape == tuple(source.file_shape) else whole.crop(window), adapter.classes)
    report: dict[str, Any] = {
        "file": str(path),
        "kind": "masks",
        "features": len(files),
        "objects": len(objects),
        "counts": count_by_class(objects, adapter.classes),
        "dropped": empty,
        "boxes": None,
        "coordinates": "pixels",
        "assumption": None,
    }
    return Annotations(objects, None, report)


def mask_files(path: Path) -> list[Path]:
    """The masks of a folder, sorted. InputError where there is none."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in MASKS and not file.name.startswith("."))
    if not files:
        raise InputError(f"{path}: no masks in the folder; expected one picture an object ({', '.join(sorted(MASKS))})")
    return files


def _one(file: Path, shape: tuple[int, ...], label: int) -> MaskSet:
    """The mask of one file on its canvas, without an object where it is empty."""
    mask = _pixels(file) > 0
    if mask.shape != shape:
        found = f"{mask.shape[1]} x {mask.shape[0]} px"
        raise InputError(f"{file}: expected the picture's size, {shape[1]} x {shape[0]} px, found {found}")
    return MaskSet.from_dense(mask[None], [label]) if mask.any() else MaskSet.empty(mask.shape)


def read_dots(path: Path) -> Table:
    """A picture whose spots, on black, mark the objects: each spot (8 neighbours) is a point at its middle."""
    spots, count = ndimage.label(_pixels(path) > 0, _EIGHT)
    middles = np.array(ndimage.center_of_mass(spots > 0, spots, range(1, count + 1)), np.float64).reshape(-1, 2)
    return table_of_points(path, middles[:, ::-1] + 0.5, "dot")


def _pixels(file: Path) -> NDArray:
    """(H, W): the largest value over the colours, alpha left out; palettes by their colours."""
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB") if opened.mode in ("P", "PA") else opened
            values = np.asarray(picture)
            alpha = picture.mode in ("LA", "RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file}: not a picture that can be read: {' '.join(str(error).split())}") from None
    if values.ndim == 3:
        values = values[..., : values.shape[2] - alpha].max(axis=2)
    return values
