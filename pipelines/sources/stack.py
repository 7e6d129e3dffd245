"""A scene in several files, one band a file, as Sentinel-2 and Landsat are delivered: a folder of rasters.

A band goes by its file's name, whole and in parts (`T32_20210605_B04_10m` is found as `B04`). Bands of coarser pixels
that cover the same ground are resampled to the finest among the bands in use; files with several bands (previews) are
passed over.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters.channels import ChannelSet
from adapters.errors import InputError
from pipelines.sources.base import Selection, Source
from pipelines.sources.geotiff import RasterSource, open_dataset
from pipelines.sources.resampled import ResampledSource

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img")


class StackSource(Source):
    """The bands of a folder's rasters, in one grid. Valid where every band in use is.

    InputError: no single-band raster there, a declared channel that is not, bands in different CRS or on different
    ground (with both geometries).
    """

    def __init__(self, path: str | Path, channels: ChannelSet | None = None) -> None:
        folder = Path(path)
        files = _finest(_rasters(folder))
        selection = Selection.of([_names(file) for file in files], channels, folder)
        with ExitStack() as stack:
            used = {b: stack.enter_context(RasterSource(files[b])) for b in selection.present}
            reference = max(used.values(), key=lambda member: member.shape)
            self._members = {band: _on_grid(member, reference) for band, member in used.items()}
            stack.pop_all()
        self._selection = selection
        stored = np.result_type(*(member.dtype for member in self._members.values()))
        nodata = {member.nodata for member in self._members.values()}
        super().__init__(
            folder,
            reference.shape,
            selection.names,
            selection.result_dtype(stored),
            nodata.pop() if len(nodata) == 1 else None,
            reference.geometry,
            selection.imputed,
        )
        self.tags = reference.tags
        self.block = reference.block

    def digest(self) -> str:
        """Of the names and bytes of the files in use."""
        whole = hashlib.sha256()
        for band in sorted(self._members):
            member = self._members[band]
            whole.update(f"{Path(member.path).name}\0{member.digest()}\0".encode())
        return whole.hexdigest()

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        planes, valid = [], np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        for band in self._selection.present:
            array, seen = self._members[band].read((rows, columns))
            planes.append(array[0])
            valid &= seen
        return self._selection.arrange(np.stack(planes)), valid

    def _close(self) -> None:
        for member in self._members.values():
            member.close()


def is_stack(path: str | Path) -> bool:
    """Whether `path` is a folder with rasters in it, at any depth."""
    return "://" not in str(path) and Path(path).is_dir() and bool(_candidates(Path(path)))


def _candidates(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _rasters(folder: Path) -> list[Path]:
    """The single-band rasters under `folder`."""
    found = []
    for file in _candidates(folder):
        with open_dataset(file) as dataset:
            if dataset.count == 1:
                found.append(file)
    if not found:
        raise InputError(f"{folder}: no raster with a single band in it; a scene in one file is given by its file")
    return found


def _finest(files: list[Path]) -> list[Path]:
    """Of files that bear the same band at several pixel sizes (Sentinel-2's R10m, R20m), the finest."""
    best: dict[str, tuple[int, Path]] = {}
    for file in files:
        with open_dataset(file) as dataset:
            pixels = dataset.width * dataset.height
        key = re.sub(r"[_\-]?\d+m$", "", file.stem, flags=re.IGNORECASE)
        if key not in best or pixels > best[key][0]:
            best[key] = (pixels, file)
    return sorted(file for _, file in best.values())


def _names(file: Path) -> tuple[str, ...]:
    """What a file's band goes by: the ends of its name (`SR_B4`, `B4`), its parts, its description."""
    parts = file.stem.split("_")
    ends = ["_".join(parts[start:]) for start in range(len(parts))]
    with open_dataset(file) as dataset:
        description = dataset.descriptions[0]
    return tuple(dict.fromkeys([*([description] if description else []), *ends, *parts]))


def _on_grid(member: RasterSource, reference: RasterSource) -> Source:
    if member.geometry.crs != reference.geometry.crs:
        raise InputError(f"{member.path}: is in another CRS than {Path(reference.path).name}; bands must share one")
    if member.shape == reference.shape and member.geometry.transform.almost_equals(reference.geometry.transform):
        return member
    ratio = tuple(theirs / ours for theirs, ours in zip(member.shape, reference.shape, strict=True))
    bounds, wanted = member.geometry.bounds(member.shape), reference.geometry.bounds(reference.shape)
    # Half a coarse pixel: what remains when a border of a product does not divide by 20 or 60 m.
    slack = 0.5 * max((bounds[2] - bounds[0]) / member.shape[1], (bounds[3] - bounds[1]) / member.shape[0])
    if any(abs(a - b) > slack for a, b in zip(bounds, wanted, strict=True)):
        raise InputError(
            f"{member.path}: covers {bounds} in {member.shape} pixels, but {Path(reference.path).name} covers "
            f"{wanted} in {reference.shape}; the bands of a scene must cover the same ground"
        )
    return ResampledSource(member, ratio, reference.shape)  # type: ignore[arg-type]
