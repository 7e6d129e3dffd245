"""Which classes a set of label files holds, and how the files have to be read: for `maskbridge plan`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.points import PointRule
from adapters.reading import did_you_mean, listing

MOST_CLASSES = 40  # a column with more values is an identifier or a measurement, not a class
CLASS_COLUMNS = ("class", "label", "category", "class_name", "class_id")  # what the reader takes unasked
SILENT_WORDS = {"label", "labels", "mask", "masks", "annotation", "annotations", "sample", "test", "train", "data"}
LINE_HALF_WIDTH_M = 3.0  # a two-lane road; the plan says that it is a guess
SPARSE = 0.02  # label rasters with less than this share labelled: 0 most likely means "not looked at"
COVERING = 0.9  # with more than this share labelled in several classes, the classes cover the plane


@dataclass(frozen=True)
class Census:
    """The classes, how to read the labels (`LabelOptions` fields), why, and what the user should look at."""

    classes: ClassSet
    why: str
    settings: dict[str, Any] = field(default_factory=dict)
    covers: bool = False
    warnings: tuple[str, ...] = ()
    points: PointRule | None = None  # where labels are points: how they become masks


def take_census(paths: Sequence[str], class_column: str | None = None, default_class: str | None = None) -> Census:
    """Look at all label files of a plan. Raises InputError where they name no class that could be learned."""
    from pipelines.annotations import RASTERS
    from pipelines.sources.arrays import is_array_file

    pictures = [path for path in paths if is_array_file(path) or Path(path).suffix.lower() in RASTERS]
    if not pictures:
        return _of_tables(paths, class_column, default_class)
    if len(pictures) < len(paths):
        other = next(path for path in paths if path not in pictures)
        raise InputError(f"{other}: not a picture as {pictures[0]} is; plan label rasters and vectors apart")
    return _of_rasters(paths, default_class)


def _of_tables(paths: Sequence[str], class_column: str | None, default_class: str | None) -> Census:
    from pipelines.annotations.tables import is_null, read_table

    tables = [read_table(Path(path)) for path in paths]
    if not any(len(table) for table in tables):
        raise InputError(f"{paths[0]}: the labels are empty")
    settings: dict[str, Any] = {}
    points: PointRule | None = None
    warnings: list[str] = []
    if any(table.boxes for table in tables):
        settings["boxes"] = "ellipse"
    if any("Point" in geometry.geom_type for table in tables for geometry in table.geometries if geometry is not None):
        points = PointRule()
        warnings.append(f"LOOK: {points.words}; that is an assumption, change it under `adapter: points`.")
    if any("Line" in geometry.geom_type for table in tables for geometry in table.geometries if geometry is not None):
        settings["buffer_m"] = LINE_HALF_WIDTH_M
        warnings.append(f"LOOK: lines are taken as {LINE_HALF_WIDTH_M:g} m wide on each side, which is a guess.")
    columns = [class_column or _class_column(table) for table in tables]
    named = sorted({column for column in columns if column})
    if not named:
        name = default_class or _name_from(paths)
        return Census(
            ClassSet((Class(name),)), "no column names a class", settings, warnings=tuple(warnings), points=points
        )
    values: Counter[Any] = Counter()
    for table, column in zip(tables, columns, strict=True):
        if column is not None and column not in table.columns:
            known = list(table.columns)
            hint = did_you_mean(column, known)
            raise InputError(f"{table.file}: no column '{column}'; there are {listing(known)}{hint}")
        values.update(value for value in table.columns.get(column or "", ()) if not is_null(value))
    if class_column:
        settings["class_column"] = class_column
    if default_class:
        settings["default_class"] = default_class
        values[default_class] += 0
    classes = _classes(values, f"{paths[0]}: column '{named[0]}'")
    mute = [table.file for table, column in zip(tables, columns, strict=True) if column is None]
    if mute and len(classes) > 1 and not default_class:
        raise InputError(f"{mute[0]}: no column names the class, as '{named[0]}' does in others; name it with --class")
    why = f"from the column `{'`, `'.join(named)}`"
    return Census(ClassSet(classes), why, settings, warnings=tuple(warnings), points=points)


def _class_column(table: Any) -> str | None:
    """The column the reader would take by itself."""
    if table.class_column is not None:
        return str(table.class_column)
    spelled = {column.casefold(): column for column in table.columns}
    return next((spelled[name] for name in CLASS_COLUMNS if name in spelled), None)


def _of_rasters(paths: Sequence[str], default_class: str | None) -> Census:
    """Classes of label rasters, with what 0 and 255 most likely mean said for the user to check."""
    from pipelines.annotations import describe_labels

    pixels: Counter[int] = Counter()
    nodata: set[int] = set()
    described = [describe_labels(path) for path in paths]
    most = max(described, key=_count)
    if _count(most) > MOST_CLASSES:
        why = f"{_count(most)} values in {Path(most['path']).name} are object numbers, not classes"
        return Census(ClassSet((Class(default_class or _name_from(paths)),)), why, {"instances": True})
    for facts in described:
        pixels.update({int(value): count for value, count in facts["values"].items()})
        if facts["nodata"] is not None and float(facts["nodata"]).is_integer():
            nodata.add(int(facts["nodata"]))
    return _read_values(pixels, nodata, default_class)


def _count(facts: Mapping[str, Any]) -> int:
    return int(facts["count"])


def _read_values(pixels: Mapping[int, int], nodata: set[int], default_class: str | None) -> Census:
    """pixels: how many there are of each value."""
    warnings = []
    silent = set(nodata)
    others = [value for value in pixels if value not in (0, *nodata)]
    if 255 in others and len(others) > 1:
        silent.add(255)
        warnings.append("LOOK: 255 is taken as `not looked at` (ignore_values), as most label rasters have it.")
    values = sorted(set(others) - silent)
    if not values:
        raise InputError(f"the labels hold no class: their values are {listing(sorted(pixels))}")
    share = sum(pixels[value] for value in values) / max(1, sum(n for v, n in pixels.items() if v not in silent - {0}))
    covers = len(values) > 1 and (share > COVERING or share < SPARSE or 0 in nodata)
    if covers:
        silent.add(0)
        warnings.append(
            f"LOOK: {100 * share:.2g} % of the pixels are labelled, so the classes are taken to cover the plane and 0 "
            "as `not looked at` (ignore_values). If 0 is a class, take it out there and add one with values [0]."
        )
    elif 0 in pixels and 0 not in nodata:
        warnings.append("LOOK: 0 is taken as background, `none of the classes`; if it is unknown, see ignore_values.")
    if len(values) == 1 and default_class:
        classes = [Class(default_class, "thing", (values[0],))]
    else:
        classes = [_class(value, "stuff" if len(values) > 1 else "thing") for value in values]
    why = f"from the values of the label raster, {100 * share:.2g} % of it labelled"
    ignored = tuple(sorted(silent & set(pixels) | silent & {0, 255}))
    return Census(ClassSet(tuple(classes), ignore_values=ignored), why, {}, covers, tuple(warnings))


def _classes(values: Mapping[Any, int], where: str) -> tuple[Class, ...]:
    """A class a value, the commonest first; numbers get a name and keep their value."""
    if not values:
        raise InputError(f"{where}: names no class in any row")
    if len(values) > MOST_CLASSES:
        raise InputError(
            f"{where}: {len(values)} values, more than {MOST_CLASSES}: that is no class; "
            "name the column with --class-column, or one class for all with --class"
        )
    ordered = sorted(values, key=lambda value: (-values[value], str(value)))
    return tuple(_class(value) for value in ordered)


def _class(value: Any, kind: str = "thing") -> Class:
    number = _as_int(value)
    if number is not None:
        return Class(f"class {number}", kind, (number,))  # type: ignore[arg-type]
    return Class(str(value).strip(), kind)  # type: ignore[arg-type]


def _as_int(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _name_from(paths: Sequence[str]) -> str:
    """A class name from the file's: `buildings.geojson` holds buildings; `labels_17` says nothing."""
    stem = Path(paths[0]).stem.replace("_", " ").replace("-", " ").strip().casefold()
    if not SILENT_WORDS.isdisjoint(stem.split()):
        return "object"
    return stem if len(paths) == 1 and stem.replace(" ", "").isalpha() else "object"
