"""Labels in: rasters, vectors, boxes and arrays become objects on a scene's canvas. Light to import."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.annotations.options import LabelOptions

if TYPE_CHECKING:
    from adapters.base import DomainAdapter
    from pipelines.annotations.base import Annotations
    from pipelines.sources.base import Source

RASTERS = {".tif", ".tiff", ".vrt", ".png", ".jp2", ".img", ".bmp", ".gif"}
VECTORS = {".geojson", ".json", ".gpkg", ".shp", ".fgb", ".gml", ".kml", ".parquet", ".geoparquet"}


def read_annotations(
    path: str | Path, source: Source, adapter: DomainAdapter, options: LabelOptions | None = None
) -> Annotations:
    """Read a label file onto the canvas of `source`, its values mapped through the adapter's classes.

    path: class or instance raster (anything GDAL reads), `.npz`/`.npy` (`labels.npz#key`), GeoJSON, GeoPackage,
    Shapefile, GeoParquet, FlatGeobuf, KML, CSV with a WKT column or xmin, ymin, xmax, ymax, Pascal VOC xml and objects,
    COCO JSON (instances, panoptic), Cityscapes' ids and polygons, a folder with one mask an object. Points (GeoJSON and
    the like, JSON, CSV with x, y or lon, lat, .mat of ShanghaiTech, UCF-QNRF and Mall, JHU-Crowd's .txt, pictures of
    dots) become discs by `options.points`, else by the adapter's rule.

    InputError (one line that names the file, and the row where there is one): unknown class values with their
    counts, empty geometry or NaN, points without a rule for them, labels that do not overlap the scene, an
    unknown format.
    """
    from pipelines.annotations.numbered import numbered_labels
    from pipelines.annotations.published import read_published
    from pipelines.annotations.raster import array_labels, raster_labels
    from pipelines.annotations.tables import read_table
    from pipelines.annotations.vector import vector_labels
    from pipelines.sources.arrays import is_array_file

    options = options or LabelOptions()
    if options.points is None and adapter.points is not None:
        options = replace(options, points=adapter.points)
    if Path(path).is_dir():
        from pipelines.annotations.objects_folder import folder_labels

        return folder_labels(Path(path), source, adapter, options)
    published = read_published(Path(path), Path(source.path))
    if published is not None:
        return numbered_labels(published, source, adapter)
    if is_array_file(path):
        return array_labels(path, source, adapter.classes, options)
    if Path(path).suffix.lower() in RASTERS and not options.dots:
        return raster_labels(path, source, adapter.classes, options)
    return vector_labels(read_table(Path(path), options.layer, options.dots), source, adapter.classes, options)


def describe_labels(path: str | Path, layer: str | None = None) -> dict[str, Any]:
    """What a label file holds, JSON-ready: kind, count, columns with their commonest values and counts, CRS."""
    from pipelines.annotations.describe import describe_label_file

    return describe_label_file(path, layer)
