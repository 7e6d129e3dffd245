"""Label files that list objects, read into one form: geometries, columns, and what is known of their coordinates."""

from __future__ import annotations

import csv
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import shapely
from numpy.typing import NDArray

from adapters.errors import InputError
from adapters.reading import did_you_mean, listing
from pipelines.annotations import RASTERS, VECTORS

_WKT = ("wkt", "geometry", "geom", "the_geom", "wkt_geom")
_BOXES = (("xmin", "ymin", "xmax", "ymax"), ("minx", "miny", "maxx", "maxy"), ("left", "top", "right", "bottom"))
_POINTS = (("x", "y"), ("col", "row"), ("column", "row"), ("lon", "lat"), ("longitude", "latitude"))
_DEGREES = "EPSG:4326"
_IMAGES = ("image_path", "image", "filename", "file_name")
_NULL = ("", "none", "null", "nan", "na")


@dataclass(frozen=True)
class Table:
    """Objects of a label file in the file's own coordinates.

    geometries: (N,) shapely, two-dimensional. rows: where each stands in the file, counted from 1 as `row_word` says.
    columns: name -> N values. crs: the file's, or None. boxes: the format knows only boxes. pixels: the coordinates
    are pixels of the picture (None: the file does not say). class_column: the column the format itself has for the
    class. images: the picture each object belongs to, where the file says it. size: (height, width) of that picture.
    pictures: all pictures the file speaks of, those without an object too. crowd: rows that stand for several objects
    nobody told apart.
    """

    file: Path
    geometries: NDArray[np.object_]
    rows: Sequence[int]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    crs: Any | None = None
    boxes: bool = False
    pixels: bool | None = None
    class_column: str | None = None
    images: list[str] | None = None
    size: tuple[int, int] | None = None
    row_word: str = "feature"
    pictures: frozenset[str] | None = None
    crowd: Sequence[bool] | None = None

    def __len__(self) -> int:
        return len(self.geometries)

    def at(self, index: int) -> str:
        """`file: feature 7`, to begin an error with."""
        return f"{self.file}: {self.row_word} {self.rows[index]}"

    def take(self, keep: NDArray[np.bool_]) -> Table:
        """The objects for which `keep` (N,) holds."""
        chosen = np.flatnonzero(keep).tolist()
        return Table(
            self.file,
            self.geometries[keep],
            [self.rows[i] for i in chosen],
            {name: [values[i] for i in chosen] for name, values in self.columns.items()},
            self.crs,
            self.boxes,
            self.pixels,
            self.class_column,
            None if self.images is None else [self.images[i] for i in chosen],
            self.size,
            self.row_word,
            self.pictures,
            None if self.crowd is None else [self.crowd[i] for i in chosen],
        )


