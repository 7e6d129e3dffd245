"""Everything GDAL reads, by windows: GeoTIFF (tiled or striped), COG, VRT; PNG and JPEG through `unpack`."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from adapters.channels import ChannelSet
from adapters.errors import InputError
from pipelines.json_logs import USERINFO
from pipelines.sources.base import Geometry, Selection, Source
from pipelines.sources.unpack import needs_unpacking, reason, unpack

# colour interpretations GDAL gives to the bands of any file; as names they mean nothing
_MEANINGLESS = {ColorInterp.undefined, ColorInterp.gray}
_open_lock = threading.Lock()
SAMPLE = 256  # px; side of the reduced copy that stands for a remote scene


def open_dataset(path: Path | str) -> DatasetReader:
    """rasterio.open with our errors, and without the warning that a picture has no geography (it may)."""
    if isinstance(path, Path):
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
    try:
        with _open_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except (RasterioError, OSError) as error:
        raise InputError(unsigned(path, f"{path}: not a raster that can be opened: {reason(error)}")) from None


def unsigned(path: str | Path, text: str) -> str:
    """`text` without what follows the `?` of an address, or stands before its `@`: signatures and passwords."""
    query = str(path).partition("?")[2]
    return USERINFO.sub("***@", text.replace("?" + query, "") if query else text)


def local(path: str | Path) -> Path | str:
    """A Path for a file of this machine; GDAL's own addresses (/vsi…, https://, s3://) stay as they are."""
    text = str(path)
    return text if text.startswith("/vsi") or "://" in text else Path(path)


