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
from pipelines.sinks.outlines import outlines

MAX_OBJECTS = 100_000
# A staircase of one-pixel steps lies within 0.71 px of its diagonal, so 0.75 px turns it into a straight line.
TOLERANCES = (0.75, 1.5, 3.0)


@dataclass(frozen=True)
class PackedShapes:
    """Outlines and attributes of `kept` of `total` objects, largest first, ready for JSON."""

    payload: dict[str, Any]
    kept: int
    total: int
    tolerance: float
    smallest_kept: int

    def account(self, word: str) -> str:
        """What was simplified or left out, in plain words ("" when nothing was left out)."""
        if self.kept == self.total:
            return ""
        return (
            f"Drawn are the {self.kept:,} largest of {self.total:,} {word}; the {self.total - self.kept:,} smaller ones "
            f"(under {self.smallest_kept:,} pixels) are left out of this page to keep it usable. They are counted in all "
            f"numbers and are in the objects files."
        ).replace(",", "\u202f")


def pack_shapes(objects: MaskSet, areas: np.ndarray | None = None, max_bytes: int = 4_000_000) -> PackedShapes:
    """Pack the outlines of `objects` (2-D) in at most about `max_bytes` of base64 text.

    `areas` (N,) are the areas to show (m² for instance), in pixels when None. Coordinates are whole scene pixels,
    (x, y), pixel (0, 0) spanning 0..1.
    """
    shown = np.asarray(objects.areas if areas is None else areas, np.float64)
    order = np.argsort(-np.asarray(objects.areas), kind="stable")
    order = order[np.asarray(objects.areas)[order] > 0][:MAX_OBJECTS]
    total = int((np.asarray(objects.areas) > 0).sum())
    shapes = outlines(objects[order])
    tolerance, packed = TOLERANCES[0], _pack_rings(shapes, TOLERANCES[0])
    for tolerance in TOLERANCES[1:]:
        if _size(packed) <= max_bytes:
            break
        packed = _pack_rings(shapes, tolerance)
    while _size(packed) > max_bytes and len(order) > 1:
        # Size is close to linear in the number of objects; 0.9 makes sure that the loop ends.
        order = order[: max(1, int(len(order) * 0.9 * max_bytes / _size(packed)))]
        shapes = shapes[: len(order)]
        packed = _pack_rings(shapes, tolerance)
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


def _pack_rings(shapes: np.ndarray, tolerance: float) -> dict[str, str]:
    """Ring counts per object, point counts per ring, and coordinate differences, each as base64 varints."""
    simple = shapely.simplify(shapes, tolerance, preserve_topology=True)
    parts, part_object = shapely.get_parts(simple, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    rings_per_object = np.bincount(part_object[ring_part], minlength=len(shapes))
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


def _size(packed: dict[str, str]) -> int:
    return sum(len(text) for text in packed.values())
