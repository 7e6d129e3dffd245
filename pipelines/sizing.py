"""Rules that turn measured objects into settings: crop, overlap, queries, split. Pure numpy, each with its reason.

Boxes are (N, 4) arrays [row0, column0, row1, column1] in pixels, half-open, one array a scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataItem, SplitOptions
from pipelines.splits import ROLES, split_by_place

STRIDE = 32  # the model's coarsest feature: crops are multiples of it
CROP_LEAST, CROP_MOST = 128, 512  # below, little context; above, a batch of four does not fit 4 GiB
OBJECTS_ACROSS = 4  # a crop that is four large objects wide shows most of them whole
AREA_CROP = 256  # for areas, which have no size of their own
OVERLAP_LEAST = 32  # with 32 px of shared strip the identity test of the stitcher is exact for every family
QUERY_HEADROOM = 1.5  # over the 95th percentile: a crowded crop still has free queries
QUERIES_LEAST, QUERIES_MOST = 20, 300
SEEDS = 30  # ways to deal out scenes that are tried

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A setting and the measured reason for it."""

    value: T
    why: str


def long_sides(boxes: Sequence[NDArray]) -> NDArray[np.int64]:
    """(N,) longest side of every object's box, px."""
    sides = [np.maximum(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]) for b in boxes if len(b)]
    return np.concatenate(sides).astype(np.int64) if sides else np.zeros(0, np.int64)


