"""A picture seen with its own contrast: percentiles of the whole picture become 0 and 255, tile for tile the same.

For pictures whose exposure says nothing: in fluorescence microscopy one slide's brightest nucleus is darker than the
next one's background, and a fixed scale shows the model black. The percentiles are the picture's, never the tile's:
a tile of nothing stays dark beside one with objects, and neighbouring tiles agree.
"""

from __future__ import annotations

import contextlib
import itertools
import threading

import numpy as np
from numpy.typing import NDArray

from adapters.errors import InputError
from pipelines.sources.base import Source

WHITE = 255.0  # what the upper percentile becomes, so that the channels' scale is that of 8-bit pictures
SAMPLE_SIDE = 2048  # px; a larger picture is judged by 8 x 8 windows, spread evenly, of as many pixels in all
SAMPLES = 8


class StretchedSource(Source):
    """`source` as float32 from 0 to 255, each channel cut at its `percentiles` (low, high; 0 to 100) of valid pixels.

    A channel with one value alone, or imputed, is left as it is.
    """

    def __init__(self, source: Source, percentiles: tuple[float, float]) -> None:
        self.source = source
        self.percentiles = percentiles
        super().__init__(
            source.path,
            source.shape,
            source.channels,
            np.dtype(np.float32),
            source.nodata,
            source.geometry,
            source.imputed,
            source.scales,
            source.offsets,
        )
        self.tags = source.tags
        self._limits: list[NDArray[np.float32]] = []  # shared with the views, filled at the first read
        self._lock = threading.Lock()

    def digest(self) -> str:
        """That of the file it is read from."""
        return self.source.digest()

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        array, valid = self.source.read((rows, columns))
        low, high = self._of_picture()
        result = array.astype(np.float32)
        for plane, bottom, top in zip(result, low, high, strict=True):
            if np.isfinite(bottom):
                plane -= bottom
                plane *= WHITE / (top - bottom)
                np.clip(plane, 0, WHITE, out=plane)
        return result, valid

    def _of_picture(self) -> NDArray[np.float32]:
        """(2, C): as `limits` has them."""
        with self._lock:
            if not self._limits:
                self._limits.append(limits(self.source, self.percentiles))
        return self._limits[0]

    def _close(self) -> None:
        self.source.close()


def limits(source: Source, percentiles: tuple[float, float]) -> NDArray[np.float32]:
    """(2, C): the values that become 0 and 255, from the valid pixels; NaN for a channel that stays as it is."""
    parts = []
    for rows, columns in itertools.product(*(_samples(length) for length in source.shape)):
        with contextlib.suppress(InputError):  # a damaged block is told of when it is read for itself
            array, valid = source.read((rows, columns))
            parts.append(array[:, valid])
    seen = np.concatenate([np.zeros((len(source.channels), 0), np.float32), *parts], axis=1)
    result = np.full((2, len(seen)), np.nan, np.float32)
    if not seen.shape[1]:
        return result
    found = np.nanpercentile(seen.astype(np.float64), percentiles, axis=1)
    usable = (found[1] > found[0]) & ~np.array(source.imputed)
    result[:, usable] = found[:, usable]
    return result


def _samples(length: int) -> list[slice]:
    """The parts of an axis that are looked at: all of it, or evenly spread ones."""
    if length <= SAMPLE_SIDE:
        return [slice(0, length)]
    side = SAMPLE_SIDE // SAMPLES
    starts = np.linspace(0, length - side, SAMPLES).round().astype(int)
    return [slice(int(start), int(start) + side) for start in starts]
