"""From the label file's coordinates to the scene's pixels: CRS, buffers, repair, rules where a CRS is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from adapters.errors import InputError
from pipelines.annotations.options import LabelOptions
from pipelines.annotations.points import centres_of, is_point, to_discs
from pipelines.annotations.tables import Table
from pipelines.sources.base import Source

LINES = ("LineString", "MultiLineString", "LinearRing")
AREAS = ("Polygon", "MultiPolygon")
Extent = tuple[float, float, float, float]


@dataclass
class Placed:
    """geometries: (N,) areas in pixels of the source (x = column, y = row). `notes` say what was assumed."""

    geometries: NDArray[np.object_]
    coordinates: str
    repaired: int = 0
    boxes: str | None = None
    notes: list[str] = field(default_factory=list)
    points: dict[str, int] | None = None


def place(table: Table, source: Source, options: LabelOptions) -> Placed:
    """Bring the table's geometries to pixels of `source`, as areas. InputError names file and row.

    Where the labels or the scene lack a CRS:
    - labels without, scene with one: the coordinates are the scene's map coordinates, or pixels of the picture,
      whichever lets more labels touch the scene (map on a tie);
    - labels with, scene without one: the same choice, the labels' CRS is not used; degrees are refused when all labels
      come out smaller than a pixel;
    - neither: the same choice.
    Pascal VOC is always in pixels.
    """
    check_geometries(table, with_points=options.points is not None)
    placed = Placed(table.geometries, "")
    if options.centres:
        placed.geometries = centres_of(placed.geometries)
        placed.notes.append("outlines and boxes are taken for points at their centroids")
        if options.points is None:
            raise InputError(f"{table.file}: `centres` needs a rule for points: `points: {{}}` takes the usual discs")
    else:
        _shape_boxes(table, options, placed)
    placed.geometries, placed.repaired = repair(placed.geometries)
    _to_scene(table, source, placed)
    in_map = placed.coordinates != "pixels"
    placed.geometries = _buffered(table, source, options, placed.geometries, in_map)
    if in_map:
        placed.geometries = _affine(placed.geometries, ~source.geometry.transform)
    else:
        row, column = source.origin
        placed.geometries = _affine(placed.geometries, Affine.translation(-column, -row))
    if options.buffer_px is not None:
        placed.geometries = _grow_lines(placed.geometries, options.buffer_px)
    if options.points is not None and is_point(placed.geometries).any():
        placed.geometries, placed.points = to_discs(placed.geometries, source.shape, options.points)
        placed.notes.append(options.points.words)
    # a reprojection can fold a ring that was valid before
    placed.geometries, _ = repair(placed.geometries)
    return placed


def check_geometries(table: Table, with_points: bool = False) -> None:
    """InputError at the first row without a geometry, with NaN in it, or of a kind without an area."""
    for i, geometry in enumerate(table.geometries):
        if geometry is None or geometry.is_empty:
            raise InputError(f"{table.at(i)}: has no geometry; remove it or draw it")
        if not np.isfinite(shapely.get_coordinates(geometry)).all():
            raise InputError(f"{table.at(i)}: has NaN or infinity among its coordinates")
        if geometry.geom_type in ("Point", "MultiPoint"):
            if with_points:
                continue
            raise InputError(
                f"{table.at(i)}: is a point, which covers nothing; give outlines or boxes, or take discs for points "
                "with `label_options: {points: {}}`"
            )
        if geometry.geom_type not in (*LINES, *AREAS):
            raise InputError(f"{table.at(i)}: expected polygons or lines, found {geometry.geom_type}")


def repair(geometries: NDArray[np.object_]) -> tuple[NDArray[np.object_], int]:
    """Invalid polygons made valid (self-overlaps filled, only the areal part kept), and how many there were."""
    bad = ~shapely.is_valid(geometries) & np.isin(shapely.get_type_id(geometries), (3, 6))
    if not bad.any():
        return geometries, 0
    result = geometries.copy()
    for i in np.flatnonzero(bad):
        result[i] = _areas(shapely.make_valid(geometries[i], method="structure", keep_collapsed=False))
    return result, int(bad.sum())


def _areas(geometry: BaseGeometry) -> BaseGeometry:
    if geometry.geom_type in AREAS:
        return geometry
    parts = [g for g in shapely.get_parts(geometry) if g.geom_type in AREAS]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def _shape_boxes(table: Table, options: LabelOptions, placed: Placed) -> None:
    """Turn box labels into the shape they are taken for, in the coordinates they were drawn in."""
    upright = len(table) > 0 and all(_is_upright(g) for g in placed.geometries)
    if not table.boxes and not (upright and options.rectangles_are_boxes):
        if upright and len(table) > 1:
            placed.notes.append("all polygons are upright rectangles; they are kept as drawn")
        return
    placed.boxes = options.boxes
    placed.notes.append(
        "boxes are taken for the ellipses inside them" if options.boxes == "ellipse" else "boxes are taken as they are"
    )
    if options.boxes == "ellipse":
        placed.geometries = _ellipses(shapely.bounds(placed.geometries))


def _is_upright(geometry: BaseGeometry) -> bool:
    return geometry.geom_type in AREAS and geometry.area > 0.999999 * shapely.box(*geometry.bounds).area > 0


def _ellipses(bounds: NDArray) -> NDArray[np.object_]:
    """Ellipses inside boxes (N, 4): polygons of 128 corners, which miss 0.04 % of the area."""
    angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    centre = (bounds[:, :2] + bounds[:, 2:]) / 2
    half = (bounds[:, 2:] - bounds[:, :2]) / 2
    return np.asarray(shapely.polygons(centre[:, None] + half[:, None] * circle), object).reshape(-1)


def _to_scene(table: Table, source: Source, placed: Placed) -> None:
    """Bring the geometries to the scene's map coordinates or to pixels of its file; says which."""
    crs = source.geometry.crs
    if table.pixels:
        placed.coordinates = "pixels"
        if table.size is not None and table.size != tuple(source.file_shape):
            raise InputError(
                f"{table.file}: labels of a picture of {table.size[1]} x {table.size[0]} px, but {source.path} has "
                f"{source.file_shape[1]} x {source.file_shape[0]} px"
            )
    elif table.crs is not None and crs is not None:
        placed.coordinates = "map"
        target = pyproj.CRS.from_wkt(crs.to_wkt())
        if not table.crs.equals(target, ignore_axis_order=True):
            placed.geometries = _reprojected(table, placed.geometries, target, source)
            placed.notes.append(f"reprojected from {crs_label(table.crs)} to {crs_label(target)}")
    else:
        placed.coordinates = _guess(shapely.bounds(placed.geometries), source)
        placed.notes.append(f"coordinates taken as {_IN_WORDS[placed.coordinates]}")
        if table.crs is not None:
            placed.notes.append(f"the labels' {crs_label(table.crs)} is not used, because the scene has no CRS")
            if table.crs.is_geographic:
                _refuse_degrees(table, source, placed)


