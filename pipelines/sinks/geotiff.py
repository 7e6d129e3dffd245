"""The semantic map as a Cloud Optimized GeoTIFF: one uint8 band, 0 = nothing, 1..K the classes, 255 = no data.

Written window by window into a plain tiled GeoTIFF beside the target and copied at `commit` by GDAL's COG driver,
which lays out overviews and tiles; neither step holds the raster in memory. Equal pixels give equal bytes: GDAL writes
no dates, and the COG is laid out from the pixels, not from the order in which they came.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from adapters.classes import NODATA_ID as NODATA
from adapters.classes import ClassSet
from adapters.errors import InputError
from pipelines.sinks.folder import atomic_write, temporary_beside

NOTHING = 0
MAX_CLASSES = NODATA - 1
BLOCK = 512  # px; GDAL's default for COG, and the model's tile


class HasPlace(Protocol):
    """Where the pixels lie: `crs` (anything rasterio takes, None for none) and `transform` (pixel to CRS)."""

    @property
    def crs(self) -> Any: ...
    @property
    def transform(self) -> Affine: ...


class SemanticSink:
    """A semantic map of `shape` (height, width) at `path`, which appears there at `commit` and not before.

        with SemanticSink(path, shape, geometry, classes) as sink:
            sink.write((slice(0, 64), slice(0, width)), array)  # (64, width) uint8
            sink.commit()

    Windows may come in any order and size, every pixel once; what was never written is no data. Class names, kinds and
    colours are in the colour table, in the JSON tag `CLASSES` and in the band's tags `CLASS_<value>`. GDAL keeps
    category names and attribute tables of TIFFs only in a side file, so there are none. Leaving the block without
    `commit` removes everything. Errors: ValueError for a window, array or value that does not fit; InputError where it
    cannot be written, or not all of it: the file is read back before it gets its name.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int], geometry: HasPlace | None, classes: ClassSet) -> None:
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"expected at most {MAX_CLASSES} classes in a uint8 map, got {len(classes)}")
        self.path = Path(path)
        self.shape = shape
        self.classes = classes
        self._geometry = geometry
        self._committed = False
        self._plain = temporary_beside(self.path)
        if not self.path.parent.is_dir():
            raise InputError(f"{self.path}: expected an existing folder to write into")
        self._written: list[tuple[RasterWindow, int]] = []  # with the pixels' checksum
        with _quiet(), self._readable_errors():
            self._sink = rasterio.open(self._plain, "w", **self._profile())
        self._describe()  # first: a TIFF takes no colour table once pixels are on disk

    def _profile(self) -> dict[str, Any]:
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "dtype": "uint8",
            "count": 1,
            "height": self.shape[0],
            "width": self.shape[1],
            "nodata": NODATA,
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

    def __enter__(self) -> SemanticSink:
        return self

    def write(self, window: tuple[slice, ...], array: NDArray[np.uint8]) -> None:
        """Write `array` (h, w) uint8 at `window` (rows, columns)."""
        rows, columns = (part.indices(n)[:2] for part, n in zip(window, self.shape, strict=True))
        expected = (rows[1] - rows[0], columns[1] - columns[0])
        if array.dtype != np.uint8 or array.shape != expected:
            raise ValueError(f"expected uint8 {expected} for window {window}, got {array.dtype} {array.shape}")
        unknown = (array > len(self.classes)) & (array != NODATA)
        if unknown.any():
            values = np.unique(array[unknown]).tolist()
            raise ValueError(f"expected values 0..{len(self.classes)} or {NODATA}, got {values}")
        part = RasterWindow(columns[0], rows[0], expected[1], expected[0])
        with self._readable_errors():
            self._sink.write(array, 1, window=part)
        self._written.append((part, zlib.crc32(array.tobytes())))

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
                overview_resampling="mode",  # nearest loses thin roads
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
                if zlib.crc32(file.read(1, window=window).tobytes()) != checksum:
                    raise InputError(f"{self.path}: not all of it could be written; is the disk full?")
        for level in range(levels):
            with rasterio.open(path, overview_level=level) as overview:
                for _, window in overview.block_windows(1):
                    overview.read(1, window=window)

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except (RasterioError, CPLE_BaseError, SystemError) as error:  # the last is rasterio's "unknown GDAL error"
            said = re.sub(r"\S*\.partial-\S*\.tif", self.path.name, str(error))
            raise InputError(f"{self.path}: could not be written ({said}); is the disk full?") from error

    def _describe(self) -> None:
        names = dict(enumerate(self.classes.names, start=1))
        colours = {value: _rgba(colour) for value, colour in enumerate(self.classes.colours, start=1)}
        self._sink.write_colormap(1, {NOTHING: (0, 0, 0, 0), **colours, NODATA: (0, 0, 0, 0)})
        self._sink.colorinterp = [ColorInterp.palette]
        self._sink.set_band_description(1, "class")
        self._sink.update_tags(CLASSES=json.dumps(class_table(self.classes), ensure_ascii=False))
        self._sink.update_tags(1, **{f"CLASS_{value}": name for value, name in names.items()})


def class_table(classes: ClassSet) -> list[dict[str, Any]]:
    """JSON-ready rows `value, name, kind, colour` of a semantic map, value 0 ("nothing") first."""
    rows = [{"value": NOTHING, "name": "nothing", "kind": "none", "colour": "#000000"}]
    for index, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        kind = "thing" if classes.is_thing[index] else "stuff"
        rows.append({"value": classes.id_of(index), "name": name, "kind": kind, "colour": colour})
    return rows


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue, 255


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No side files, and no warning about scenes without a CRS."""
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED=False):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
