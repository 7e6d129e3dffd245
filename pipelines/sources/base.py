"""What every source has in common: its place on the ground, windows, views, the digest."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from adapters.channels import ChannelSet
from adapters.errors import InputError

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Geometry:
    """Where a picture lies: a CRS (rasterio's, or None) and the affine from (column, row) to map coordinates.

    Pixel (row 0, column 0) covers (0, 0) to (1, 1) of the affine's domain. Without a CRS and a transform in
    the
    file the affine is the identity: map coordinates are pixels, y down.
    """

    crs: Any | None
    transform: Affine

    def shifted(self, row: int, column: int) -> Geometry:
        """The same grid with its origin moved to (row, column)."""
        return Geometry(self.crs, self.transform @ Affine.translation(column, row))

    @property
    def georeferenced(self) -> bool:
        """Whether pixels have a place on the ground that is known by name."""
        return self.crs is not None

    def bounds(self, shape: Sequence[int]) -> tuple[float, float, float, float]:
        """(xmin, ymin, xmax, ymax) of a (H, W) picture, also under rotation."""
        height, width = shape
        corners = [self.transform @ c for c in ((0, 0), (width, 0), (0, height), (width, height))]
        xs, ys = zip(*corners)
        return min(xs), min(ys), max(xs), max(ys)


class Source:
    """A scene, or a rectangle of one, read by windows. Safe to share between threads and to send to workers.

    path: the file. shape: (H, W) px. channels: one name a plane that `read` returns. dtype: of the values, as
    stored. nodata: the value that marks pixels without data, or None. geometry: CRS and affine of this
    rectangle. origin: (row, column) of this rectangle in the file, which is file_shape px. imputed: planes the file
    does not have.
    scales, offsets: what the file says a plane's value means (value × scale + offset); applied where the channel asks
    for physical units.
    """

    block: tuple[int, int] | None = None  # (rows, columns) px that the file decodes at once; None: it does not say

    def __init__(
        self,
        path: Path | str,
        shape: tuple[int, int],
        channels: tuple[str, ...],
        dtype: np.dtype,
        nodata: float | None,
        geometry: Geometry,
        imputed: tuple[bool, ...] | None = None,
        scales: tuple[float, ...] | None = None,
        offsets: tuple[float, ...] | None = None,
    ) -> None:
        self.path = path
        self.shape = shape
        self.channels = channels
        self.dtype = np.dtype(dtype)
        self.nodata = nodata
        self.geometry = geometry
        self.tags: dict[str, str] = {}  # what the file says of itself, as GDAL names it
        self.origin = (0, 0)
        self.file_shape = shape
        self.imputed = imputed or (False,) * len(channels)
        self.scales = scales or (1.0,) * len(channels)
        self.offsets = offsets or (0.0,) * len(channels)
        self._is_view = False

    def read(self, window: Window | None = None) -> tuple[NDArray, NDArray[np.bool_]]:
        """Values (C, h, w) in the file's units and valid (h, w) of a window (rows, columns); None is all of
        it.

        ValueError where the window leaves the picture; InputError where the file cannot be read there.
        """
        rows, columns = self._inside(window)
        row, column = self.origin
        return self._read(
            slice(rows.start + row, rows.stop + row), slice(columns.start + column, columns.stop + column)
        )

    def view(self, window: Window) -> Self:
        """A source of that rectangle alone, with its own shape, geometry and origin; shares the open file."""
        rows, columns = self._inside(window)
        part = copy.copy(self)
        part.shape = (rows.stop - rows.start, columns.stop - columns.start)
        part.origin = (self.origin[0] + rows.start, self.origin[1] + columns.start)
        part.geometry = self.geometry.shifted(rows.start, columns.start)
        part._is_view = True
        return part

    def digest(self) -> str:
        """sha256 of the file's bytes, in hex."""
        digest = hashlib.sha256()
        try:
            with Path(self.path).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be hashed: {error.strerror or error}") from error
        return digest.hexdigest()

    def close(self) -> None:
        """Release the file and remove what was unpacked. A view leaves that to the source it was taken from."""
        if not self._is_view:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.shape
        return f"<{type(self).__name__} {self.path} {len(self.channels)}x{height}x{width} {self.dtype}>"

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        """Read a window in the file's own coordinates."""
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _inside(self, window: Window | None) -> tuple[slice, slice]:
        if window is None:
            window = (slice(None), slice(None))
        if len(window) != 2 or any(s.step not in (None, 1) for s in window):
            raise ValueError(f"expected a window of two slices, rows and columns, found {window}")
        bounds = []
        for part, length in zip(window, self.shape):
            start = 0 if part.start is None else int(part.start)
            stop = length if part.stop is None else int(part.stop)
            if not 0 <= start < stop <= length:
                raise ValueError(f"{self.path}: window {window} is not inside the picture {self.shape}")
            bounds.append(slice(start, stop))
        return bounds[0], bounds[1]


@dataclass(frozen=True)
class Selection:
    """Which bands of a file become which planes: 0-based bands, None for one that is imputed by `fills`."""

    names: tuple[str, ...]
    bands: tuple[int | None, ...]
    fills: tuple[float, ...]

    @classmethod
    def of(cls, bands: Sequence[Sequence[str]], channels: ChannelSet | None, where: str | Path) -> Selection:
        """bands: all names each band goes by, the best one first. Without channels: every band."""
        if channels is None:
            return cls(tuple(b[0] for b in bands), tuple(range(len(bands))), (0.0,) * len(bands))
        chosen = channels.select(bands, str(where))
        return cls(channels.names, chosen, tuple(c.fill for c in channels))

    @property
    def imputed(self) -> tuple[bool, ...]:
        return tuple(b is None for b in self.bands)

    @property
    def present(self) -> tuple[int, ...]:
        """The bands to read, in the order of the planes."""
        return tuple(b for b in self.bands if b is not None)

    def result_dtype(self, dtype: np.dtype) -> np.dtype:
        """The file's dtype; a float that holds it where a fill has to be written beside the values."""
        return np.result_type(dtype, np.float32) if any(self.imputed) else dtype

    def arrange(self, present: NDArray) -> NDArray:
        """(bands read, h, w) -> (planes, h, w) with the imputed planes filled."""
        if not any(self.imputed):
            return present
        result = np.empty((len(self.bands), *present.shape[1:]), self.result_dtype(present.dtype))
        source = iter(present)
        for plane, band, fill in zip(result, self.bands, self.fills):
            plane[...] = fill if band is None else next(source)
        return result
