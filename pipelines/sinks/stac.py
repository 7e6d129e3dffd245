"""A STAC item for a predicted scene, so that a catalogue can list what was found where.

Format: STAC 1.1 with the projection fields as plain properties. A file has a date only if its maker wrote one into its
tags; where there is none, the item says that its date is the prediction's.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyproj
import pystac
import shapely
from affine import Affine

from pipelines.sinks.areas import crs_of
from pipelines.sinks.cog import HasPlace
from pipelines.sinks.folder import atomic_write, sha256

MEDIA = {
    ".tif": (pystac.MediaType.COG, ["data"]),
    ".parquet": (pystac.MediaType.PARQUET, ["data"]),
    ".gpkg": (pystac.MediaType.GEOPACKAGE, ["data"]),
    ".fgb": (pystac.MediaType.FLATGEOBUF, ["data"]),
    ".html": (pystac.MediaType.HTML, ["overview"]),
    ".json": (pystac.MediaType.JSON, ["metadata"]),
}
DATE_TAGS = ("ACQUISITIONDATETIME", "TIFFTAG_DATETIME")  # GDAL's IMAGERY domain has the first, TIFF itself the second
STEPS = 21  # points of a footprint's side: a straight side in the scene is a curve in longitude and latitude


def write_item(
    folder: Path, name: str, shape: tuple[int, int], geometry: HasPlace, tags: Mapping[str, str]
) -> Path | None:
    """Write `item.json` about the files in `folder`; None, and no file, where the scene has no CRS."""
    crs = crs_of(geometry.crs) if geometry.crs is not None else None
    if crs is None:
        return None
    outline = footprint(shape, geometry.transform, crs)
    date, of = _date(tags)
    item = pystac.Item(
        id=name,
        geometry=json.loads(shapely.to_geojson(outline)),
        bbox=list(outline.bounds),
        datetime=date,
        properties={
            "datetime_is": of,
            "proj:shape": list(shape),
            "proj:transform": list(geometry.transform)[:6],
            "proj:code": None if crs.to_epsg() is None else f"EPSG:{crs.to_epsg()}",
            "proj:wkt2": crs.to_wkt(),
        },
    )
    for path in sorted(folder.iterdir()):
        if path.suffix in MEDIA:
            media, roles = MEDIA[path.suffix]
            item.add_asset(path.name, pystac.Asset(href=f"./{path.name}", media_type=media, roles=roles))
            item.assets[path.name].extra_fields["file:checksum"] = f"1220{sha256(path)}"  # multihash of a SHA-256
    target = folder / "item.json"
    with atomic_write(target) as temporary:
        text = json.dumps(item.to_dict(include_self_link=False), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return target


def footprint(shape: tuple[int, int], transform: Affine, crs: pyproj.CRS) -> shapely.Geometry:
    """The scene's outline in WGS 84 longitude and latitude; in two parts where it crosses the antimeridian."""
    height, width = shape
    side = [n / (STEPS - 1) for n in range(STEPS)]
    pixels = [(width * a, 0) for a in side] + [(width, height * a) for a in side]
    pixels += [(width * (1 - a), height) for a in side] + [(0, height * (1 - a)) for a in side]
    x, y = zip(*(transform @ pixel for pixel in pixels), strict=True)
    longitude, latitude = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    # Unfold: a step of more than half the world is one across the antimeridian.
    unfolded = [longitude[0]]
    for value in longitude[1:]:
        unfolded.append(unfolded[-1] + (value - unfolded[-1] + 180) % 360 - 180)
    whole = shapely.make_valid(shapely.Polygon(zip(unfolded, latitude, strict=True)))
    parts = []
    for shift in (-360, 0, 360):
        moved = shapely.affinity.translate(whole, shift)
        inside = shapely.intersection(moved, shapely.box(-180, -90, 180, 90))
        parts += [one for one in shapely.get_parts(inside) if one.geom_type == "Polygon" and one.area > 0]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _date(tags: Mapping[str, Any]) -> tuple[datetime.datetime, str]:
    """The picture's date if its file says one, else now."""
    for name in DATE_TAGS:
        text = str(tags.get(name, "")).strip()
        for form in ("%Y:%m:%d %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"):
            try:
                return datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC), "acquisition"
            except ValueError:
                continue
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0), "prediction"
