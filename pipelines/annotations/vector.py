"""Listed objects (polygons, lines, boxes) onto the scene's canvas."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from adapters.classes import BACKGROUND, IGNORE, ClassSet
from adapters.errors import InputError
from adapters.reading import did_you_mean, listing
from maskformer.masks import MaskSet
from pipelines.annotations.base import Annotations, Region, count_by_class, unite_stuff
from pipelines.annotations.options import LabelOptions
from pipelines.annotations.placing import Placed, extent_text, is_line, place
from pipelines.annotations.points import is_point, one_point_a_row
from pipelines.annotations.rasterise import rasterise
from pipelines.annotations.tables import Table, is_null
from pipelines.sources.base import Source

logger = logging.getLogger(__name__)

_CLASS_COLUMNS = ("class", "label", "category", "class_name", "classname", "class_id")


def vector_labels(table: Table, source: Source, classes: ClassSet, options: LabelOptions) -> Annotations:
    """The table's objects on the canvas of `source`. See `pipelines.annotations.read_annotations`."""
    table, others = of_this_picture(one_point_a_row(table), source)
    codes, column = class_codes(table, classes, options)
    if table.crowd is not None:
        codes[np.array(table.crowd, bool)] = IGNORE
    placed = place(table, source, options)
    burnt = rasterise(placed.geometries, codes, source.shape)
    empty = shapely.is_empty(placed.geometries) | (shapely.area(placed.geometries) == 0)
    if placed.points is not None:
        _warn_of_points(table, placed.points)
    if len(table) and not len(burnt.objects):
        raise InputError(_no_overlap(table, placed, source))
    if not len(table):
        logger.warning("%s: no labels for %s", table.file, source.path)
    found = burnt.objects
    objects = unite_stuff(found[found.labels >= 0], classes)
    report = {
        "file": str(table.file),
        "kind": "boxes" if placed.boxes else _kind(table),
        "features": len(table),
        "objects": len(objects),
        "counts": count_by_class(objects, classes),
        "class_column": column,
        "repaired": placed.repaired,
        "dropped": int(empty.sum()),
        "outside": int((~burnt.kept & ~empty).sum()),
        "tiny": burnt.tiny,
        "ignored": int((codes == IGNORE).sum()),
        "background": int((codes == BACKGROUND).sum()),
        "other_pictures": others,
        "coordinates": placed.coordinates,
        "boxes": placed.boxes,
        "points": placed.points,
        "assumption": "; ".join(placed.notes) or None,
    }
    return Annotations(objects, _ignored(found, options), report)


def of_this_picture(table: Table, source: Source) -> tuple[Table, int]:
    """The rows about this picture, where the file lists several, and how many rows are about others.

    Pictures are told by their names without folder and suffix. A file about one picture alone is taken for it.
    """
    if table.images is None:
        return table, 0
    names = np.array([Path(str(name)).stem for name in table.images], object)
    known = {Path(str(name)).stem for name in table.pictures or ()} | set(names)
    if len(known) <= 1:
        return table, 0
    keep = names == Path(source.path).stem
    if not keep.any() and Path(source.path).stem not in known:
        raise InputError(
            f"{table.file}: no labels of {Path(source.path).name}; the file is about {listing(sorted(set(names)))}"
        )
    return table.take(keep), int((~keep).sum())


def class_codes(table: Table, classes: ClassSet, options: LabelOptions) -> tuple[NDArray[np.int64], str | None]:
    """(N,) class index, IGNORE or BACKGROUND of each row, and the column that said so."""
    column = _class_column(table, classes, options)
    if column is None:
        name = options.default_class or classes.names[0]
        return np.full(len(table), _index(classes, name, "default_class"), np.int64), None
    values = table.columns[column]
    default = None if options.default_class is None else _index(classes, options.default_class, "default_class")
    given = [None if is_null(v) else v for v in values]
    counts = Counter("(empty)" if v is None else v for v in given if v is not None or default is None)
    try:
        known = classes.codes(counts, f"{table.file}: column '{column}'")
    except InputError as error:
        advice = "" if options.class_column or len(classes) > 1 else "; or name the class with `default_class`"
        raise InputError(f"{error}{advice}") from None
    return np.array([default if v is None else known[v] for v in given], np.int64).reshape(-1), column


def _class_column(table: Table, classes: ClassSet, options: LabelOptions) -> str | None:
    if options.class_column is not None:
        if options.class_column not in table.columns:
            columns = list(table.columns)
            raise InputError(
                f"{table.file}: no column '{options.class_column}'; the columns are {listing(columns)}"
                f"{did_you_mean(options.class_column, columns)}"
            )
        return options.class_column
    if options.default_class is not None:
        return None
    names = {name.casefold(): name for name in table.columns}
    column = table.class_column or next((names[c] for c in _CLASS_COLUMNS if c in names), None)
    if column is None and len(classes) > 1:
        raise InputError(
            f"{table.file}: which column holds the class? Name it with `class_column`, or the class with "
            f"`default_class`; the columns are {listing(table.columns)}"
        )
    return column


def _index(classes: ClassSet, name: Any, what: str) -> int:
    try:
        return classes.index(name)
    except InputError as error:
        raise InputError(f"labels: {what}: {error}") from None


def _ignored(found: MaskSet, options: LabelOptions) -> Region | None:
    """What is not known: off all labels with outside="ignore", and on objects of an ignore value."""
    if options.outside == "ignore":
        spoken = found[found.labels != IGNORE]
        return Region(_one(spoken), inverted=True)
    silent = found[found.labels == IGNORE]
    return Region(_one(silent)) if len(silent) else None


def _one(objects: MaskSet) -> MaskSet:
    """All objects as one."""
    return objects.union(np.zeros(len(objects), np.int64)) if len(objects) > 1 else objects


def _warn_of_points(table: Table, facts: dict[str, int]) -> None:
    if facts["outside"] or facts["duplicates"]:
        logger.warning(
            "%s: %d points off the picture, %d at a place that is taken; %d left out",
            table.file,
            facts["outside"],
            facts["duplicates"],
            facts["left_out"],
        )


def _kind(table: Table) -> str:
    if len(table) and is_point(table.geometries).all():
        return "points"
    lines = is_line(table.geometries)
    if not lines.any():
        return "polygons"
    return "lines" if lines.all() else "polygons and lines"


def _no_overlap(table: Table, placed: Placed, source: Source) -> str:
    """Both extents, in map coordinates where there are some, else in pixels."""
    height, width = source.shape
    xmin, ymin, xmax, ymax = (float(v) for v in shapely.total_bounds(placed.geometries))
    labels = (xmin, ymin, xmax, ymax)
    scene, unit = (0.0, 0.0, float(width), float(height)), "pixels"
    if placed.coordinates == "map":
        corners = [source.geometry.transform @ c for c in ((xmin, ymin), (xmax, ymin), (xmin, ymax), (xmax, ymax))]
        xs, ys = zip(*corners)
        labels = (min(xs), min(ys), max(xs), max(ys))
        scene = source.geometry.bounds(source.shape)
        unit = source.geometry.crs.to_string() if source.geometry.crs else "map coordinates"
    return (
        f"{table.file}: the labels do not overlap the scene {source.path}: labels {extent_text(labels)}; "
        f"scene {extent_text(scene)} ({unit[:60]})"
    )
