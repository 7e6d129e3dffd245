"""Objects as polygons: a GeoPackage for QGIS, a GeoParquet for everything that reads tables, FlatGeobuf on request.

One row an object in canonical order, its outline on pixel edges; objects that overlap in the picture overlap in the
file. The GeoParquet's bytes depend on the objects alone (fixed row groups, no dates); a GeoPackage carries dates and is
equal in its features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray

from adapters.classes import ClassSet
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.sinks.areas import areas_m2, crs_of
from pipelines.sinks.cog import HasPlace
from pipelines.sinks.folder import atomic_write
from pipelines.sinks.outlines import outlines
from pipelines.sinks.redrawing import Outline, redrawn

LAYER = "objects"
ROWS_PER_GROUP = 65_536  # fixed, because the bytes depend on it; about 30 MB of outlines
WRITE_ERRORS = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError)
NAMES = ("objects.gpkg", "objects.parquet")


def polygons(objects: MaskSet, transform: Affine) -> list[shapely.Geometry]:
    """One valid polygon an object on pixel edges, holes kept, in the coordinates of `transform` (any affine).

    A MultiPolygon where the object has several 4-connected parts or none (area 0). Exteriors are counter-clockwise.
    """
    return list(_place(objects, transform))


def table(objects: MaskSet, geometry: HasPlace | None, classes: ClassSet) -> geopandas.GeoDataFrame:
    """Rows `id, class_id, class, score, area_m2, geometry` in canonical order.

    class_id is the class' value in semantic.tif (1..K). Areas follow the rule in `areas`; without a CRS the column is
    `area_px`, and coordinates are those of `geometry.transform` (pixels where there is no geometry at all).
    """
    objects = objects.canonical()
    crs = crs_of(geometry.crs) if geometry is not None else None
    transform = geometry.transform if geometry is not None else Affine.identity()
    shapes = _place(objects, transform)
    names = np.array(classes.names, dtype=object)
    columns = {
        "id": objects.ids,
        "class_id": np.array([classes.id_of(i) for i in range(len(classes))], np.int32)[objects.labels],
        "class": pandas.array(names[objects.labels], dtype="str"),
        "score": objects.scores,
    }
    if crs is None:
        columns["area_px"] = objects.areas
    else:
        columns["area_m2"] = areas_m2(objects.areas, shapes, transform, crs)
    return geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries(shapes, crs=crs), crs=crs)


def write_objects(
    folder: str | Path,
    objects: MaskSet,
    geometry: HasPlace | None,
    classes: ClassSet,
    names: Sequence[str] = NAMES,
    outline: Outline = Outline(),  # noqa: B008  (frozen)
) -> list[Path]:
    """Write `table` into `folder` as the files `names` (.gpkg with layer `objects`, .parquet or .fgb); returns them.

    No objects give valid files with the same columns. Each file appears only when complete; InputError where it
    cannot be written. Whatever the `outline`, areas stay those of the pixels.
    """
    frame = table(objects, geometry, classes)
    frame = frame.set_geometry(redrawn(frame.geometry, geometry, outline))
    writers = {".gpkg": _write_geopackage, ".parquet": _write_geoparquet, ".fgb": _write_flatgeobuf}
    written = []
    for name in names:
        path = Path(folder) / name
        if path.suffix not in writers:
            raise InputError(f"{path}: expected one of {', '.join(writers)} for objects")
        with atomic_write(path) as temporary:
            try:
                writers[path.suffix](frame, temporary)
                if path.suffix != ".parquet":
                    _check_whole(temporary, len(frame), path)
            except WRITE_ERRORS as error:  # SQLite gives the room back before it says why
                raise InputError(f"{path}: could not be written ({error}); is the disk full?") from error
        written.append(path)
    return written


def _place(objects: MaskSet, transform: Affine) -> NDArray[np.object_]:
    """(N,) Polygon or MultiPolygon."""
    if transform.is_degenerate:
        raise ValueError(f"expected a transform that keeps areas above 0, got {transform!r}")
    shapes = outlines(objects, clockwise=transform.determinant < 0)
    points = shapely.get_coordinates(shapes)
    x, y = points[:, 0], points[:, 1]
    placed = np.column_stack(
        [
            transform.a * x + transform.b * y + transform.c,
            transform.d * x + transform.e * y + transform.f,
        ]
    )
    shapes = shapely.set_coordinates(shapes, placed)
    single = shapely.get_num_geometries(shapes) == 1
    shapes[single] = shapely.get_geometry(shapes[single], 0)
    return shapes


def _write_geoparquet(frame: geopandas.GeoDataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False, compression="zstd", row_group_size=ROWS_PER_GROUP)


def _write_geopackage(frame: geopandas.GeoDataFrame, path: Path) -> None:
    # One geometry type for the layer, MultiPolygon: readers take a mixed layer for two or for "unknown".
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # a scene without a CRS is allowed
        pyogrio.write_dataframe(
            frame, path, layer=LAYER, driver="GPKG", geometry_type="MultiPolygon", promote_to_multi=True
        )


def _write_flatgeobuf(frame: geopandas.GeoDataFrame, path: Path) -> None:
    # Its spatial index would put the rows in another order than the other files'; it comes with any later tool.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.write_dataframe(
            frame,
            path,
            layer=LAYER,
            driver="FlatGeobuf",
            geometry_type="MultiPolygon",
            promote_to_multi=True,
            SPATIAL_INDEX="NO",
        )


def _check_whole(written: Path, rows: int, name: Path) -> None:
    """SQLite and GDAL can lose the layer on a full disk without a word; InputError where it is not all there."""
    try:
        found = pyogrio.read_info(written, layer=LAYER)["features"]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        found = None
    if found != rows:
        raise InputError(f"{name}: could not be written whole ({found or 0} of {rows} objects); is the disk full?")
