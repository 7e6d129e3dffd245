"""A scene seen at another ground resolution, resampled while it is read.

Pixel k of the resampled grid covers the same ground whatever window it is read in: the grid is anchored to the scene's
first corner and every value is a weighted mean of the pixels round it (a triangle as wide as the larger of the two
pixels: bilinear when enlarging, anti-aliased when shrinking). Pixels without data weigh nothing, so what value they
hold does not matter; GDAL's own resampling depends on the window's edges, and mixes masked pixels in where the mask is
not its own nodata.
"""

from __future__ import annotations

import math

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy import sparse

from adapters.errors import InputError
from pipelines.sources.base import Geometry, Source

SAME = 0.01  # a pixel size that differs by less is left as it is
LARGEST_RATIO = 64  # beyond it is a mistaken unit, not a sensor
SEEN = 0.5  # share of a pixel's weight that must have data


class ResampledSource(Source):
    """`source` at `ratio` (rows, columns) of its pixels a pixel; float32.

    `shape` is that of `source` divided by the ratio and rounded, unless it is given.
    """

    def __init__(self, source: Source, ratio: tuple[float, float], shape: tuple[int, int] | None = None) -> None:
        self.source = source
        self.ratio = ratio
        size = shape or (
            max(1, round(source.shape[0] / ratio[0])),
            max(1, round(source.shape[1] / ratio[1])),
        )
        super().__init__(
            source.path,
            size,
            source.channels,
            np.dtype(np.float32),
            source.nodata,
            Geometry(source.geometry.crs, source.geometry.transform @ Affine.scale(ratio[1], ratio[0])),
            source.imputed,
            source.scales,
            source.offsets,
        )
        self.tags = source.tags

    def digest(self) -> str:
        """That of the file it is read from."""
        return self.source.digest()

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        window, matrices = [], []
        for part, ratio, length in zip((rows, columns), self.ratio, self.source.shape, strict=True):
            needed, weights = _weights(part, ratio, length)
            window.append(needed)
            matrices.append(weights)
        array, valid = self.source.read(tuple(window))
        down, across = matrices
        share = down @ valid.astype(np.float32) @ across.T
        result = np.zeros((len(array), *share.shape), np.float32)
        seen = share >= SEEN
        for plane, out in zip(array, result, strict=True):
            known = np.where(valid, plane, 0).astype(np.float32)
            np.divide(down @ known @ across.T, share, out=out, where=seen)
        return result, seen

    def _close(self) -> None:
        self.source.close()


def at_resolution(source: Source, metres: float) -> Source:
    """`source` with pixels of `metres` on the ground; itself where it has them, or has no CRS to tell.

    InputError where the pixels differ by more than any two sensors of one task could.
    """
    size = pixel_metres(source)
    if size is None:
        return source
    ratio = (metres / size[0], metres / size[1])
    if all(abs(r - 1) <= SAME for r in ratio):
        return source
    if any(not 1 / LARGEST_RATIO <= r <= LARGEST_RATIO for r in ratio):
        raise InputError(
            f"{source.path}: pixels of {size[0]:.3g} x {size[1]:.3g} m, but the model wants {metres:.3g} m; "
            "that is not the same kind of picture"
        )
    return ResampledSource(source, ratio)


def pixel_metres(source: Source) -> tuple[float, float] | None:
    """Height and width of a pixel on the ground, metres, at the scene's middle; None without a CRS."""
    from pipelines.sinks.areas import crs_of, metres_per_unit

    crs = crs_of(source.geometry.crs) if source.geometry.crs is not None else None
    if crs is None:
        return None
    east, north = metres_per_unit(source.geometry.bounds(source.shape), crs)
    t = source.geometry.transform
    return math.hypot(t.b * east, t.e * north), math.hypot(t.a * east, t.d * north)


def _weights(part: slice, ratio: float, length: int) -> tuple[slice, sparse.csr_array]:
    """Source pixels that `part` of an axis needs, and their weights (target, source) in float32."""
    reach = max(1.0, ratio)
    centre = (np.arange(part.start, part.stop) + 0.5) * ratio  # in source pixels
    first = np.floor(centre - reach).astype(np.int64)
    taps = first[:, None] + np.arange(math.ceil(2 * reach) + 2)
    weight = np.maximum(0, 1 - np.abs(taps + 0.5 - centre[:, None]) / reach)
    weight /= weight.sum(axis=1, keepdims=True)  # of the whole triangle: outside the scene there is no data
    inside = (taps >= 0) & (taps < length) & (weight > 0)
    start = int(taps[inside].min()) if inside.any() else min(max(int(first[0]), 0), length - 1)
    stop = int(taps[inside].max()) + 1 if inside.any() else start + 1
    target = np.broadcast_to(np.arange(len(centre))[:, None], taps.shape)
    values = (weight[inside].astype(np.float32), (target[inside], taps[inside] - start))
    return slice(start, stop), sparse.csr_array(values, shape=(len(centre), stop - start))
