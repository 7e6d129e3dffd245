"""Scenes in: windowed readers behind one door, `open_source`, and `describe`. Light to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.base import DomainAdapter
    from adapters.channels import ChannelSet
    from pipelines.sources.base import Source


def open_source(path: str | Path, channels: ChannelSet | None = None) -> Source:
    """Open a scene for windowed reading; only its header is read here.

    path: anything GDAL reads (GeoTIFF, COG, VRT, PNG, JPEG, an address), a folder with a raster a band, or an array
        file `.npz`/`.npy`, where `scene.npz#key` names the array and `scene.npz#key:hwc` its axes as well.
    channels: read these channels only, in this order. Without them all bands are read.

    InputError (one line that names the file): missing, not a raster, truncated, without bands or pixels,
    complex numbers, a declared channel that is not there.
    """
    from pipelines.sources.arrays import ArraySource, is_array_file
    from pipelines.sources.geotiff import RasterSource
    from pipelines.sources.stack import StackSource, is_stack

    if is_array_file(path):
        return ArraySource(path, channels)
    return StackSource(path, channels) if is_stack(path) else RasterSource(path, channels)


def open_for(path: str | Path, adapter: DomainAdapter) -> Source:
    """Open a scene as the adapter sees it: its channels, at its resolution and with the contrast it asks for.

    An adapter of photos, or one that counts, sees them as people do: upright, in 8 bits, greyscale as colour.
    """
    return with_contrast(_open_unstretched(path, adapter), adapter)


def with_contrast(source: Source, adapter: DomainAdapter) -> Source:
    """The source with its own contrast where the adapter asks for that; else the source itself."""
    if adapter.stretch is None:
        return source
    from pipelines.sources.stretched import StretchedSource

    return StretchedSource(source, adapter.stretch)


def _open_unstretched(path: str | Path, adapter: DomainAdapter) -> Source:
    if (adapter.photos or adapter.points is not None) and adapter.resolution is None:
        from pipelines.sources.picture import PictureSource, is_picture

        if is_picture(path):
            return PictureSource(path, adapter.channels)
    source = open_source(path, adapter.channels)
    if adapter.resolution is None:
        return source
    from pipelines.sources.resampled import at_resolution

    return at_resolution(source, adapter.resolution)


def describe(path: str | Path) -> dict[str, Any]:
    """What a scene is, JSON-ready: bands, dtype, CRS, transform, nodata, block layout, sizes.

    Reads the header only. InputError as in `open_source`.
    """
    from pipelines.sources.arrays import describe_array, is_array_file
    from pipelines.sources.geotiff import describe_raster

    return describe_array(path) if is_array_file(path) else describe_raster(path)
