"""JSON that is not GeoJSON: points in a list, and COCO's keypoints, boxes and outlines. JHU-Crowd's text lines.

Points: `[[x, y], ...]`, `[{"x": .., "y": ..}, ...]`, or either under `points`, `annotations` or `locations` of an
object; pixels. COCO: an object with `images` and `annotations`; outlines (polygons, run lengths) where there are some,
else keypoints (the mean of those that are labelled), else boxes. A crowd is ground nothing is known about.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from adapters.errors import InputError
from adapters.reading import listing
from maskformer.masks import MaskSet
from pipelines.annotations.json_file import load_json
from pipelines.annotations.points import table_of_points
from pipelines.annotations.tables import Table

_KEYS = ("points", "annotations", "locations", "heads")
_X, _Y, _NAME = ("x", "col", "column"), ("y", "row"), ("class", "label", "category")
_GEOJSON = {"Feature", "FeatureCollection", "GeometryCollection", "Topology"}
_GEOMETRIES = {"Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon"}


def read_listed(path: Path) -> Table | None:
    """The objects of a JSON file, or None where it is GeoJSON. InputError where it is neither."""
    held = load_json(path)
    if isinstance(held, Mapping):
        if held.get("type") in _GEOJSON | _GEOMETRIES:
            return None
        if isinstance(held.get("images"), list) and isinstance(held.get("annotations"), list):
            return _coco(path, held)
    return _points(path, held)


def read_lines(path: Path) -> Table:
    """JHU-Crowd++: a head a line, `x y width height occlusion blur`; only x and y are used. An empty file is nobody."""
    try:
        lines = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines()]
        found = [[float(cell) for cell in cells[:2]] for cells in lines if cells]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a line of numbers `x y ...` a head: {error}") from None
    short = next((number for number, row in enumerate(found, 1) if len(row) < 2), None)
    if short is not None:
        raise InputError(f"{path}: line {short}: expected x and y, found one number")
    return table_of_points(path, np.array(found).reshape(-1, 2), "line")


def _points(path: Path, held: Any) -> Table:
    key = next((k for k in _KEYS if k in held), None) if isinstance(held, Mapping) else None
    rows = held[key] if key is not None else held
    if not isinstance(rows, list):
        keys = f" with keys {listing(held)}" if isinstance(held, Mapping) else ""
        raise InputError(
            f"{path}: expected points ([[x, y], ...], or a list under one of {listing(_KEYS)}), COCO or GeoJSON; "
            f"found {type(held).__name__}{keys}"
        )
    points, names = [], []
    for number, row in enumerate(rows, 1):
        x, y, name = _place(row)
        if x is None or y is None:
            raise InputError(f'{path}: point {number}: expected [x, y] or {{"x": .., "y": ..}}, found {str(row)[:60]}')
        points.append((x, y))
        names.append(name)
    columns = {"class": names} if any(name is not None for name in names) else {}
    return table_of_points(path, np.array(points, np.float64).reshape(-1, 2), columns=columns)


def _place(row: Any) -> tuple[float | None, float | None, Any]:
    if isinstance(row, Mapping):
        x, y, name = (next((row[k] for k in keys if k in row), None) for keys in (_X, _Y, _NAME))
    elif isinstance(row, list) and len(row) >= 2:
        x, y, name = row[0], row[1], None
    else:
        return None, None, None
    good = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (x, y))
    return (x, y, name) if good else (None, None, None)


def _coco(path: Path, held: Mapping[str, Any]) -> Table:
    try:
        pictures = {item["id"]: str(item["file_name"]) for item in held["images"]}
        classes = {item["id"]: item["name"] for item in held.get("categories", [])}
        items = held["annotations"]
        images = [pictures[item["image_id"]] for item in items]
        names = [classes.get(item.get("category_id"), item.get("category_id")) for item in items]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not laid out as COCO: {error!r} is missing or out of place") from None
    shapes = [_coco_shape(item, f"{path}: annotation {number}") for number, item in enumerate(items, 1)]
    geometries = np.array([*(geometry for geometry, _ in shapes), None], object)[:-1]
    boxes = bool(shapes) and all(kind == "box" for _, kind in shapes)
    # A picture without an annotation is one of nobody: it has to be known by name to be told from a picture left out.
    return Table(
        path, geometries, range(1, len(items) + 1), {"class": names} if classes else {}, boxes=boxes, pixels=True,
        images=images, row_word="annotation", pictures=frozenset(pictures.values()),
        crowd=[bool(item.get("iscrowd")) for item in items],
    )  # fmt: skip


def _coco_shape(item: Mapping[str, Any], where: str) -> tuple[Any, str]:
    outline, keypoints, box = item.get("segmentation"), item.get("keypoints"), item.get("bbox")
    try:
        if isinstance(outline, list) and outline:
            rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in outline]
            parts = [shapely.Polygon(ring) for ring in rings if len(ring) >= 3]
            if parts:
                return (parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)), "outline"
        if isinstance(outline, Mapping):
            return _from_runs(outline), "outline"
        if keypoints:
            triples = np.asarray(keypoints, np.float64).reshape(-1, 3)
            seen = triples[triples[:, 2] > 0, :2]
            if len(seen):
                return shapely.Point(*_mean(seen)), "point"
        if box:
            x, y, width, height = (float(v) for v in box)
            if not (width > 0 and height > 0):
                raise InputError(f"{where}: expected a box of positive size, found {box}")
            return shapely.box(x, y, x + width, y + height), "box"
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {' '.join(str(error).split())}") from None
    raise InputError(f"{where}: expected a segmentation, keypoints or a bbox")


def _from_runs(outline: Mapping[str, Any]) -> Any:
    """Polygons on the pixels' edges, which are rasterised to the same mask again."""
    from rasterio.features import shapes

    mask = MaskSet.from_coco_rle([outline], [0]).to_dense()[0]
    parts = [shapely.geometry.shape(part) for part, _ in shapes(mask.astype(np.uint8), mask=mask)]
    return shapely.MultiPolygon(parts)


def _mean(points: NDArray[np.float64]) -> tuple[float, float]:
    x, y = points.mean(axis=0)
    return float(x), float(y)
