"""Small pictures and band statistics of a scene of any size, read in windows.

Nothing here holds more than one window of the scene and the small picture itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling

# One window of 2048² float32 is 17 MB a band: large enough that tiled files are read once, small for any machine.
WINDOW = 2048
# An 8-bit picture is shown as it is unless its 2-98 % range is narrower than this (a third of 0..255): then it is
# nearly black or nearly flat on a screen and is stretched like any other data.
FLAT_RANGE = 85.0


@dataclass(frozen=True)
class BandStatistics:
    """One band of a scene against the data its model was trained with (native units of the file)."""

    name: str
    mean: float
    std: float
    minimum: float
    maximum: float
    nodata_share: float
    trained_mean: float | None = None
    trained_std: float | None = None


def overview(source: Any, longest: int = 2500) -> tuple[np.ndarray, float]:
    """A picture of the whole scene: uint8 (h, w, 3), and how many scene pixels one of its pixels spans.

    Block means of the valid pixels over whole `scale` × `scale` blocks (the last row and column of blocks may hang over
    the scene's edge); red, green and blue are found by name, else the first three bands, else the first band as grey.
    Other than 8-bit data are stretched between the 2nd and 98th percentile of the picture. No data is white.
    """
    height, width = source.shape
    scale = max(1, math.ceil(max(height, width) / longest))
    bands = display_bands(source.channels)
    small = (math.ceil(height / scale), math.ceil(width / scale))
    sums = np.zeros((len(bands), *small), np.float32)
    count = np.zeros(small, np.float32)
    for window, array, valid in _windows(source, scale):
        picked = np.asarray(array)[bands].astype(np.float32)
        valid = valid & np.isfinite(picked).all(axis=0)
        picked[:, ~valid] = 0.0
        rows = slice(window[0].start // scale, window[0].start // scale + math.ceil(valid.shape[0] / scale))
        cols = slice(window[1].start // scale, window[1].start // scale + math.ceil(valid.shape[1] / scale))
        sums[:, rows, cols] = _block_sums(picked, scale)
        count[rows, cols] = _block_sums(valid[None].astype(np.float32), scale)[0]
    covered = count > 0
    means = sums / np.maximum(count, 1.0)
    picture = np.stack([_stretch(band, covered, np.dtype(source.dtype)) for band in means], axis=-1)
    picture[~covered] = 255
    return np.ascontiguousarray(np.broadcast_to(picture, (*small, 3))), float(scale)


def label_overview(path: Path, longest: int = 2500) -> np.ndarray:
    """Nearest-neighbour reduction of a one-band label raster to at most `longest` pixels a side: uint8 (h, w).

    It goes through rasterio's decimated read, so a COG's own overviews are used.
    """
    with rasterio.open(path) as raster:
        scale = max(1, math.ceil(max(raster.shape) / longest))
        small = (math.ceil(raster.height / scale), math.ceil(raster.width / scale))
        return raster.read(1, out_shape=small, resampling=Resampling.nearest).astype(np.uint8)


def band_statistics(
    source: Any, trained: Mapping[str, tuple[float, float]] | None = None
) -> tuple[BandStatistics, ...]:
    """Mean, standard deviation, range and share of no data of every band, over all valid pixels, read in windows.

    `trained` gives (mean, standard deviation) by band name where the model's training data are known.
    """
    bands = len(source.channels)
    count = np.zeros(bands)
    mean = np.zeros(bands)
    spread = np.zeros(bands)  # sum of squared deviations, merged window by window (Chan et al. 1979)
    low = np.full(bands, np.inf)
    high = np.full(bands, -np.inf)
    for _, array, valid in _windows(source, 1):
        for band, values in enumerate(np.asarray(array)):
            good = values[valid & np.isfinite(values)].astype(np.float64)
            if not good.size:
                continue
            part, delta = good.size, good.mean() - mean[band]
            total = count[band] + part
            spread[band] += ((good - good.mean()) ** 2).sum() + delta**2 * count[band] * part / total
            mean[band] += delta * part / total
            count[band] = total
            low[band], high[band] = min(low[band], good.min()), max(high[band], good.max())
    pixels = source.shape[0] * source.shape[1]
    known = trained or {}
    rows = []
    for band, name in enumerate(source.channels):
        usual = known.get(name, (None, None))
        empty = count[band] == 0
        rows.append(
            BandStatistics(
                name=name,
                mean=math.nan if empty else float(mean[band]),
                std=math.nan if empty else float(math.sqrt(spread[band] / count[band])),
                minimum=math.nan if empty else float(low[band]),
                maximum=math.nan if empty else float(high[band]),
                nodata_share=float(1.0 - count[band] / pixels),
                trained_mean=usual[0],
                trained_std=usual[1],
            )
        )
    return tuple(rows)


def display_bands(names: Sequence[str]) -> list[int]:
    """Which bands a person sees: red, green, blue by name; else the first three; else the first one."""
    lowered = [str(name).strip().lower() for name in names]
    found = [
        next((i for i, n in enumerate(lowered) if n in (colour, colour[0])), None)
        for colour in ("red", "green", "blue")
    ]
    if all(i is not None for i in found):
        return [i for i in found if i is not None]
    return [0, 1, 2] if len(lowered) >= 3 else [0]


def _windows(source: Any, multiple: int) -> Iterator[tuple[tuple[slice, slice], np.ndarray, np.ndarray]]:
    """Windows that cover the scene and start at multiples of `multiple`, with what the source holds there."""
    height, width = source.shape
    side = multiple * max(1, WINDOW // multiple)
    for top in range(0, height, side):
        for left in range(0, width, side):
            window = (slice(top, min(top + side, height)), slice(left, min(left + side, width)))
            array, valid = source.read(window)
            yield window, array, valid


def _block_sums(array: np.ndarray, size: int) -> np.ndarray:
    """Sums over size × size blocks of (C, h, w); blocks at the lower and right edge may be smaller."""
    if size == 1:
        return array
    rows = np.add.reduceat(array, np.arange(0, array.shape[1], size), axis=1)
    return np.add.reduceat(rows, np.arange(0, array.shape[2], size), axis=2)


def _stretch(band: np.ndarray, covered: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """One float band (h, w) as uint8, between its 2nd and 98th percentile unless it is 8-bit data of normal range."""
    values = band[covered]
    if not values.size:
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(values[:: max(1, values.size // 1_000_000)], (2, 98))
    if dtype == np.uint8 and (high - low >= FLAT_RANGE or high == low):
        low, high = 0.0, 255.0
    if high <= low:
        return np.full(band.shape, 128, np.uint8)
    return np.clip((band - low) * (255.0 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
