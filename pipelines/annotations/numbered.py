"""Label pictures that number their objects: how numbers, classes and crowds become objects on the canvas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.classes import BACKGROUND, IGNORE
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.annotations.base import Annotations, Region, count_by_class, unite_stuff
from pipelines.sources.base import Source


@dataclass(frozen=True)
class Numbered:
    """numbers: (H, W) int, each pixel's object, 0 none. values: the class value of each number. crowds: numbers that
    stand for several objects of a thing class at once, which nobody told apart. void: numbers that say nothing.
    """

    file: Path
    kind: str
    numbers: NDArray[np.int64]
    values: Mapping[int, Any]
    crowds: frozenset[int] = frozenset()
    void: frozenset[int] = frozenset({0})


def numbered_labels(labels: Numbered, source: Source, adapter: DomainAdapter) -> Annotations:
    """Objects of a numbered picture, pixel for pixel; crowds and ignored classes are pixels nothing is known about.

    InputError: another size than the picture's, class values that nobody knows (with their counts).
    """
    classes = adapter.classes
    numbers = _window(labels, source)
    present, inverse = np.unique(numbers, return_inverse=True)
    counts = Counter(labels.values[number] for number in present.tolist() if number and number not in labels.void)
    known = classes.codes(counts, str(labels.file))
    code = np.array([_code(number, labels, known, classes.is_thing) for number in present.tolist()], np.int64)
    spoken = code >= 0
    order = np.cumsum(spoken) * spoken  # 1, 2, ... for the objects; 0 for the rest
    canvas = order[inverse].reshape(numbers.shape).astype(np.int32)
    objects = MaskSet.from_label_map(canvas, {int(n): int(c) for n, c in zip(order[spoken], code[spoken])})
    objects = unite_stuff(objects, classes)
    crowded = {n: known[labels.values[n]] for n in labels.crowds.intersection(present.tolist())}
    undivided = {n: c for n, c in crowded.items() if c >= 0 and classes.is_thing[c]}
    crowds = MaskSet.from_label_map(np.where(np.isin(numbers, list(undivided)), numbers, 0), undivided)
    unknown = (code == IGNORE)[inverse].reshape(numbers.shape)
    report: dict[str, Any] = {
        "file": str(labels.file),
        "kind": labels.kind,
        "features": int((present != 0).sum()),
        "objects": len(objects),
        "counts": count_by_class(objects, classes),
        "crowds": len(crowds),
        "ignored": int(unknown.sum()),
        "repaired": 0,
        "dropped": 0,
        "outside": 0,
        "tiny": 0,
        "other_pictures": 0,
        "coordinates": "pixels",
        "boxes": None,
        "assumption": None,
    }
    return Annotations(objects, Region.of(unknown), report, crowds if len(crowds) else None)


def _window(labels: Numbered, source: Source) -> NDArray[np.int64]:
    if labels.numbers.shape != tuple(source.file_shape):
        found = f"{labels.numbers.shape[1]} x {labels.numbers.shape[0]} px"
        expected = f"{source.file_shape[1]} x {source.file_shape[0]} px"
        raise InputError(f"{labels.file}: expected the size of {source.path}, {expected}, found {found}")
    (row, column), (height, width) = source.origin, source.shape
    return labels.numbers[row : row + height, column : column + width]


def _code(number: int, labels: Numbered, known: Mapping[Any, int], is_thing: tuple[bool, ...]) -> int:
    """Class index of a number, IGNORE or BACKGROUND."""
    if number in labels.void:
        return IGNORE
    if number == 0:
        return BACKGROUND
    code = known[labels.values[number]]
    return IGNORE if code >= 0 and number in labels.crowds and is_thing[code] else code
