"""A QGIS style for the objects: `objects.qml` beside `objects.gpkg`, which QGIS loads by itself.

Outlines and a light fill in each class' colour, one legend entry a class. Format: QGIS' QML, categorised symbols on
column `class`.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as xml

from adapters.classes import ClassSet
from pipelines.sinks.folder import atomic_write

FILL_ALPHA = 64  # of 255: overlapping objects stay visible through each other
OUTLINE_MM = 0.4


def write_style(path: Path, classes: ClassSet) -> Path:
    """Write the style of `classes` to `path` (.qml)."""
    root = xml.Element("qgis", version="3.28", styleCategories="Symbology")
    renderer = xml.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class", symbollevels="0")
    categories = xml.SubElement(renderer, "categories")
    symbols = xml.SubElement(renderer, "symbols")
    for index, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        xml.SubElement(categories, "category", value=name, label=name, symbol=str(index), render="true", type="string")
        symbol = xml.SubElement(symbols, "symbol", type="fill", name=str(index), alpha="1", clip_to_extent="1")
        layer = xml.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"})
        options = xml.SubElement(layer, "Option", type="Map")
        red, green, blue = bytes.fromhex(colour.removeprefix("#"))
        for key, value in {
            "color": f"{red},{green},{blue},{FILL_ALPHA}",
            "outline_color": f"{red},{green},{blue},255",
            "outline_style": "solid",
            "outline_width": str(OUTLINE_MM),
            "outline_width_unit": "MM",
            "style": "solid",
        }.items():
            xml.SubElement(options, "Option", type="QString", name=key, value=value)
    xml.indent(root)
    with atomic_write(path) as temporary:
        body = xml.tostring(root, encoding="unicode")
        doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        temporary.write_text(doctype + body + "\n", encoding="utf-8")
    return path
