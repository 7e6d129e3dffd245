"""Files without random access, unpacked once into a temporary tiled GeoTIFF.

A JPEG or PNG can only be decoded from its beginning, so a random crop near its end costs the whole picture.
Unpacked, a 256 px crop costs 4 blocks.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window as RasterWindow

from adapters.errors import InputError

_SEQUENTIAL = {"PNG", "JPEG", "GIF", "WEBP", "JPEGXL", "AVIF", "HEIF"}
LARGEST_BLOCK = 16 << 20  # pixels of a compressed block that are decoded for a crop without regret
RESERVE = 256 << 20  # bytes that must stay free on the disk
BLOCK = 256

# Of a truncated file libjpeg only warns and fills the rest with grey, and GDAL's whole-picture short cut for PNG
# returns uninitialised memory without an error (seen with GDAL 3.10.3): silent lies.
_STRICT = {"GDAL_ERROR_ON_LIBJPEG_WARNING": True, "GDAL_PNG_WHOLE_IMAGE_OPTIM": False}


def needs_unpacking(dataset: DatasetReader) -> bool:
    """Whether a small window of this file costs (nearly) the whole file."""
    if dataset.driver in _SEQUENTIAL:
        return True
    rows, columns = dataset.block_shapes[0]
    return dataset.compression is not None and rows * columns > LARGEST_BLOCK


def reason(error: BaseException) -> str:
    """The innermost reason of a GDAL error in one line: the outer one only says that reading failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def check_space(path: Path | str, size: int, folder: Path) -> None:
    """InputError unless `size` bytes fit into the folder and `RESERVE` stays free."""
    free = shutil.disk_usage(folder).free
    if size + RESERVE > free:
        raise InputError(
            f"{path}: has to be unpacked into {size / 1e6:.0f} MB, but {folder} has {free / 1e6:.0f} MB free "
            f"({RESERVE / 1e6:.0f} MB of them are kept); free some space, set TMPDIR, or make it a tiled GeoTIFF"
        )


def temporary_folder() -> tuple[Path, Callable[[], Any]]:
    """A folder and the function that removes it. It goes at the process' end in any case, a worker's too."""
    folder = Path(tempfile.mkdtemp(prefix="maskbridge-"))
    # multiprocessing's own finaliser also runs in its workers, where atexit does not
    return folder, Finalize(None, shutil.rmtree, (folder, True), exitpriority=10)


def unpack(path: Path | str, opener: Callable[[Path | str], DatasetReader]) -> tuple[Path, Callable[[], Any]]:
    """Write the picture into a temporary tiled GeoTIFF; its path, and the function that removes it.

    InputError where it does not fit the disk or the file is damaged.
    """
    # the options have to hold when the file is opened, not only when it is read
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, **_STRICT), opener(path) as source:
        itemsize = max(np.dtype(t).itemsize for t in source.dtypes)
        check_space(path, source.height * source.width * (source.count * itemsize + 1), _temporary())
        folder, remove = temporary_folder()
        target = folder / "unpacked.tif"
        try:
            _copy(source, target)
        except (RasterioError, OSError) as error:
            remove()
            raise InputError(f"{path}: cannot be decoded (truncated or corrupt?): {reason(error)}") from error
        except BaseException:
            remove()
            raise
    return target, remove


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _copy(source: DatasetReader, target: Path) -> None:
    profile = {
        "driver": "GTiff",
        "count": source.count,
        "height": source.height,
        "width": source.width,
        "dtype": source.dtypes[0],
        "nodata": source.nodata,
        "crs": source.crs,
        "transform": source.transform,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "bigtiff": "if_safer",
    }
    masked = any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(target, "w", **profile) as sink:
            # a palette survives only as what it is here: indices
            sink.colorinterp = [ColorInterp.gray if c == ColorInterp.palette else c for c in source.colorinterp]
            _copy_rows(source, sink, masked)


def _copy_rows(source: DatasetReader, sink: DatasetWriter, masked: bool) -> None:
    for row in range(0, source.height, BLOCK):
        window = RasterWindow(0, row, source.width, min(BLOCK, source.height - row))
        sink.write(source.read(window=window), window=window)
        if masked:
            sink.write_mask(source.read_masks(1, window=window), window=window)