def choose_crop(boxes: Sequence[NDArray], shapes: Sequence[tuple[int, int]]) -> Choice[int]:
    """Side of a training crop: four large objects wide, but never wider than the smallest scene."""
    large = _percentile(long_sides(boxes), 95)
    wanted = int(np.clip(_up(OBJECTS_ACROSS * large, STRIDE), CROP_LEAST, CROP_MOST)) if large else AREA_CROP
    smallest = min(min(shape) for shape in shapes)
    crop = min(wanted, max(STRIDE, smallest // STRIDE * STRIDE))
    if crop < wanted:
        return Choice(crop, f"the smallest scene is {smallest} px wide")
    if not large:
        return Choice(crop, "areas have no size of their own: room for some of each")
    limits = f", between {CROP_LEAST} and {CROP_MOST}" if wanted in (CROP_LEAST, CROP_MOST) else ""
    return Choice(crop, f"{OBJECTS_ACROSS} × {large:.0f} px, the longest side of 95 % of the objects{limits}")


def choose_overlap(boxes: Sequence[NDArray], tile: int) -> Choice[int]:
    """Pixels that neighbouring tiles share: an object of nearly any size is whole in one of them."""
    large = _percentile(long_sides(boxes), 95)
    most = max(_down(tile / 4, 8), min(OVERLAP_LEAST, tile // 2))
    overlap = int(np.clip(_up(large, 8), min(OVERLAP_LEAST, most), most))
    if not large:
        return Choice(overlap, "enough to blend neighbouring tiles smoothly")
    if overlap < large:
        why = f"a quarter of a tile costs 1.8 times the work; larger objects ({large:.0f} px) are joined from parts"
        return Choice(overlap, why)
    return Choice(overlap, f"95 % of the objects are at most {large:.0f} px long, and so whole in some tile")


def choose_queries(boxes: Sequence[NDArray], shapes: Sequence[tuple[int, int]], crop: int) -> Choice[int]:
    """Queries: half as many again as objects in a crowded crop, because a query finds one object."""
    crowded = _percentile(objects_per_crop(boxes, shapes, crop), 95)
    queries = int(np.clip(_up(QUERY_HEADROOM * crowded, 10), QUERIES_LEAST, QUERIES_MOST))
    why = f"{QUERY_HEADROOM} × {crowded:.0f} objects, in 95 % of the {crop} px crops there are no more"
    if QUERY_HEADROOM * crowded > QUERIES_MOST:
        why += f"; at most {QUERIES_MOST}, a smaller crop would need fewer"
    return Choice(queries, why)


def objects_per_crop(boxes: Sequence[NDArray], shapes: Sequence[tuple[int, int]], crop: int) -> NDArray[np.int64]:
    """How many boxes each crop touches, over crops set half a crop apart; crops without any are left out."""
    counts = []
    for scene, shape in zip(boxes, shapes, strict=True):
        for row in range(0, max(1, shape[0] - crop // 2), crop // 2):
            for column in range(0, max(1, shape[1] - crop // 2), crop // 2):
                inside = (scene[:, 0] < row + crop) & (scene[:, 2] > row)
                inside &= (scene[:, 1] < column + crop) & (scene[:, 3] > column)
                counts.append(np.count_nonzero(inside))
    found = np.array([count for count in counts if count], np.int64)
    return found if len(found) else np.zeros(1, np.int64)


def choose_split(
    boxes: Sequence[NDArray], shapes: Sequence[tuple[int, int]], gap: int, unit: str = "objects"
) -> Choice[SplitOptions]:
    """Parts that do not share a place and each hold objects, as far as the scenes allow it.

    One or two scenes are cut along an axis, with `gap` px between the parts so that no object is in two; more are
    dealt out whole. Of several axes or seeds the one is taken that fills most parts, and then comes nearest to the
    shares asked for, counted in objects.
    """
    several = len(shapes) >= 3
    gap = 0 if several else min(gap, min(max(shape) for shape in shapes) // 20)
    tries = (
        [SplitOptions(seed=seed) for seed in range(SEEDS)]
        if several
        else [SplitOptions(axis=axis, gap=gap) for axis in ("longest", "rows", "columns")]
    )
    held = [(_objects_by_role(boxes, shapes, options), options) for options in tries]
    parts, options = max(held, key=lambda item: _fitness(*item))  # the first of equals
    counts = ", ".join(f"{role} {parts[role]}" for role in ROLES)
    how = f"{len(shapes)} scenes, dealt out whole" if several else "by place, cut along an axis"
    why = f"{how}; {unit}: {counts}"
    if gap:
        why += f"; {gap} px between the parts, so that no crop sees across"
    if not parts["train"]:
        options = options.model_copy(update={"validation": 0.0, "test": 0.0})
        why = "too few objects to hold a part out: everything is trained on"
    elif not (parts["validation"] and parts["test"]):
        why += "; a part without objects says nothing: label more, or change the shares"
    return Choice(options, why)


def _fitness(parts: dict[str, int], options: SplitOptions) -> tuple[int, float]:
    """How many parts hold objects, and how near their shares are to those asked for (0 is exact)."""
    wanted = {"validation": options.validation, "test": options.test}
    wanted["train"] = 1 - sum(wanted.values())
    total = max(1, sum(parts.values()))
    filled = sum(count > 0 for count in parts.values())
    return filled, -sum(abs(parts[role] / total - wanted[role]) for role in ROLES)


def _objects_by_role(
    boxes: Sequence[NDArray], shapes: Sequence[tuple[int, int]], options: SplitOptions
) -> dict[str, int]:
    """Objects whose centre lies in each part."""
    items = [DataItem(source=str(index)) for index in range(len(shapes))]
    split = split_by_place(items, shapes, options)
    counts = dict.fromkeys(ROLES, 0)
    for role in ROLES:
        for place in getattr(split, role):
            rows, columns = place.window
            scene = boxes[place.item]
            row, column = (scene[:, 0] + scene[:, 2]) / 2, (scene[:, 1] + scene[:, 3]) / 2
            inside = (row >= rows.start) & (row < rows.stop)
            inside &= (column >= columns.start) & (column < columns.stop)
            counts[role] += int(np.count_nonzero(inside))
    return counts


def _percentile(values: NDArray, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else 0.0


def _up(value: float, step: int) -> int:
    return int(-(-value // step) * step)


def _down(value: float, step: int) -> int:
    return int(value // step * step)
