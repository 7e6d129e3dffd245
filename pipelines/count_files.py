"""What one counted picture leaves: the picture with its points, a density map, the points as rows and on the ground."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from adapters.classes import ClassSet
from pipelines.counting import PictureCount, SoftPoints
from pipelines.counting_metrics import centroids
from pipelines.report_overview import overview

LONGEST = 1600  # px of the overlay's longer side
SPREAD = 40  # the density map's bump is this part of the picture's longer side wide (standard deviation)
# Dark violet to yellow, even in brightness, so that it reads in grey too; corner points of a "inferno"-like ramp.
_RAMP = np.array([[0, 0, 8], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], float)


def write_picture_files(folder: Path, source: Any, result: PictureCount, classes: ClassSet) -> None:
    """overlay.jpg, density.png, points.csv; points.geojson where the source has a CRS."""
    picture, scale = overview(source, LONGEST)
    points = centroids(result.objects)
    Image.fromarray(overlay(picture, scale, points, result, classes)).save(folder / "overlay.jpg", quality=88)
    Image.fromarray(density_picture(picture, density(result.soft, picture.shape[:2], scale))).save(
        folder / "density.png", optimize=True
    )
    _write_points(folder / "points.csv", points, result, classes)
    if source.geometry.crs is not None:
        _write_geojson(folder / "points.geojson", points, result, classes, source.geometry)


def overlay(
    picture: NDArray[np.uint8], scale: float, points: NDArray[np.float64], result: PictureCount, classes: ClassSet
) -> NDArray[np.uint8]:
    """The picture with a ring round each object, as large as the object, in its class' colour; full crops framed."""
    canvas = Image.fromarray(picture).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    radii = np.maximum(np.sqrt(result.objects.areas / np.pi) / scale, 2.0)
    width = max(1, round(max(canvas.size) / 800))
    for (x, y), radius, label in zip(points / scale, radii, result.objects.labels, strict=True):
        ring = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(ring, outline=classes.colours[label], width=width)
    for full in result.full:
        rows, columns = full.window
        box = [v / scale for v in (columns.start, rows.start, columns.stop - 1, rows.stop - 1)]
        draw.rectangle(box, outline="#ff0000", width=2 * width)
    return np.asarray(canvas)


def density(soft: SoftPoints, shape: tuple[int, int], scale: float) -> NDArray[np.float64]:
    """(h, w) objects a pixel of the small picture: every query's p spread as a Gaussian. Sums to the expected count."""
    heat = np.zeros(shape)
    column, row = (np.clip((soft.places / scale).astype(np.int64), 0, [shape[1] - 1, shape[0] - 1])).T
    np.add.at(heat, (row, column), soft.p)
    return ndimage.gaussian_filter(heat, max(shape) / SPREAD, mode="reflect")


def density_picture(picture: NDArray[np.uint8], heat: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The heat map over the greyed picture: the more objects, the brighter and the less of the picture."""
    share = heat / heat.max() if heat.max() > 0 else heat
    at = share * (len(_RAMP) - 1)
    low = np.minimum(at.astype(np.int64), len(_RAMP) - 2)
    colour = _RAMP[low] + (at - low)[..., None] * (_RAMP[low + 1] - _RAMP[low])
    grey = picture.mean(axis=2, keepdims=True)
    weight = 0.35 + 0.65 * np.sqrt(share)[..., None]
    return np.rint(weight * colour + (1 - weight) * grey).astype(np.uint8)


def _write_points(path: Path, points: NDArray[np.float64], result: PictureCount, classes: ClassSet) -> None:
    objects = result.objects
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["x", "y", "class", "score", "area_px", "id"])
        for (x, y), label, score, area, number in zip(
            points, objects.labels, objects.scores, objects.areas, objects.ids, strict=True
        ):
            rows.writerow([f"{x:.2f}", f"{y:.2f}", classes.names[label], f"{score:.4f}", int(area), int(number)])


def _write_geojson(
    path: Path, points: NDArray[np.float64], result: PictureCount, classes: ClassSet, geometry: Any
) -> None:
    """RFC 7946: longitude and latitude in WGS 84."""
    import pyproj

    crs = pyproj.CRS.from_wkt(geometry.crs.to_wkt())
    a, b, c, d, e, f = tuple(geometry.transform)[:6]
    x, y = points.T
    lon, lat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(a * x + b * y + c, d * x + e * y + f)
    objects = result.objects
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [round(float(lon[i]), 8), round(float(lat[i]), 8)]},
            "properties": {
                "id": int(objects.ids[i]),
                "class": classes.names[objects.labels[i]],
                "score": round(float(objects.scores[i]), 4),
                "area_px": int(objects.areas[i]),
            },
        }
        for i in range(len(objects))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n", encoding="utf-8")
