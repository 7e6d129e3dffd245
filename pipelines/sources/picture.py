"""Photos as a source: EXIF's rotation applied, greyscale and 16 bits brought to what a counting adapter declares.

What GDAL hands out is the file's own raster: a phone's portrait photo lies on its side, a greyscale picture has no
green, and 16 bits are 257 times as bright. For a map scene that is right; for a photo whose labels and overlays are
made upon what people see, it is wrong.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from PIL import Image, ImageOps

from adapters.channels import ChannelSet
from adapters.errors import InputError
from pipelines.sources.base import Geometry, Selection, Source

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"}
NAMES = (("red", "r"), ("green", "g"), ("blue", "b"))
MOST_PIXELS = 400_000_000  # of a photo; it is decoded as a whole
CACHE_BYTES = 512 << 20  # decoded photos kept in a process: random crops come back to them
_EXIF_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)  # orientations that swap height and width


def is_picture(path: str | Path) -> bool:
    return Path(path).suffix.lower() in SUFFIXES and Path(path).is_file()


class PictureSource(Source):
    """A photo of red, green and blue in 8 bits, the way people see it. A pixel is valid where its alpha is not 0."""

    def __init__(self, path: str | Path, channels: ChannelSet | None = None) -> None:
        file = Path(path)
        width, height = _header(file)
        self._selection = Selection.of(NAMES, channels, file)
        super().__init__(
            file,
            (height, width),
            self._selection.names,
            self._selection.result_dtype(np.dtype(np.uint8)),
            None,
            Geometry(None, Affine.identity()),
            self._selection.imputed,
        )

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        picture = _cache.get(Path(self.path))
        if picture.shape[:2] != tuple(self.file_shape):
            raise InputError(f"{self.path}: changed its size while it was read")
        part = picture[rows, columns]
        planes = np.ascontiguousarray(np.moveaxis(part[..., list(self._selection.present)], -1, 0))
        return self._selection.arrange(planes), part[..., 3] > 0

    def _close(self) -> None:
        _cache.drop(Path(self.path))


class _Cache:
    """Decoded photos (H, W, 4) uint8, the longest unused ones forgotten first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> NDArray[np.uint8]:
        with self._lock:
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
        picture = _decode(path)
        with self._lock:
            self._kept[path] = picture
            while len(self._kept) > 1 and sum(p.nbytes for p in self._kept.values()) > self.most:
                self._kept.popitem(last=False)
        return picture

    def drop(self, path: Path) -> None:
        with self._lock:
            self._kept.pop(path, None)


_cache = _Cache(CACHE_BYTES)


def _open(path: Path) -> Image.Image:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a picture that can be opened: {_reason(error)}") from None
    if picture.width * picture.height > MOST_PIXELS:
        raise InputError(f"{path}: {picture.width} x {picture.height} px is too large a photo; make it a tiled GeoTIFF")
    return picture


def _header(path: Path) -> tuple[int, int]:
    """Width and height as people see them."""
    with _open(path) as picture:
        width, height = picture.size
        try:  # of a PNG the tags may stand behind the pixels
            orientation = picture.getexif().get(_EXIF_ORIENTATION)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path}: cannot be decoded (truncated?): {_reason(error)}") from None
        return (height, width) if orientation in _LYING else (width, height)


def _decode(path: Path) -> NDArray[np.uint8]:
    """(H, W, 4) uint8: red, green, blue, alpha."""
    with _open(path) as picture:
        try:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I") or upright.mode == "F":
                return _deep(upright, path)
            return np.array(upright.convert("RGBA"))
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise InputError(f"{path}: cannot be decoded (truncated?): {_reason(error)}") from None


def _deep(picture: Image.Image, path: Path) -> NDArray[np.uint8]:
    """A greyscale picture of more than 8 bits: 0..65535 becomes 0..255."""
    values = np.asarray(picture)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: expected 8 or 16 bits a pixel, found values {values.min():g} to {values.max():g}")
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.dstack([grey, grey, grey, np.full_like(grey, 255)])


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
