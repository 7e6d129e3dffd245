"""The semantic map: one uint8 band, 0 = nothing, 1..K the classes, 255 = no data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from adapters.classes import NODATA_ID as NODATA
from adapters.classes import ClassSet
from pipelines.sinks.cog import CogSink, HasPlace, Layout

NOTHING = 0
MAX_CLASSES = NODATA - 1


class SemanticSink(CogSink):
    """A CogSink of class ids. Class names, kinds and colours are in the colour table, in the JSON tag `CLASSES` and in
    the band's tags `CLASS_<value>`; the attribute table that QGIS reads is a side file (see `attribute_table`).

    ValueError for a value that is no class.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int], geometry: HasPlace | None, classes: ClassSet) -> None:
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"expected at most {MAX_CLASSES} classes in a uint8 map, got {len(classes)}")
        self.classes = classes
        super().__init__(path, shape, geometry, Layout("uint8", nodata=NODATA, overview="mode"))  # nearest loses roads

    def write(self, window: tuple[slice, ...], array: NDArray[np.uint8]) -> None:
        """Write `array` (h, w) uint8 at `window` (rows, columns)."""
        unknown = (array > len(self.classes)) & (array != NODATA)
        if unknown.any():
            values = np.unique(array[unknown]).tolist()
            raise ValueError(f"expected values 0..{len(self.classes)} or {NODATA}, got {values}")
        super().write(window, array)

    def _describe(self, file: Any) -> None:
        names = dict(enumerate(self.classes.names, start=1))
        colours = {value: _rgba(colour) for value, colour in enumerate(self.classes.colours, start=1)}
        file.write_colormap(1, {NOTHING: (0, 0, 0, 0), **colours, NODATA: (0, 0, 0, 0)})
        file.colorinterp = [ColorInterp.palette]
        file.set_band_description(1, "class")
        file.update_tags(CLASSES=json.dumps(class_table(self.classes), ensure_ascii=False))
        file.update_tags(1, **{f"CLASS_{value}": name for value, name in names.items()})


def class_table(classes: ClassSet) -> list[dict[str, Any]]:
    """JSON-ready rows `value, name, kind, colour` of a semantic map, value 0 ("nothing") first."""
    rows = [{"value": NOTHING, "name": "nothing", "kind": "none", "colour": "#000000"}]
    for index, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        kind = "thing" if classes.is_thing[index] else "stuff"
        rows.append({"value": classes.id_of(index), "name": name, "kind": kind, "colour": colour})
    return rows


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue, 255
