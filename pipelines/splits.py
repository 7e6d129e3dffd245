"""Training, validation and held-out parts that do not share a place.

One scene is cut along an axis into three bands (training first, held-out last), with an optional gap so that no
crop sees across. Several scenes are dealt out whole. Scenes whose role the config fixes stay where it says.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.config import DataItem, SplitOptions

ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class Place:
    """A window of scene number `item`; `window` is a tuple of slices over its rows and columns."""

    item: int
    window: tuple[slice, ...]


@dataclass(frozen=True)
class Split:
    train: list[Place] = field(default_factory=list)
    validation: list[Place] = field(default_factory=list)
    test: list[Place] = field(default_factory=list)


def split_by_place(items: Sequence[DataItem], shapes: Sequence[tuple[int, int]], options: SplitOptions) -> Split:
    """Deal scenes of `shapes` (H, W) into three parts, any of which may be empty."""
    split = Split()
    whole = [(slice(0, h), slice(0, w)) for h, w in shapes]
    free = []
    for index, item in enumerate(items):
        if item.role == "auto":
            free.append(index)
        else:
            getattr(split, item.role).append(Place(index, whole[index]))
    if len(free) >= 3:
        for role, indices in _deal(free, options).items():
            getattr(split, role).extend(Place(i, whole[i]) for i in indices)
    else:
        for index in free:
            for role, window in _cut(shapes[index], options).items():
                getattr(split, role).append(Place(index, window))
    return split


def _deal(indices: list[int], options: SplitOptions) -> dict[str, list[int]]:
    order = indices.copy()
    random.Random(options.seed).shuffle(order)
    test = max(1, round(options.test * len(order))) if options.test else 0
    validation = max(1, round(options.validation * len(order))) if options.validation else 0
    return {
        "test": sorted(order[:test]),
        "validation": sorted(order[test : test + validation]),
        "train": sorted(order[test + validation :]),
    }


def _cut(shape: tuple[int, int], options: SplitOptions) -> dict[str, tuple[slice, ...]]:
    axis = {"rows": 0, "columns": 1, "longest": int(shape[1] >= shape[0])}[options.axis]
    length = shape[axis]
    shares = {
        "train": 1 - options.validation - options.test,
        "validation": options.validation,
        "test": options.test,
    }
    windows, edge, done = {}, 0, 0.0
    for role, share in shares.items():
        done += share
        stop = round(done * length)
        start = edge + (options.gap if edge else 0)
        if share and stop > start:
            window = [slice(0, shape[0]), slice(0, shape[1])]
            window[axis] = slice(start, stop)
            windows[role] = tuple(window)
        edge = stop
    return windows
