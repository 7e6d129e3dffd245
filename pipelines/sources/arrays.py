"""Array files as scenes: `.npy`, and members of `.npz`. Never a pickle."""

from __future__ import annotations

import re
import shutil
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from adapters.channels import ChannelSet
from adapters.errors import InputError
from pipelines.sources.base import Geometry, Selection, Source
from pipelines.sources.unpack import check_space, temporary_folder

_PICTURES = ("image", "img", "scene", "data", "x", "arr_0")  # looked for where a file holds several arrays
_BAND_NAMES = ("bands", "channels", "band_names")
_ADDRESS = re.compile(r"^(?P<file>.+\.np[yz])(#(?P<key>[^:]*)(:(?P<axes>chw|hwc|hw))?)?$", re.IGNORECASE)


def is_array_file(path: str | Path) -> bool:
    """Whether the path names `.npy` or `.npz`, perhaps with `#key` and `:axes` behind."""
    return _ADDRESS.match(str(path)) is not None


@dataclass(frozen=True)
class ArrayHeader:
    """One array of a file, before its values are read. key: None for `.npy`."""

    file: Path
    key: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int  # bytes before the values, in the member
    keys: tuple[str, ...]


def read_header(path: str | Path, wanted: tuple[str, ...] = _PICTURES) -> tuple[ArrayHeader, str | None]:
    """Header of the array that the path names, and the axes it states (`chw`, `hwc`, `hw`) or None.

    Without `#key`: the only array of two or three axes, else the first of `wanted` that is there. InputError
    names the file, the key and the arrays there are.
    """
    match = _ADDRESS.match(str(path))
    if match is None:
        raise InputError(f"{path}: expected a .npy or .npz file")
    file, key, axes = Path(match["file"]), match["key"] or None, match["axes"]
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        if file.suffix.lower() == ".npy":
            with file.open("rb") as handle:
                header = _header(handle, file, None, ())
        else:
            header = _member_header(file, key, wanted)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: not an array file that can be read: {error}") from error
    return header, axes.lower() if axes else None


def load(header: ArrayHeader) -> NDArray:
    """The whole array in memory (labels; scenes are mapped from disk)."""
    try:
        with np.load(header.file, allow_pickle=False) as archive:
            return archive if header.key is None else archive[header.key]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise InputError(f"{header.file}: array '{header.key}' cannot be read: {error}") from error


class ArraySource(Source):
    """An array as a scene: (H, W), (C, H, W) or (H, W, C), without a CRS.

    Where the axes are not stated (`scene.npz#img:hwc`), the shortest of three axes holds the channels, if it
    is the first or the last; `axes` says what was taken. Floats that are not finite are not valid.
    """

    def __init__(self, path: str | Path, channels: ChannelSet | None = None) -> None:
        header, axes = read_header(path)
        self.axes = _axes(header, axes, path)
        height, width, count = _sizes(header.shape, self.axes)
        if min(height, width, count) < 1:
            raise InputError(f"{path}: the array has no pixels (shape {header.shape})")
        if header.dtype.kind not in "biuf":
            raise InputError(f"{path}: expected real numbers, found {header.dtype}")
        stored = _band_names(header, count)
        names = [(*name, f"band{i + 1}") for i, name in enumerate(stored)]
        self._selection = Selection.of(names, channels, path)
        self._header = header
        self._file = _MappedFile(header)
        dtype = np.dtype(np.uint8) if header.dtype.kind == "b" else header.dtype.newbyteorder("=")
        super().__init__(
            header.file,
            (height, width),
            self._selection.names,
            self._selection.result_dtype(dtype),
            None,
            Geometry(None, Affine.identity()),
            self._selection.imputed,
        )

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        array = self._file.array()
        if self.axes == "hw":
            planes = array[None, rows, columns]
        elif self.axes == "chw":
            planes = array[:, rows, columns]
        else:
            planes = np.moveaxis(array[rows, columns], -1, 0)
        dtype = self._selection.result_dtype(self.dtype) if not any(self.imputed) else planes.dtype
        present = np.ascontiguousarray(planes[list(self._selection.present)], dtype)
        valid = np.ones(present.shape[1:], bool)
        if present.dtype.kind == "f":
            valid &= np.isfinite(present).all(axis=0)
        return self._selection.arrange(present), valid

    def _close(self) -> None:
        self._file.close()