def read_table(path: Path, layer: str | None = None, dots: bool = False) -> Table:
    """Read a vector file, CSV, Pascal VOC xml, COCO, points; with `dots` a picture. InputError names file and fault."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if dots and suffix in RASTERS:
        from pipelines.annotations.objects_folder import read_dots

        return read_dots(path)
    if suffix == ".mat":
        from pipelines.annotations.mat import read_mat

        return read_mat(path)
    if suffix == ".txt":
        from pipelines.annotations.listed import read_lines

        return read_lines(path)
    if suffix == ".json":
        from pipelines.annotations.listed import read_listed

        listed = read_listed(path)
        if listed is not None:
            return listed
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".xml":
        return _read_voc(path)
    if suffix in (".parquet", ".geoparquet"):
        return _read_parquet(path)
    if suffix in VECTORS:
        return _read_vector(path, layer)
    known = ", ".join(sorted(VECTORS | RASTERS | {".csv", ".xml", ".mat", ".txt", ".npz", ".npy"}))
    raise InputError(f"{path}: labels of an unknown kind '{suffix}'; known are {known}")


def is_null(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip().casefold() in _NULL


def _read_vector(path: Path, layer: str | None) -> Table:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError

    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if layer is not None and layer not in layers:
            raise InputError(f"{path}: no layer '{layer}'; there are {listing(layers)}{did_you_mean(layer, layers)}")
        if layer is None and len(layers) > 1:
            raise InputError(f"{path}: which layer? There are {listing(layers)}; name one with `layer`")
        meta, _, wkb, columns = pyogrio.raw.read(path, layer=layer, force_2d=True)
    except (DataLayerError, DataSourceError, FeatureError, GeometryError) as error:
        raise InputError(f"{path}: not a vector file that can be read: {' '.join(str(error).split())}") from error
    if wkb is None:
        raise InputError(f"{path}: the file has rows but no geometry")
    names = [str(name) for name in meta["fields"]]
    return Table(
        path,
        shapely.from_wkb(wkb),
        range(1, len(wkb) + 1),
        {name: list(values.tolist()) for name, values in zip(names, columns)},
        _crs(meta["crs"]),
    )


def _read_parquet(path: Path) -> Table:
    import geopandas
    import pyarrow

    try:
        frame = geopandas.read_parquet(path)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a GeoParquet file that can be read: {' '.join(str(error).split())}") from error
    geometries = shapely.force_2d(frame.geometry.to_numpy())
    columns = {str(c): frame[c].tolist() for c in frame.columns if c != frame.geometry.name}
    return Table(path, geometries, range(1, len(frame) + 1), columns, _crs(frame.crs))


def _crs(crs: Any) -> Any | None:
    import pyproj

    return None if crs is None else pyproj.CRS.from_user_input(crs)


def _read_csv(path: Path) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            separator = max(",;\t", key=head.count)
            reader = csv.reader(file, delimiter=separator)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: not a CSV file that can be read: {error}") from error
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}: line {line}: expected {len(header)} values, found {len(row)}")
    columns: dict[str, list[Any]] = {name: [row[i] for _, row in rows] for i, name in enumerate(header)}
    lines = [line for line, _ in rows]
    keys = {name.casefold(): name for name in header}
    box = next((names for names in _BOXES if all(n in keys for n in names)), None)
    wkt = next((keys[n] for n in _WKT if n in keys), None)
    point = next((names for names in _POINTS if all(n in keys for n in names)), None)
    crs = None
    if wkt is not None:
        geometries = _from_wkt(path, lines, columns.pop(wkt))
    elif box is not None:
        geometries = _from_corners(path, lines, [columns.pop(keys[n]) for n in box])
    elif point is not None:
        geometries = _from_pairs(path, lines, [columns.pop(keys[n]) for n in point])
        crs = _crs(_DEGREES) if point[0].startswith("lon") else None
    else:
        raise InputError(
            f"{path}: expected a column WKT, or xmin, ymin, xmax, ymax, or x, y, or lon, lat; the columns are "
            f"{listing(header)}"
        )
    image = next((keys[n] for n in _IMAGES if n in keys), None)
    return Table(
        path,
        geometries,
        lines,
        columns,
        crs,
        boxes=wkt is None and box is not None,
        pixels=True if wkt is None and box is None and point is not None and point[1] == "row" else None,
        images=None if image is None else columns.pop(image),
        row_word="line",
    )


def _from_wkt(path: Path, lines: list[int], texts: list[str]) -> NDArray[np.object_]:
    geometries = np.empty(len(texts), object)
    for i, text in enumerate(texts):
        try:
            geometries[i] = shapely.force_2d(shapely.from_wkt(re.sub(r"^\s*SRID=\d+;", "", text)))
        except shapely.errors.ShapelyError as error:
            raise InputError(
                f"{path}: line {lines[i]}: not a geometry in WKT: {' '.join(str(error).split())}"
            ) from error
    return geometries


def _from_corners(path: Path, lines: list[int], cells: list[list[str]]) -> NDArray[np.object_]:
    corners = np.full((len(lines), 4), np.nan)
    for i, texts in enumerate(zip(*cells)):
        try:
            corners[i] = [float(text) for text in texts]
        except ValueError:
            found = listing(repr(t) for t in texts)
            raise InputError(f"{path}: line {lines[i]}: expected four numbers for the box, found {found}") from None
        _check_box(corners[i], f"{path}: line {lines[i]}")
    return np.asarray(shapely.box(*corners.T), object).reshape(-1)


def _from_pairs(path: Path, lines: list[int], cells: list[list[str]]) -> NDArray[np.object_]:
    points = np.full((len(lines), 2), np.nan)
    for i, texts in enumerate(zip(*cells)):
        try:
            points[i] = [float(text) for text in texts]
        except ValueError:
            found = listing(repr(t) for t in texts)
            raise InputError(f"{path}: line {lines[i]}: expected two numbers for the point, found {found}") from None
        if not np.isfinite(points[i]).all():
            raise InputError(f"{path}: line {lines[i]}: expected finite numbers for the point, found {listing(texts)}")
    return np.asarray(shapely.points(points), object).reshape(-1)


def _check_box(corners: Sequence[float], where: str) -> None:
    xmin, ymin, xmax, ymax = (float(v) for v in corners)
    if not np.isfinite([xmin, ymin, xmax, ymax]).all():
        raise InputError(f"{where}: expected finite numbers for the box, found {xmin}, {ymin}, {xmax}, {ymax}")
    if xmin >= xmax or ymin >= ymax:
        raise InputError(f"{where}: expected xmin < xmax and ymin < ymax, found {xmin}, {ymin}, {xmax}, {ymax}")


def _read_voc(path: Path) -> Table:
    root = _parse_xml(path)
    if root.tag != "annotation":
        raise InputError(f"{path}: expected Pascal VOC xml (root <annotation>), found <{root.tag}>")
    corners, names = [], []
    for number, item in enumerate(root.iter("object"), start=1):
        where = f"{path}: object {number}"
        texts = [item.findtext(f"bndbox/{key}") for key in _BOXES[0]]
        try:
            box = [float(text or "") for text in texts]
        except ValueError:
            raise InputError(f"{where}: expected xmin, ymin, xmax, ymax in <bndbox>, found {texts}") from None
        _check_box(box, where)
        corners.append(box)
        names.append((item.findtext("name") or "").strip())
    boxes = np.asarray(shapely.box(*np.array(corners).T), object) if corners else np.empty(0, object)
    sides = [int(text) if (text := root.findtext(f"size/{k}") or "").isdigit() else 0 for k in ("height", "width")]
    return Table(
        path,
        boxes,
        range(1, len(corners) + 1),
        {"name": names},
        boxes=True,
        pixels=True,
        class_column="name",
        size=(sides[0], sides[1]) if all(sides) else None,
        row_word="object",
    )


def _parse_xml(path: Path) -> ElementTree.Element:
    """The root element; document types are refused, because entities in them can blow up or read other files."""
    data = path.read_bytes()

    def refuse(*_: Any) -> None:
        raise InputError(f"{path}: holds a document type (DTD or entities), which is refused; remove the DOCTYPE line")

    scout = expat.ParserCreate()
    scout.StartDoctypeDeclHandler = refuse
    try:
        scout.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not an xml file that can be read: {error}") from error