_IN_WORDS = {"map": "map coordinates of the scene", "pixels": "pixels of the picture"}


def _guess(bounds: NDArray, source: Source) -> str:
    """Whether boxes (N, 4) are in map coordinates or pixels: what lets more of them touch the file's extent."""
    height, width = source.file_shape
    row, column = source.origin
    whole = source.geometry.shifted(-row, -column)
    if whole.crs is None and whole.transform.is_identity:
        return "pixels"
    on_map = _touching(bounds, whole.bounds((height, width)))
    on_pixels = _touching(bounds, (0, 0, width, height))
    return "pixels" if on_pixels > on_map else "map"


def _touching(bounds: NDArray, extent: Extent) -> int:
    xmin, ymin, xmax, ymax = extent
    return int(((bounds[:, 0] < xmax) & (bounds[:, 2] > xmin) & (bounds[:, 1] < ymax) & (bounds[:, 3] > ymin)).sum())


def _refuse_degrees(table: Table, source: Source, placed: Placed) -> None:
    """Longitudes and latitudes over a picture without a CRS look like a heap of dust near its corner."""
    if not len(table):
        return
    pixels = placed.geometries
    if placed.coordinates == "map":
        pixels = _affine(pixels, ~source.geometry.transform)
    bounds = shapely.bounds(pixels)
    extent = (bounds[:, 2:] - bounds[:, :2]).max()
    if is_point(pixels).all() and len(pixels) > 1:  # a point has no extent; what tells is how far they lie apart
        extent = max(np.ptp(bounds[:, 0]), np.ptp(bounds[:, 1]))
    elif is_point(pixels).all():
        return
    if extent < 1:
        raise InputError(
            f"{table.file}: the labels are in degrees ({crs_label(table.crs)}), but {source.path} has no CRS, so they "
            "cannot be placed; give the scene its CRS, or the labels in pixels"
        )


