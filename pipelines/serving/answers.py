"""One image as text in, its objects as JSON out.

The answer is laid out as GeoJSON's FeatureCollection, but coordinates are what `crs` says: of the image's own CRS, or,
where that is null, pixels (x to the right, y down, (0, 0) the outer corner of the first pixel). RFC 7946 knows degrees
only, which would move outlines off their pixel edges.
"""

from __future__ import annotations

import base64
import binascii
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shapely

from adapters.errors import InputError
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions

KINDS = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif", b"II+\0": ".tif"}
MOST_BYTES = 128 << 20  # of an image; scenes go through `maskbridge predict`, not through a request
MOST_PIXELS = 4096 * 4096  # a tile of 512 takes a small model 0.3 s on one core, and a request has 60 s


class Answerer:
    """A bundle ready to answer. Not for use from several threads at once."""

    def __init__(self, bundle: Bundle) -> None:
        if bundle.adapter.volume is not None:
            raise InputError(f"model {bundle.name} reads CT and MRI studies, not images: use maskbridge predict")
        self.bundle = bundle
        self._network = bundle.build()

    def __call__(self, image: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The objects of a base64 PNG, JPEG or TIFF. InputError, in one line, for anything else."""
        content = decoded(image)
        suffix = next((suffix for magic, suffix in KINDS.items() if content.startswith(magic)), None)
        if suffix is None:
            raise InputError("image: neither PNG, JPEG nor TIFF")
        with tempfile.TemporaryDirectory(prefix="maskbridge-") as folder:
            path = Path(folder) / f"image{suffix}"
            path.write_bytes(content)
            try:
                return self._answer(path, dict(params or {}))
            except InputError as error:
                raise InputError(str(error).replace(f"{folder}/", "")) from error

    def _answer(self, path: Path, params: dict[str, Any]) -> dict[str, Any]:
        from pipelines.assembly import predict_in_memory
        from pipelines.predictor import Predictor, settle
        from pipelines.sources import open_for

        bundle = self.bundle
        options = PredictOptions(score=_score(params.get("score")), min_area=_area(params.get("min_area", 4)))
        settled = settle(options, bundle.adapter, bundle.thresholds, bundle.provenance.get("task"))
        with open_for(path, bundle.adapter) as source:
            height, width = source.shape
            if height * width > MOST_PIXELS:
                raise InputError(f"image: {height} x {width} pixels, expected at most {MOST_PIXELS}: predict the scene")
            scene, _ = predict_in_memory(source, Predictor(self._network, bundle.adapter, settled), bundle.thresholds)
            return collection(scene.objects, source.geometry, bundle)


def collection(objects: Any, geometry: Any, bundle: Bundle) -> dict[str, Any]:
    """Objects as a FeatureCollection: `class`, `class_id`, `score`, area, and a polygon each."""
    from pipelines.sinks.vector import table

    frame = table(objects, geometry if geometry.crs is not None else None, bundle.adapter.classes)
    area = "area_m2" if "area_m2" in frame else "area_px"
    features = [
        {
            "type": "Feature",
            "id": str(row["id"]),  # 63 bits: more than a number of JavaScript holds
            "properties": {
                "class": row["class"],
                "class_id": int(row["class_id"]),
                "score": round(float(row["score"]), 4),
                area: round(float(row[area]), 3),
            },
            "geometry": shapely.geometry.mapping(row["geometry"]),
        }
        for row in frame.to_dict("records")
    ]
    height, width = objects.shape
    return {
        "type": "FeatureCollection",
        "crs": None if geometry.crs is None else geometry.crs.to_string(),
        "width": int(width),
        "height": int(height),
        "model": {"name": bundle.name, "sha256": bundle.sha256},
        "features": features,
    }


def decoded(image: Any) -> bytes:
    """The bytes behind base64 text, with or without a `data:` address' head. InputError."""
    if not isinstance(image, str) or not image:
        raise InputError("image: expected the base64 text of a PNG, JPEG or TIFF")
    text = image.partition(",")[2] if image.startswith("data:") else image
    if len(text) * 3 // 4 > MOST_BYTES:
        raise InputError(f"image: larger than {MOST_BYTES >> 20} MiB; use maskbridge predict for scenes")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image: is not base64") from None


def _score(value: Any) -> float | None:
    """None and NaN leave it to the model."""
    if value is None or math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise InputError(f"score: expected 0 to 1, got {value:g}")
    return float(value)


def _area(value: Any) -> int:
    if value < 0:
        raise InputError(f"min_area: expected 0 or more pixels, got {value}")
    return int(value)
