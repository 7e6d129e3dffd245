"""The raster attribute table of a class map, where QGIS and ArcGIS look for it: `<name>.aux.xml` beside the TIFF.

Format: GDAL's Persistent Auxiliary Metadata (a TIFF itself cannot hold such a table). It also carries the category
names, which GDAL gives to `gdalinfo` and the legend.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as xml

from adapters.classes import ClassSet
from pipelines.sinks.folder import atomic_write
from pipelines.sinks.geotiff import class_table

# GDAL's codes. Types: 0 whole number, 2 text. Usages: 0 generic, 1 pixel count, 2 name, 5 value, 6-8 red, green, blue.
COLUMNS = (
    ("Value", 0, 5),
    ("Class", 2, 2),
    ("Kind", 2, 0),
    ("Count", 0, 1),
    ("Red", 0, 6),
    ("Green", 0, 7),
    ("Blue", 0, 8),
)


def write_attribute_table(raster: Path, classes: ClassSet, pixels: Mapping[int, int]) -> Path:
    """Write the table of `raster` (a SemanticSink's file) beside it; `pixels` counts the pixels of each value."""
    rows = class_table(classes)
    dataset = xml.Element("PAMDataset")
    band = xml.SubElement(dataset, "PAMRasterBand", band="1")
    names = xml.SubElement(band, "CategoryNames")
    for row in rows:
        xml.SubElement(names, "Category").text = row["name"]
    table = xml.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(COLUMNS):
        field = xml.SubElement(table, "FieldDefn", index=str(index))
        for tag, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            xml.SubElement(field, tag).text = str(value)
    for index, row in enumerate(rows):
        line = xml.SubElement(table, "Row", index=str(index))
        colour = bytes.fromhex(row["colour"].removeprefix("#"))
        for value in (row["value"], row["name"], row["kind"], pixels.get(row["value"], 0), *colour):
            xml.SubElement(line, "F").text = str(value)
    xml.indent(dataset)
    path = raster.with_name(raster.name + ".aux.xml")
    with atomic_write(path) as temporary:
        temporary.write_bytes(xml.tostring(dataset, encoding="utf-8", xml_declaration=True) + b"\n")
    return path