class RasterSource(Source):
    """A raster file as a source.

    A pixel is valid where all of these say so: the alpha band (above 0; it is not a channel), the internal
    or sidecar mask, finite values, and the nodata value. Nodata in unsigned integers (often 0 or 255, which
    are measurements too) marks a pixel only where *every* band holds it; in signed integers and floats,
    where it is a sentinel such as -9999, where *any* band that is read holds it.
    """

    def __init__(self, path: str | Path, channels: ChannelSet | None = None) -> None:
        place = local(path)
        shown = place if isinstance(place, Path) else unsigned(place, place)
        with open_dataset(place) as dataset:
            _check(dataset, shown)
            names = band_names(dataset)
            data = [i for i, c in enumerate(dataset.colorinterp) if c != ColorInterp.alpha]
            selection = Selection.of([names[i] for i in data], channels, shown)
            self._selection = Selection(
                selection.names, tuple(None if b is None else data[b] for b in selection.bands), selection.fills
            )
            if not self._selection.present:
                raise InputError(f"{shown}: none of the bands {', '.join(n[0] for n in names)} is asked for")
            self._rule = _ValidRule.of(dataset, data)
            packed = needs_unpacking(dataset)
            self._file = _File(place, packed)
            self.block = None if packed else dataset.block_shapes[self._selection.present[0]]
            self._stored = np.result_type(*(np.dtype(dataset.dtypes[b]) for b in self._selection.present))
            bands = self._selection.bands
            physical = [c.units == "physical" for c in channels] if channels else [False] * len(bands)
            self._encoding = [
                (dataset.scales[b], dataset.offsets[b]) if b is not None and wanted else (1.0, 0.0)
                for b, wanted in zip(bands, physical, strict=True)
            ]
            self._encoded = any(code != (1.0, 0.0) for code in self._encoding)
            super().__init__(
                shown,
                dataset.shape,
                self._selection.names,
                np.dtype(np.float32) if self._encoded else self._selection.result_dtype(self._stored),
                dataset.nodata,
                Geometry(dataset.crs, dataset.transform),
                self._selection.imputed,
                tuple(1.0 if b is None else float(dataset.scales[b]) for b in bands),
                tuple(0.0 if b is None else float(dataset.offsets[b]) for b in bands),
            )
            self.tags = {**dataset.tags(), **dataset.tags(ns="IMAGERY")}

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        window = RasterWindow(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        dataset = self._file.dataset()
        try:
            present = dataset.read([b + 1 for b in self._selection.present], window=window, out_dtype=self._stored)
            valid = self._rule.valid(dataset, window, present, self._selection.present)
        except (RasterioError, OSError) as error:
            raise InputError(
                f"{self.path}: cannot be read at rows {rows.start}-{rows.stop}, columns "
                f"{columns.start}-{columns.stop} (truncated or corrupt?): {reason(error)}"
            ) from error
        return self._in_units(self._selection.arrange(present)), valid

    def _in_units(self, array: NDArray) -> NDArray:
        """The values in the units their channels ask for; float32 where that changes any."""
        if not self._encoded:
            return array
        wide = array.astype(np.float64)
        for plane, (scale, offset) in zip(wide, self._encoding, strict=True):
            plane *= scale
            plane += offset
        return wide.astype(np.float32)

    def digest(self) -> str:
        """sha256 of the file's bytes; of a scene behind an address, what can be known without fetching all of it."""
        if isinstance(self.path, Path):
            return super().digest()
        return remote_digest(self._file.dataset(), self.path)

    def _close(self) -> None:
        self._file.close()


def remote_digest(dataset: DatasetReader, address: str) -> str:
    """Of address, header, and the pixels of a reduced copy (the overviews, where there are any).

    A change that leaves size, tags and a picture of at most 256 px a side as they were goes unnoticed.
    """
    known = [address, dataset.profile, dataset.tags(), [dataset.tags(b) for b in dataset.indexes]]
    digest = hashlib.sha256(repr(known).encode())
    shrink = max(1.0, max(dataset.shape) / SAMPLE)
    size = (max(1, int(dataset.height / shrink)), max(1, int(dataset.width / shrink)))
    try:
        digest.update(np.ascontiguousarray(dataset.read(out_shape=(dataset.count, *size))).tobytes())
    except (RasterioError, OSError) as error:
        raise InputError(f"{address}: cannot be read: {reason(error)}") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class _ValidRule:
    """How a file says which pixels hold data. Band numbers are 0-based."""

    data: tuple[int, ...]
    alpha: int | None
    dataset_mask: bool
    band_masks: tuple[int, ...]
    nodata: tuple[float | None, ...]  # one a band of the file

    @classmethod
    def of(cls, dataset: DatasetReader, data: Sequence[int]) -> _ValidRule:
        alpha = [i for i, c in enumerate(dataset.colorinterp) if c == ColorInterp.alpha]
        flags = dataset.mask_flag_enums
        no_mask = {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.per_dataset, MaskFlags.alpha}
        return cls(
            tuple(data),
            alpha[0] if alpha else None,
            any(MaskFlags.per_dataset in flags[i] and MaskFlags.alpha not in flags[i] for i in data),
            tuple(i for i in data if not no_mask & set(flags[i])),
            tuple(_storable(v, np.dtype(t)) for v, t in zip(dataset.nodatavals, dataset.dtypes)),
        )

    def valid(
        self, dataset: DatasetReader, window: RasterWindow, present: NDArray, bands: Sequence[int]
    ) -> NDArray[np.bool_]:
        """(h, w) bool. present: (len(bands), h, w) values of `bands`, already read."""
        valid = np.ones(present.shape[1:], bool)
        if self.alpha is not None:
            valid &= dataset.read(self.alpha + 1, window=window) > 0
        if self.dataset_mask:
            valid &= dataset.read_masks(self.data[0] + 1, window=window) > 0
        for band in set(self.band_masks) & set(bands):
            valid &= dataset.read_masks(band + 1, window=window) > 0
        if present.dtype.kind == "f":
            valid &= np.isfinite(present).all(axis=0)
        values = dict(zip(bands, present))
        if present.dtype.kind == "u":
            return valid & self._somewhere(dataset, window, values)
        for band, plane in values.items():
            if (nodata := self.nodata[band]) is not None:
                valid &= plane != plane.dtype.type(nodata)
        return valid

    def _somewhere(self, dataset: DatasetReader, window: RasterWindow, values: dict[int, NDArray]) -> NDArray[np.bool_]:
        """Where at least one band of the file holds something else than nodata."""
        if any(self.nodata[band] is None for band in self.data):
            return np.ones(next(iter(values.values())).shape, bool)
        held = [band for band in self.data if band in values]
        rest = [band for band in self.data if band not in values]
        result = np.logical_or.reduce([values[b] != values[b].dtype.type(self.nodata[b]) for b in held])
        if rest and not result.all():
            for band, plane in zip(rest, dataset.read([b + 1 for b in rest], window=window)):
                result |= plane != plane.dtype.type(self.nodata[band])
        return result


class _File:
    """The open file: one GDAL handle a thread and process, because a handle must not be shared between them."""

    def __init__(self, path: Path | str, packed: bool, unpacked: Path | None = None) -> None:
        self._path = path
        self._packed = packed
        self._unpacked = unpacked
        self._remove: Any = None
        self._lock = threading.RLock()
        self._handles: dict[tuple[int, int], DatasetReader] = {}

    def dataset(self) -> DatasetReader:
        key = (os.getpid(), threading.get_ident())
        handle = self._handles.get(key)
        if handle is None or handle.closed:
            with self._lock:
                handle = self._handles[key] = open_dataset(self._readable())
        return handle

    def close(self) -> None:
        with self._lock:
            for (process, _), handle in self._handles.items():
                if process == os.getpid():  # a forked worker must leave its parent's handles alone
                    handle.close()
            self._handles = {}
            if self._remove is not None:
                self._remove()
                self._remove = self._unpacked = None

    def _readable(self) -> Path | str:
        """The file to read windows from; unpacked at the first read, because opening must be cheap."""
        if not self._packed:
            return self._path
        with self._lock:
            if self._unpacked is None:
                self._unpacked, self._remove = unpack(self._path, open_dataset)
            return self._unpacked

    def __reduce__(self) -> tuple[Any, ...]:
        # what is sent to a worker reads the file that was unpacked here, and does not remove it
        return _File, (self._path, self._packed, Path(self._readable()) if self._packed else None)


def band_names(dataset: DatasetReader) -> list[tuple[str, ...]]:
    """The names each band goes by, the best first: its description alone; without one colour, then `band1`, ...

    A description beats the colour, because GDAL calls the first three bands of any 8-bit file red, green and blue. It
    beats the position too: in a Landsat stack `band 7` can be the sixth.
    """
    result: list[tuple[str, ...]] = []
    pairs = zip(dataset.descriptions, dataset.colorinterp)
    for number, (description, colour) in enumerate(pairs, start=1):
        if description and description.strip():
            result.append((description.strip(),))
        elif colour not in _MEANINGLESS or (colour == ColorInterp.gray and dataset.count == 1):
            result.append((colour.name, f"band{number}"))
        else:
            result.append((f"band{number}",))
    return result


def describe_raster(path: str | Path) -> dict[str, Any]:
    """See `pipelines.sources.describe`."""
    place = local(path)
    with open_dataset(place) as dataset:
        _check(dataset, place)
        height, width = dataset.shape
        itemsize = sum(np.dtype(t).itemsize for t in dataset.dtypes)
        geometry = Geometry(dataset.crs, dataset.transform)
        rows, columns = dataset.block_shapes[0]
        return {
            "path": str(place),
            "driver": dataset.driver,
            "shape": [height, width],
            "bands": [
                {
                    "index": i + 1,
                    "names": list(names),
                    "dtype": dataset.dtypes[i],
                    "nodata": dataset.nodatavals[i],
                    "scale": dataset.scales[i],
                    "offset": dataset.offsets[i],
                    "unit": dataset.units[i],
                    "alpha": dataset.colorinterp[i] == ColorInterp.alpha,
                    "mask": sorted(flag.name for flag in dataset.mask_flag_enums[i]),
                }
                for i, names in enumerate(band_names(dataset))
            ],
            "dtype": dataset.dtypes[0],
            "nodata": dataset.nodata,
            "mask": any(flag != MaskFlags.all_valid for flags in dataset.mask_flag_enums for flag in flags),
            "crs": crs_name(dataset.crs),
            "transform": list(dataset.transform)[:6],
            "rotated": bool(dataset.transform.b or dataset.transform.d),
            "pixel_size": [
                float(np.hypot(dataset.transform.a, dataset.transform.d)),
                float(np.hypot(dataset.transform.b, dataset.transform.e)),
            ],
            "bounds": list(geometry.bounds(dataset.shape)),
            "block": [rows, columns],
            "tiled": columns < width or dataset.is_tiled,
            "compression": dataset.compression.value if dataset.compression else None,
            "interleave": dataset.interleaving.value if dataset.interleaving else None,
            "overviews": dataset.overviews(1),
            "unpacked_first": needs_unpacking(dataset),
            "bytes_file": place.stat().st_size if isinstance(place, Path) and place.is_file() else None,
            "bytes_pixels": height * width * itemsize,
        }


def crs_name(crs: Any | None) -> str | None:
    """`EPSG:32617` where the CRS has such a name, else its WKT."""
    if not crs:
        return None
    return crs.to_string() if crs.to_epsg() else crs.to_wkt()


def _check(dataset: DatasetReader, path: Path | str) -> None:
    """Refuse what cannot be a scene, before anything is read."""
    if not any(c != ColorInterp.alpha for c in dataset.colorinterp):
        inside = f"; it holds {', '.join(dataset.subdatasets[:6])}" if dataset.subdatasets else ""
        raise InputError(f"{path}: the raster has no bands{inside}")
    if min(dataset.shape) < 1:
        raise InputError(f"{path}: the raster has no pixels (height, width {dataset.shape})")
    strange = [t for t in dataset.dtypes if t.startswith("complex")]
    if strange:
        raise InputError(f"{path}: expected real values, found {strange[0]}; save amplitude or intensity first")
    if isinstance(path, Path) and dataset.driver == "GTiff":
        _check_length(dataset, path)


def _check_length(dataset: DatasetReader, path: Path) -> None:
    """A GeoTIFF whose last block lies beyond the end of the file was cut off in a copy or download."""
    size = path.stat().st_size
    rows, columns = dataset.block_shapes[0]
    last = ((dataset.width - 1) // columns, (dataset.height - 1) // rows)
    for band in (1, dataset.count):
        for x, y in {(0, 0), last}:
            start, length = (
                dataset.get_tag_item(f"BLOCK_{what}_{x}_{y}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")
            )
            if start and length and int(start) + int(length) > size:
                raise InputError(
                    f"{path}: truncated GeoTIFF: {size} bytes, but its pixels go on to {int(start) + int(length)}"
                )


def _storable(nodata: float | None, dtype: np.dtype) -> float | None:
    """nodata, if a pixel of this type can hold it; NaN is dealt with as "not finite"."""
    if nodata is None or not np.isfinite(nodata):
        return None
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return nodata if float(nodata).is_integer() and info.min <= nodata <= info.max else None
    return nodata
