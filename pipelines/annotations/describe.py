"""What a label file holds, before anybody knows what its values mean."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from adapters.errors import InputError
from pipelines.annotations import RASTERS
from pipelines.annotations.placing import crs_label, is_line
from pipelines.annotations.tables import Table, is_null, read_table
from pipelines.sources import describe, open_source
from pipelines.sources.arrays import is_array_file, load, read_header

COMMONEST = 20  # values listed for a column
_ROWS = 512  # of a label raster counted at a time


def describe_label_file(path: str | Path, layer: str | None = None) -> dict[str, Any]:
    """See `pipelines.annotations.describe_labels`."""
    if Path(path).is_dir():
        return _folder(Path(path))
    if is_array_file(path):
        return _array(path)
    if Path(path).suffix.lower() in RASTERS:
        return _raster(path)
    return _table(read_table(Path(path), layer))


def _folder(path: Path) -> dict[str, Any]:
    from pipelines.annotations.objects_folder import mask_files

    return {"kind": "masks", "path": str(path), "count": len(mask_files(path))}


def _table(table: Table) -> dict[str, Any]:
    present = np.array([g is not None and not g.is_empty for g in table.geometries], bool)
    shapes = table.geometries[present]
    types = Counter(g.geom_type for g in shapes)
    lines = is_line(shapes)
    kind = "boxes" if table.boxes else "lines" if len(shapes) and lines.all() else "polygons"
    if "Point" in types or "MultiPoint" in types:
        kind = "points"
    crs = table.crs
    return {
        "kind": kind,
        "path": str(table.file),
        "count": len(table),
        "geometry_types": dict(sorted(types.items())),
        "empty": int((~present).sum()),
        "invalid": int((~shapely.is_valid(shapes)).sum()),
        "columns": {name: _commonest(values) for name, values in table.columns.items()},
        "class_column": table.class_column,
        "pictures": sorted(set(table.images)) if table.images else None,
        "crs": None if crs is None else crs_label(crs),
        "bounds": [float(v) for v in shapely.total_bounds(shapes)] if len(shapes) else None,
        "coordinates": "pixels" if table.pixels else None,
    }


def _commonest(values: list[Any]) -> dict[str, int]:
    """The commonest values and how often each occurs; what is left out is summed up in the last entry."""
    counts = Counter("(empty)" if is_null(v) else str(v) for v in values)
    listed = dict(counts.most_common(COMMONEST))
    if len(counts) > COMMONEST:
        listed[f"({len(counts) - COMMONEST} others)"] = len(values) - sum(listed.values())
    return listed


def _raster(path: str | Path) -> dict[str, Any]:
    facts = describe(path)
    with open_source(path) as source:
        if len(source.channels) != 1:
            raise InputError(f"{path}: expected one band of labels, found {len(source.channels)}")
        if source.dtype.kind not in "iu":
            raise InputError(f"{path}: expected whole numbers as labels, found {source.dtype}")
        counts: Counter[int] = Counter()
        height, width = source.shape
        for row in range(0, height, _ROWS):
            values, _ = source.read((slice(row, min(row + _ROWS, height)), slice(0, width)))
            found, amounts = np.unique(values, return_counts=True)
            counts.update(dict(zip(found.tolist(), amounts.tolist())))
    return _picture(facts, counts)


def _array(path: str | Path) -> dict[str, Any]:
    header, _ = read_header(path)
    if header.dtype.kind not in "biu":
        raise InputError(f"{path}: expected whole numbers as labels, found {header.dtype}")
    found, amounts = np.unique(load(header), return_counts=True)
    facts = {"path": str(path), "shape": list(header.shape), "dtype": header.dtype.name, "crs": None, "nodata": None}
    return _picture(facts, Counter(dict(zip(found.tolist(), amounts.tolist()))))


def _picture(facts: dict[str, Any], counts: Counter[int]) -> dict[str, Any]:
    """`values`: pixels of each value."""
    kept = ("path", "shape", "dtype", "nodata", "crs", "bounds")
    named = {str(value): n for value, n in sorted(counts.items())[:256]}
    return {"kind": "raster", "count": len(counts), "values": named, **{k: facts[k] for k in kept if k in facts}}
