"""A raster of the scene's size as a Cloud Optimized GeoTIFF.

Written window by window into a plain tiled GeoTIFF beside the target and copied at `commit` by GDAL's COG driver,
which lays out overviews and tiles; neither step holds the raster in memory. Equal pixels give equal bytes: GDAL writes
no dates, and the COG is laid out from the pixels, not from the order in which they came.
"""

from __future__ import annotations

import contextlib
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from adapters.errors import InputError
from pipelines.sinks.folder import atomic_write, temporary_beside

BLOCK = 512  # px; GDAL's default for COG, and the model's tile


class HasPlace(Protocol):
    """Where the pixels lie: `crs` (anything rasterio takes, None for none) and `transform` (pixel to CRS)."""

    @property
    def crs(self) -> Any: ...
    @property
    def transform(self) -> Affine: ...


@dataclass(frozen=True)
class Layout:
    """What a raster holds. `nodata` None: every value is one. `overview`: how GDAL makes the smaller copies."""

    dtype: str = "uint8"
    bands: int = 1
    nodata: int | None = None
    overview: str = "nearest"


class CogSink:
    """A raster of `shape` (height, width) at `path`, which appears there at `commit` and not before.

        with CogSink(path, shape, geometry, Layout("uint8")) as sink:
            sink.write((slice(0, 64), slice(0, width)), array)  # (64, width) or (bands, 64, width)
            sink.commit()

    Windows may come in any order and size, every pixel once; what was never written is no data. Leaving the block
    without `commit` removes everything. Errors: ValueError for a window or array that does not fit; InputError where it
    cannot be written, or not all of it: the file is read back before it gets its name.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int], geometry: HasPlace | None, layout: Layout) -> None:
        self.path = Path(path)
        self.shape = shape
        self.layout = layout
        self._geometry = geometry
        self._committed = False
        self._plain = temporary_beside(self.path)
        if not self.path.parent.is_dir():
            raise InputError(f"{self.path}: expected an existing folder to write into")
        self._written: list[tuple[RasterWindow, int]] = []  # with the pixels' checksum
        with _quiet(), self._readable_errors():
            self._sink = rasterio.open(self._plain, "w", **self._profile())
        self._describe(self._sink)  # first: a TIFF takes no colour table once pixels are on disk

    def _describe(self, file: Any) -> None:
        """Tags, names and colours of a kind of raster; called before the first pixel is written."""

    def _profile(self) -> dict[str, Any]:
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "dtype": self.layout.dtype,
            "count": self.layout.bands,
            "height": self.shape[0],
            "width": self.shape[1],
            "nodata": self.layout.nodata,
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "compress": "deflate",
            "zlevel": 1,  # read once and thrown away
            "sparse_ok": True,
            "bigtiff": "if_safer",
        }
        if self._geometry is not None:
            profile["transform"] = self._geometry.transform
            if self._geometry.crs is not None:
                profile["crs"] = rasterio.crs.CRS.from_user_input(self._geometry.crs)
        return profile

    def __enter__(self) -> Self:
        return self

    def write(self, window: tuple[slice, ...], array: NDArray) -> None:
        """Write `array` (h, w), or (bands, h, w), of the layout's dtype at `window` (rows, columns)."""
        rows, columns = (part.indices(n)[:2] for part, n in zip(window, self.shape, strict=True))
        size = (rows[1] - rows[0], columns[1] - columns[0])
        expected = size if array.ndim == 2 and self.layout.bands == 1 else (self.layout.bands, *size)
        if array.dtype != self.layout.dtype or array.shape != expected:
            raise ValueError(
                f"expected {self.layout.dtype} {expected} for window {window}, got {array.dtype} {array.shape}"
            )
        part = RasterWindow(columns[0], rows[0], size[1], size[0])
        stack = array.reshape(self.layout.bands, *size)
        with self._readable_errors():
            self._sink.write(stack, window=part)
        self._written.append((part, zlib.crc32(stack.tobytes())))

    def commit(self) -> Path:
        """Lay out the COG, give it its final name and return that."""
        if self._committed:
            raise RuntimeError(f"{self.path} is already committed")
        with atomic_write(self.path) as target, _quiet(), self._readable_errors():
            self._sink.close()
            rasterio.shutil.copy(
                self._plain,
                target,
                driver="COG",
                compress="deflate",
                level="9",
                predictor="no",
                blocksize=str(BLOCK),
                overviews="auto",
                overview_resampling=self.layout.overview,
                bigtiff="if_safer",
                num_threads="all_cpus",
            )
            self._verify(target)
        self._plain.unlink()
        self._committed = True
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.close()
        self._plain.unlink(missing_ok=True)

    def _verify(self, path: Path) -> None:
        """Read everything back. On a full disk GDAL closes a file without a word, and what is missing reads as no data:
        of 19 limits that a 2000 x 2000 map did not fit in, 6 went unnoticed.
        """
        with rasterio.open(path) as file:
            levels = len(file.overviews(1))
            for window, checksum in self._written:
                if zlib.crc32(file.read(window=window)) != checksum:
                    raise InputError(f"{self.path}: not all of it could be written; is the disk full?")
        for level in range(levels):
            with rasterio.open(path, overview_level=level) as overview:
                for _, window in overview.block_windows(1):
                    overview.read(window=window)

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except (RasterioError, CPLE_BaseError, SystemError) as error:  # the last is rasterio's "unknown GDAL error"
            said = re.sub(r"\S*\.partial-\S*\.tif", self.path.name, str(error))
            raise InputError(f"{self.path}: could not be written ({said}); is the disk full?") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No side files, and no warning about scenes without a CRS."""
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED=False):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