class _MappedFile:
    """The array mapped from disk. A member of an archive is unpacked at the first read, size checked first."""

    def __init__(self, header: ArrayHeader, unpacked: Path | None = None) -> None:
        self._header = header
        self._unpacked = unpacked
        self._remove: Any = None
        self._mapped: NDArray | None = None
        self._lock = threading.RLock()

    def array(self) -> NDArray:
        with self._lock:
            if self._mapped is None:
                try:
                    self._mapped = np.load(self._readable(), mmap_mode="r", allow_pickle=False)
                except (ValueError, OSError) as error:
                    raise InputError(f"{self._header.file}: cannot be read (truncated?): {error}") from error
            return self._mapped

    def close(self) -> None:
        with self._lock:
            self._mapped = None
            if self._remove is not None:
                self._remove()
                self._remove = self._unpacked = None

    def _readable(self) -> Path:
        header = self._header
        if header.key is None:
            return header.file
        with self._lock:
            if self._unpacked is None:
                folder, remove = temporary_folder()
                try:
                    size = int(np.prod(header.shape)) * header.dtype.itemsize
                    check_space(header.file, size, folder)
                    target = folder / "array.npy"
                    with (
                        zipfile.ZipFile(header.file) as archive,
                        archive.open(f"{header.key}.npy") as member,
                        target.open("wb") as file,
                    ):
                        # a member that holds more than its header says (a zip bomb) is cut there
                        shutil.copyfileobj(_Limited(member, size + header.offset), file, 1 << 20)
                except (zipfile.BadZipFile, OSError, EOFError) as error:
                    remove()
                    raise InputError(f"{header.file}: cannot be unpacked (damaged?): {error}") from error
                except BaseException:
                    remove()
                    raise
                self._unpacked, self._remove = target, remove
            return self._unpacked

    def __reduce__(self) -> tuple[Any, ...]:
        return _MappedFile, (self._header, self._readable())


class _Limited:
    """Reads at most so many bytes of a file."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._left = file, most

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._left) if size >= 0 else self._left)
        self._left -= len(data)
        return data


def describe_array(path: str | Path) -> dict[str, Any]:
    """See `pipelines.sources.describe`."""
    with ArraySource(path) as source:
        header = source._header
        return {
            "path": str(path),
            "driver": header.file.suffix[1:].lower(),
            "arrays": list(header.keys),
            "array": header.key,
            "axes": source.axes,
            "shape": list(source.shape),
            "bands": [
                {"index": i + 1, "names": [name], "dtype": source.dtype.name, "nodata": None, "alpha": False}
                for i, name in enumerate(source.channels)
            ],
            "dtype": source.dtype.name,
            "nodata": None,
            "mask": False,
            "crs": None,
            "transform": list(source.geometry.transform)[:6],
            "rotated": False,
            "pixel_size": [1.0, 1.0],
            "bounds": list(source.geometry.bounds(source.shape)),
            "block": None,
            "tiled": False,
            "compression": "zip" if header.key is not None else None,
            "overviews": [],
            "unpacked_first": header.key is not None,
            "bytes_file": header.file.stat().st_size,
            "bytes_pixels": int(np.prod(header.shape)) * header.dtype.itemsize,
        }


def _member_header(file: Path, key: str | None, wanted: tuple[str, ...]) -> ArrayHeader:
    with zipfile.ZipFile(file) as archive:
        keys = tuple(name[:-4] for name in archive.namelist() if name.endswith(".npy"))
        if not keys:
            raise InputError(f"{file}: the archive holds no arrays")
        headers = {}
        for name in keys if key is None else (k for k in keys if k == key):
            with archive.open(f"{name}.npy") as handle:
                headers[name] = _header(handle, file, name, keys)
    if key is not None and not headers:
        raise InputError(f"{file}: no array '{key}'; there are {', '.join(keys)}")
    pictures = {k: h for k, h in headers.items() if len(h.shape) in (2, 3)}
    if key is not None:
        return headers[key]
    if len(pictures) == 1:
        return next(iter(pictures.values()))
    for name in wanted:
        if name in pictures:
            return pictures[name]
    raise InputError(f"{file}: which array? Name it as {file.name}#KEY; there are {', '.join(keys)}")


def _header(handle: IO[bytes], file: Path, key: str | None, keys: tuple[str, ...]) -> ArrayHeader:
    version = np.lib.format.read_magic(handle)
    reader = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(handle)
    if dtype.hasobject:
        raise InputError(f"{file}: array '{key or ''}' holds Python objects, which are not read; save plain numbers")
    return ArrayHeader(file, key, tuple(shape), dtype, fortran, handle.tell(), keys)


def _axes(header: ArrayHeader, stated: str | None, path: str | Path) -> str:
    shape = header.shape
    if stated is not None:
        if len(stated) != len(shape):
            raise InputError(f"{path}: the array has shape {shape}, which '{stated}' does not fit")
        return stated
    if len(shape) == 2:
        return "hw"
    if len(shape) != 3:
        raise InputError(f"{path}: expected an array of 2 or 3 axes, found shape {shape}")
    shortest = int(np.argmin(shape))
    if shortest == 1:
        raise InputError(f"{path}: which axis of {shape} holds the channels? Write #KEY:chw or #KEY:hwc behind")
    return "chw" if shortest == 0 else "hwc"


def _sizes(shape: tuple[int, ...], axes: str) -> tuple[int, int, int]:
    """height, width, channels"""
    named = dict(zip(axes, shape))
    return named["h"], named["w"], named.get("c", 1)


def _band_names(header: ArrayHeader, count: int) -> list[tuple[str, ...]]:
    """Names from a text array `bands` or `channels` beside the picture, where there is a fitting one."""
    for key in _BAND_NAMES:
        if key in header.keys:
            with np.load(header.file, allow_pickle=False) as archive:
                names = archive[key]
            if names.dtype.kind in "US" and names.shape == (count,):
                return [(str(n),) for n in names.astype(str)]
    return [()] * count