def _reprojected(
    table: Table, geometries: NDArray[np.object_], target: pyproj.CRS, source: Source
) -> NDArray[np.object_]:
    transformer = pyproj.Transformer.from_crs(table.crs, target, always_xy=True)
    # A straight edge of one CRS is bent in another: at 60 degrees north a 10 km edge by 3 m. Corners at every 1/64 of
    # the scene bring that below a tenth of a pixel.
    bounds = source.geometry.bounds(source.shape)
    west, south, east, north = pyproj.Transformer.from_crs(target, table.crs, always_xy=True).transform_bounds(*bounds)
    step = max(abs(east - west), abs(north - south)) / 64
    if np.isfinite(step) and step > 0:
        geometries = shapely.segmentize(geometries, step)
    result = _mapped(geometries, transformer)
    for i, geometry in enumerate(result):
        if not np.isfinite(shapely.get_coordinates(geometry)).all():
            raise InputError(f"{table.at(i)}: cannot be reprojected to {crs_label(target)}")
    return result


def _mapped(geometries: NDArray[np.object_], transformer: pyproj.Transformer) -> NDArray[np.object_]:
    return np.asarray(
        shapely.transform(geometries, lambda x, y: transformer.transform(x, y), interleaved=False), object
    ).reshape(-1)


def _affine(geometries: NDArray[np.object_], affine: Affine) -> NDArray[np.object_]:
    """Apply an affine map; (x, y) in, (x, y) out."""
    a, b, c, d, e, f = affine[:6]
    return np.asarray(
        shapely.transform(geometries, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False), object
    ).reshape(-1)


def _buffered(
    table: Table, source: Source, options: LabelOptions, geometries: NDArray[np.object_], in_map: bool
) -> NDArray[np.object_]:
    """Lines grown by `buffer_m` metres on the ground, in a projection around the middle of the scene."""
    lines = is_line(geometries)
    if not lines.any() or options.buffer_px is not None:
        return geometries
    first = int(np.flatnonzero(lines)[0])
    if options.buffer_m is None:
        raise InputError(f"{table.at(first)}: is a line; say how wide with `buffer_m` (half the width, in metres)")
    if source.geometry.crs is None or not in_map:
        raise InputError(
            f"{table.at(first)}: is a line, and metres are unknown without a CRS; say its half width with `buffer_px`"
        )
    crs = pyproj.CRS.from_wkt(source.geometry.crs.to_wkt())
    height, width = source.shape
    middle = source.geometry.transform @ (width / 2, height / 2)
    longitude, latitude = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(*middle)
    # equidistant around the scene: true metres, also for degrees and Web Mercator
    ground = pyproj.CRS.from_proj4(f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +units=m")
    there = pyproj.Transformer.from_crs(crs, ground, always_xy=True)
    back = pyproj.Transformer.from_crs(ground, crs, always_xy=True)
    result = geometries.copy()
    grown = shapely.buffer(_mapped(geometries[lines], there), options.buffer_m)
    result[lines] = _mapped(np.atleast_1d(grown), back)
    return result


def _grow_lines(geometries: NDArray[np.object_], distance: float) -> NDArray[np.object_]:
    lines = is_line(geometries)
    result = geometries.copy()
    if lines.any():
        result[lines] = np.atleast_1d(shapely.buffer(geometries[lines], distance))
    return result


def is_line(geometries: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(N,) which geometries are lines."""
    return np.isin(shapely.get_type_id(geometries), (1, 2, 5))


def crs_label(crs: Any) -> str:
    """`EPSG:32617` where the CRS has a code, else its name."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.name


def extent_text(extent: Extent) -> str:
    """`x 1 to 2, y 3 to 4`"""
    xmin, ymin, xmax, ymax = (f"{v:.10g}" for v in extent)
    return f"x {xmin} to {xmax}, y {ymin} to {ymax}"
