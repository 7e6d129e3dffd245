"""Object outlines small enough to travel inside a page: simplified, counted, packed as base64 variable-length integers.

An outline of a tree crown (60 vertices on pixel edges) becomes about 15 vertices and 40 bytes, so that 100 000 objects
fit in 5 MB. What does not fit is left out by area, smallest first, and the page says so.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from maskformer.masks import MaskSet
from pipelines.report_tables import grouped
from pipelines.sinks.outlines import outlines

MAX_OBJECTS = 100_000
# Steps of one pixel lie within 1 px of the slope they follow, so 1 px turns them into straight lines; the larger ones
# are for pages that would grow too heavy.
TOLERANCES = (1.0, 2.0, 4.0)
# An object is not simplified by more than this share of its size (the root of its area): small ones keep their pixels.
SHARE = 0.04
# Base64 text of an object's id, class, score and area: 22 bytes and a third.
ATTRIBUTES = 30


@dataclass(frozen=True)
class PackedShapes:
    """Outlines and attributes of `kept` of `total` objects, largest first, ready for JSON."""

    payload: dict[str, Any]
    kept: int
    total: int
    tolerance: float
    smallest_kept: int

    def account(self, word: str) -> str:
        """What was left out, in plain words ("" when nothing was left out)."""
        if self.kept == self.total:
            return ""
        return (
            f"Drawn are the {grouped(self.kept)} largest of {grouped(self.total)} {word}; the "
            f"{grouped(self.total - self.kept)} others (at most {grouped(self.smallest_kept)} pixels each) are left "
            f"out of this page to keep it usable. They are counted in all numbers and are in the objects files."
        )


def pack_shapes(objects: MaskSet, areas: np.ndarray | None = None, max_bytes: int = 5_000_000) -> PackedShapes:
    """Pack the outlines of `objects` (2-D) in at most `max_bytes` of base64 text (one object is always kept).

    `areas` (N,) are the areas to show (m² for instance), in pixels when None. Coordinates are whole scene pixels,
    (x, y), pixel (0, 0) spanning 0..1.
    """
    shown = np.asarray(objects.areas if areas is None else areas, np.float64)
    order = np.argsort(-np.asarray(objects.areas), kind="stable")
    order = order[np.asarray(objects.areas)[order] > 0][:MAX_OBJECTS]
    total = int((np.asarray(objects.areas) > 0).sum())
    shapes = outlines(objects[order])
    for tolerance in TOLERANCES:
        shapes = _simplify(shapes, tolerance)
        packed = _pack_rings(shapes)
        if _size(packed, len(order)) <= max_bytes:
            break
    while (size := _size(packed, len(order))) > max_bytes and len(order) > 1:
        # Size is close to linear in the number of objects; 0.9 makes sure that the loop ends.
        order = order[: max(1, int(len(order) * 0.9 * max_bytes / size))]
        shapes = shapes[: len(order)]
        packed = _pack_rings(shapes)
    payload = {
        **packed,
        "count": len(order),
        "ids": _base64(np.asarray(objects.ids)[order].astype("<i8")),
        "labels": _base64(np.asarray(objects.labels)[order].astype("<u2")),
        "scores": _base64(np.asarray(objects.scores)[order].astype("<f4")),
        "areas": _base64(shown[order].astype("<f8")),
    }
    smallest = int(np.asarray(objects.areas)[order[-1]]) if len(order) else 0
    return PackedShapes(payload, len(order), total, tolerance, smallest)


def varints(values: np.ndarray) -> bytes:
    """Unsigned integers below 2**32 as LEB128: seven bits a byte, low bits first, the top bit says "more follows"."""
    values = np.asarray(values, np.uint64)
    septets = (values[:, None] >> np.arange(0, 35, 7, dtype=np.uint64)).astype(np.uint8) & 0x7F
    length = np.maximum(1, 5 - np.argmax(septets[:, ::-1] > 0, axis=1))
    length[values == 0] = 1
    position = np.arange(5)
    more = position < (length - 1)[:, None]
    return (septets | (more.astype(np.uint8) << 7))[position < length[:, None]].tobytes()


def zigzag(values: np.ndarray) -> np.ndarray:
    """Signed to unsigned with small numbers staying small: 0, -1, 1, -2 become 0, 1, 2, 3."""
    values = np.asarray(values, np.int64)
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


def _simplify(shapes: np.ndarray, tolerance: float) -> np.ndarray:
    """Polygons with fewer corners, all exteriors counter-clockwise in (x, y): the page fills them by winding."""
    allowed = np.minimum(tolerance, SHARE * tolerance * np.sqrt(shapely.area(shapes)))
    # Without topology it is eight times faster; where that leaves nothing, the slow way keeps at least a triangle.
    simple = shapely.simplify(shapes, allowed, preserve_topology=False)
    gone = shapely.is_empty(simple)
    simple[gone] = shapely.simplify(shapes[gone], allowed[gone], preserve_topology=True)
    return shapely.orient_polygons(simple)


def _pack_rings(simple: np.ndarray) -> dict[str, str]:
    """Ring counts per object, point counts per ring, and coordinate differences, each as base64 varints."""
    parts, part_object = shapely.get_parts(simple, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    rings_per_object = np.bincount(part_object[ring_part], minlength=len(simple))
    coordinates, point_ring = shapely.get_coordinates(rings, return_index=True)
    # The last point of a ring repeats its first; the page closes rings itself.
    last = np.append(point_ring[1:] != point_ring[:-1], True) if len(point_ring) else np.zeros(0, bool)
    points = np.rint(coordinates[~last]).astype(np.int64)
    points_per_ring = np.bincount(point_ring[~last], minlength=len(rings))
    steps = np.diff(points, axis=0, prepend=np.zeros((1, 2), np.int64))
    return {
        "rings": _text(varints(rings_per_object)),
        "points": _text(varints(points_per_ring)),
        "steps": _text(varints(zigzag(steps.ravel()))),
    }


def _base64(array: np.ndarray) -> str:
    return _text(np.ascontiguousarray(array).tobytes())


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _size(packed: dict[str, str], objects: int) -> int:
    return sum(len(text) for text in packed.values()) + ATTRIBUTES * objects
