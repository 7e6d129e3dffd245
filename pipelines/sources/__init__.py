"""Scenes in: windowed readers behind one door, `open_source`, and `describe`. Light to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.channels import ChannelSet
    from pipelines.sources.base import Source


def open_source(path: str | Path, channels: ChannelSet | None = None) -> Source:
    """Open a scene for windowed reading; only its header is read here.

    path: anything GDAL reads (GeoTIFF, COG, VRT, PNG, JPEG, a GDAL address), or an array file `.npz`/`.npy`,
        where `scene.npz#key` names the array and `scene.npz#key:hwc` its axes as well.
    channels: read these channels only, in this order. Without them all bands are read.

    InputError (one line that names the file): missing, not a raster, truncated, without bands or pixels,
    complex numbers, a declared channel that is not there.
    """
    from pipelines.sources.arrays import ArraySource, is_array_file
    from pipelines.sources.geotiff import RasterSource

    return ArraySource(path, channels) if is_array_file(path) else RasterSource(path, channels)


def describe(path: str | Path) -> dict[str, Any]:
    """What a scene is, JSON-ready: bands, dtype, CRS, transform, nodata, block layout, sizes.

    Reads the header only. InputError as in `open_source`.
    """
    from pipelines.sources.arrays import describe_array, is_array_file
    from pipelines.sources.geotiff import describe_raster

    return describe_array(path) if is_array_file(path) else describe_raster(path)
