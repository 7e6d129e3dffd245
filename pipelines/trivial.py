"""What a scene gives away without a network: the floor under every score.

Where there are several classes: the most common one of the training part, everywhere.

Three answers to "where is anything at all": nowhere, everywhere, and one threshold on one quantity per pixel, tuned on
the training part and applied to the held-out part. The quantities, for any number of channels: every channel, their
mean (brightness), every channel's share of the sum (greenness is the share of green: the excess green index 2g - r - b
of shares is 3g - 1), and for every two channels (a - b) / (a + b), the form of NDVI and its kin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import Annotation
from adapters.classes import ClassSet
from pipelines.metrics import semantic_scores

BAND_ROWS = 256  # rows read at once
SAMPLE_PIXELS = 500_000  # of the training part, evenly spread; times 28 quantities of 8 bytes: 112 MB
PAIRED_CHANNELS = 6  # up to here (a - b) / (a + b) is tried, 15 pairs

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Labelled = tuple[Any, Annotation]  # a Source, or a view of one, and the labels on its canvas


@dataclass(frozen=True)
class Rule:
    """Foreground is where `quantity` is at least (or below) `threshold`; `iou` is what that gave where it was tuned."""

    quantity: str
    above: bool
    threshold: float
    iou: float

    def __call__(self, quantities: dict[str, Floats]) -> Bools:
        values = quantities[self.quantity]
        return values >= self.threshold if self.above else values < self.threshold

    def __str__(self) -> str:
        sign = ">=" if self.above else "<"
        return f"{self.quantity} {sign} {self.threshold:.4g}"


def trivial_baselines(training: Sequence[Labelled], held_out: Sequence[Labelled]) -> dict[str, dict[str, Any]]:
    """`foreground_iou` on the held-out places of `all_background`, `all_foreground` and `threshold`, JSON-ready.

    `threshold` also has its `rule` in words; it is missing where there is nothing to tune on. Pixels without data and
    ignored ones are left out. A score is None where there is no foreground to find.
    """
    rule = tune_threshold(training)
    inside = shared = marked = pixels = 0
    for place in held_out:
        for quantities, truth in _bands(*place):
            found = rule(quantities) if rule is not None else np.zeros(len(truth), bool)
            inside += int(truth.sum())
            pixels += len(truth)
            marked += int(found.sum())
            shared += int((found & truth).sum())
    rows: dict[str, dict[str, Any]] = {
        "all_background": {"foreground_iou": 0.0 if inside else None},
        "all_foreground": {"foreground_iou": inside / pixels if inside else None},
    }
    if rule is not None:
        iou = shared / (inside + marked - shared) if inside else None
        rows["threshold"] = {"foreground_iou": iou, "rule": f"{rule} (IoU {rule.iou:.3f} where it was tuned)"}
    return rows


def most_common_class(
    training: Sequence[Labelled], held_out: Sequence[Labelled], classes: ClassSet, covers: bool
) -> dict[str, Any]:
    """`miou`, `iou`, `pixel_accuracy` of the training part's most common class everywhere; `rule` names it. JSON-ready.

    Pixels are scored as `evaluate_scene` scores them; covers: those without a class are unlabelled. Empty where no
    training pixel has a class.
    """
    known, asked = (_class_pixels(places, len(classes)) for places in (training, held_out))
    if not known[1:].any():
        return {}
    chosen = 1 + int(known[1:].argmax())
    table = np.zeros((len(known), len(known)), np.int64)
    table[covers:, chosen] = asked[covers:]
    scores = {key: semantic_scores(table)[key] for key in ("miou", "iou", "pixel_accuracy")}
    finite = {key: None if math.isnan(score) else score for key, score in scores.items()}
    return {**finite, "rule": f"{classes.names[chosen - 1]} everywhere"}


def _class_pixels(places: Sequence[Labelled], count: int) -> NDArray[np.int64]:
    """Scored pixels (count + 1,) of nothing and of every class."""
    pixels = np.zeros(count + 1, np.int64)
    for place in places:
        for _, ids in _pixels(*place):
            pixels += np.bincount(ids, minlength=count + 1)
    return pixels


def tune_threshold(training: Sequence[Labelled]) -> Rule | None:
    """The best rule for an evenly spread sample of the training places; None where that holds no foreground."""
    pixels = sum(math.prod(source.shape) for source, _ in training)
    step = max(1, math.ceil(pixels / SAMPLE_PIXELS))
    parts = [part for place in training for part in _bands(*place, step)]
    if not parts:
        return None
    truth = np.concatenate([truth for _, truth in parts])
    names = [name for name in parts[0][0] if all(name in quantities for quantities, _ in parts)]
    return best_rule({name: np.concatenate([q[name] for q, _ in parts]) for name in names}, truth)


def best_rule(quantities: Mapping[str, Floats], truth: Bools) -> Rule | None:
    """The cut with the best IoU of all quantities (P,) against truth (P,); None where there is no foreground."""
    if not truth.any():
        return None
    return max((_best_cut(name, values, truth) for name, values in quantities.items()), key=lambda rule: rule.iou)


def foreground_of(rule: Rule, source: Any) -> Bools:
    """(H, W) where the rule says foreground; nowhere without data."""
    found = np.zeros(source.shape, bool)
    for top in range(0, found.shape[0], BAND_ROWS):
        window = (slice(top, min(top + BAND_ROWS, found.shape[0])), slice(0, found.shape[1]))
        image, valid = source.read(window)
        found[window][valid] = rule(_quantities(image[:, valid], source.channels))
    return found


def _best_cut(name: str, values: Floats, truth: Bools) -> Rule:
    """The cut of one quantity with the best IoU: every value is tried, in both directions."""
    order = np.argsort(values, kind="stable")
    values, truth = values[order], truth[order]
    cuts = np.flatnonzero(np.concatenate([[True], values[1:] > values[:-1]]))  # where a new value begins
    below_right = np.concatenate([[0], np.cumsum(truth)])[cuts]
    total, count = int(truth.sum()), len(truth)
    above = (total - below_right) / (count - cuts + below_right)
    below = below_right / (cuts + total - below_right)
    best = max((above, True), (below, False), key=lambda side: side[0].max())
    at = int(best[0].argmax())
    return Rule(name, best[1], float(values[cuts[at]]), float(best[0][at]))


def _bands(source: Any, annotation: Annotation, step: int = 1) -> Iterator[tuple[dict[str, Floats], Bools]]:
    """Quantities and truth of every `step`-th scored pixel, a band of rows at a time."""
    for image, ids in _pixels(source, annotation, step):
        yield _quantities(image, source.channels), ids > 0


def _pixels(source: Any, annotation: Annotation, step: int = 1) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    """Values (C, P) and class ids (P,), 0 for nothing, of every `step`-th scored pixel, a band of rows at a time."""
    height, width = source.shape
    for top in range(0, height, BAND_ROWS):
        window = (slice(top, min(top + BAND_ROWS, height)), slice(0, width))
        image, valid = source.read(window)
        scored = valid if annotation.ignore is None else valid & ~annotation.ignore[window]
        chosen = np.flatnonzero(scored)[::step]
        if len(chosen):
            objects = annotation.objects.crop(window)
            ids = np.concatenate([[0], objects.labels + 1])[objects.to_label_map()]
            yield image.reshape(len(image), -1)[:, chosen], ids.reshape(-1)[chosen]


def _quantities(image: NDArray, names: Sequence[str]) -> dict[str, Floats]:
    """Quantities (P,) of pixels (C, P), by name."""
    values = np.nan_to_num(image.astype(np.float64))
    found = dict(zip(names, values, strict=True))
    if len(values) > 1:
        total = values.sum(axis=0)
        found["brightness"] = total / len(values)
        found |= {f"share of {name}": _divide(one, total) for name, one in zip(names, values, strict=True)}
    if 1 < len(values) <= PAIRED_CHANNELS:
        for (a, one), (b, other) in combinations(zip(names, values, strict=True), 2):
            found[f"({a} - {b}) / ({a} + {b})"] = _divide(one - other, one + other)
    return found


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
