"""An area of interest: polygons outside which a scene counts as unseen."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import InputError


@dataclass(frozen=True)
class RestrictedSource:
    """A source whose valid mask is cut to polygons given in the scene's coordinates; all else passes through."""

    source: Any
    polygons: tuple[Any, ...]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def __enter__(self) -> RestrictedSource:
        self.source.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.source.__exit__(*exception)

    def read(self, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        from rasterio.features import geometry_mask
        from rasterio.windows import Window, transform

        array, valid = self.source.read(window)
        rows, columns = window
        corner = Window(columns.start, rows.start, valid.shape[1], valid.shape[0])
        outside = geometry_mask(self.polygons, valid.shape, transform(corner, self.source.geometry.transform))
        return array, valid & ~outside


def restrict(source: Any, path: str | Path) -> RestrictedSource:
    """`source` seen only inside the polygons of `path` (any vector format, any CRS).

    Polygons without a CRS, and those over a scene without one, are taken to be in the scene's coordinates.
    Raises InputError where the file is unreadable, holds no polygon, or misses the scene.
    """
    import geopandas
    from shapely import box

    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # noqa: BLE001  (every driver has its own exceptions)
        raise InputError(f"{path}: not a readable vector file ({str(error).splitlines()[0]})") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an area in degrees is meaningless, but above 0 is above 0
        frame = frame[frame.geometry.notna() & (frame.geometry.area > 0)]
    if frame.empty:
        raise InputError(f"{path}: no polygon in it; --aoi takes polygons")
    named = tuple(round(float(v), 6) for v in frame.total_bounds)
    crs = source.geometry.crs
    if crs is not None and frame.crs is not None:
        frame = frame.to_crs(crs)
    # What lies outside the projection's domain comes back infinite: far from the scene, whatever it is.
    frame = frame[np.isfinite(frame.bounds).all(axis=1)]
    extent = box(*source.geometry.bounds(source.shape))
    polygons = tuple(polygon for polygon in frame.geometry.make_valid() if polygon.intersects(extent))
    if not polygons:
        raise InputError(f"{path}: covers {named}, outside the scene's {extent.bounds}")
    return RestrictedSource(source, polygons)
