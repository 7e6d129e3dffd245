"""Areas of objects in square metres, whatever the CRS.

The rule: in an equal-area projection and in Transverse Mercator (UTM and its national sisters; their scale error is
below 0.2 % of the area inside a zone) the area is pixels times pixel size, converted from the CRS's unit (feet!) to
metres. Everywhere else (degrees, Web Mercator, Lambert conformal, polar stereographic) it is geodesic: the true area on
the CRS's ellipsoid, taken in an ellipsoidal equal-area cylinder. Meridians and parallels are straight lines there, so
pixel edges of geographic and Mercator scenes are exact, where a geodesic between two corners would leave the parallel.
Without a CRS, or in a local engineering one without a known unit, there are no metres: areas are pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from adapters.errors import InputError

log = logging.getLogger(__name__)

EQUAL_AREA_METHODS = ("equal area", "equal earth", "transverse mercator", "mollweide", "sinusoidal", "homolosine")
# Elsewhere a straight edge is a curve in the equal-area cylinder; at 60 degrees a 1 km piece of it bulges by 3 cm.
LONGEST_EDGE_M = 1000.0


def crs_of(crs: Any) -> pyproj.CRS | None:
    """A CRS of rasterio, pyproj or text as pyproj's; None stays None."""
    return None if crs is None else pyproj.CRS.from_user_input(crs.to_wkt() if hasattr(crs, "to_wkt") else crs)


def is_planar(crs: pyproj.CRS) -> bool:
    """Whether plane geometry gives areas in this CRS: equal-area or Transverse Mercator, or a local grid."""
    flat = _horizontal(crs)
    if flat.is_engineering:
        return True
    operation = flat.coordinate_operation
    if not flat.is_projected or operation is None:
        return False
    method = operation.method_name.lower().replace("_", " ").replace("-", " ")
    return any(name in method for name in EQUAL_AREA_METHODS)


def areas_m2(
    pixels: NDArray[np.int64], geometries: NDArray[np.object_], transform: Affine, crs: pyproj.CRS
) -> NDArray[np.float64]:
    """(N,) square metres of objects of `pixels` (N,) pixels whose outlines in `crs` are `geometries` (N,).

    NaN, with a warning, where an outline leaves the CRS's domain (a latitude beyond the pole).
    """
    flat = _horizontal(crs)
    if is_planar(crs):
        unit = flat.axis_info[0].unit_conversion_factor if flat.axis_info else 1.0
        return np.multiply(pixels, abs(transform.determinant) * unit**2, dtype=np.float64)
    areas = _geodesic(geometries, flat)
    lost = ~np.isfinite(areas)
    if lost.any():
        log.warning("%d objects leave the domain of %s: their area is not known", lost.sum(), flat.name)
        areas[lost] = np.nan
    return areas


def metres_per_unit(bounds: Sequence[float], crs: pyproj.CRS) -> tuple[float, float]:
    """Metres of one unit of `crs` along x and y, on its ellipsoid in the middle of `bounds` (x, y, x, y)."""
    flat = _horizontal(crs)
    if is_planar(crs) or flat.geodetic_crs is None:
        unit = flat.axis_info[0].unit_conversion_factor if flat.axis_info else 1.0
        return unit, unit
    left, bottom, right, top = bounds
    step = max(right - left, top - bottom, 1e-6) / 100
    x, y = (left + right) / 2, (bottom + top) / 2
    to_degrees = pyproj.Transformer.from_crs(flat, flat.geodetic_crs, always_xy=True)
    longitude, latitude = to_degrees.transform([x - step, x + step, x, x], [y, y, y - step, y + step])
    geod = flat.get_geod()
    assert geod is not None  # a CRS with a geodetic part has an ellipsoid
    _, _, far = geod.inv([longitude[0], longitude[2]], [latitude[0], latitude[2]], longitude[1::2], latitude[1::2])
    return far[0] / (2 * step), far[1] / (2 * step)


def _geodesic(geometries: NDArray[np.object_], crs: pyproj.CRS) -> NDArray[np.float64]:
    """Areas in the equal-area cylinder of the CRS's own ellipsoid: x = a * longitude, y = a * q(latitude) / 2."""
    source, ellipsoid = crs.geodetic_crs, crs.ellipsoid
    if source is None or ellipsoid is None:
        raise InputError(f"{crs.name}: expected a CRS on an ellipsoid to take areas in, or one with plane areas")
    if crs.is_geographic:
        longitude, latitude = shapely.get_coordinates(geometries).T
    else:
        step = LONGEST_EDGE_M / crs.axis_info[0].unit_conversion_factor
        geometries = shapely.segmentize(geometries, step)
        to_source = pyproj.Transformer.from_crs(crs, source, always_xy=True)
        longitude, latitude = to_source.transform(*shapely.get_coordinates(geometries).T)
    to_degrees = np.degrees(source.axis_info[0].unit_conversion_factor)  # there are CRS in grads
    longitude, latitude = longitude * to_degrees, latitude * to_degrees
    if not crs.is_geographic:  # inverse projections fold longitudes to +-180: unfold a scene that lies across
        longitude = (longitude - _circular_mean(longitude) + 180) % 360
    figure = f"+a={ellipsoid.semi_major_metre} +b={ellipsoid.semi_minor_metre}"
    to_cylinder = pyproj.Proj(f"+proj=cea {figure} +units=m +no_defs")
    _, y = to_cylinder(np.zeros_like(latitude), latitude)
    x = ellipsoid.semi_major_metre * np.radians(longitude)
    with np.errstate(invalid="ignore"):  # infinite beyond the pole
        return shapely.area(shapely.set_coordinates(geometries.copy(), np.column_stack([x, y])))


def _circular_mean(degrees: NDArray[np.float64]) -> float:
    angle = np.radians(degrees[np.isfinite(degrees)])
    return float(np.degrees(np.arctan2(np.sin(angle).sum(), np.cos(angle).sum())))


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """The plane part of a compound (with heights) or bound (with a datum shift) CRS."""
    while crs.is_compound or crs.is_bound:
        inner = crs.sub_crs_list[0] if crs.is_compound else crs.source_crs
        assert inner is not None  # PROJ gives every compound and bound CRS one
        crs = inner
    return crs
