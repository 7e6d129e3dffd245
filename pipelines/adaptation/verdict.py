"""Is the adapted model the better one? Both on the same labelled data, and the difference with its interval.

Bootstrap, paired: the same places (blocks of a scene, or scenes where there are many; of studies the patients) are
drawn for both models. Better is what the interval shows, 95 % of it above zero; else it is not called better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import Annotation, DomainAdapter
from maskformer.masks import MaskSet
from pipelines.adaptation.target import Subject
from pipelines.config import RunConfig
from pipelines.metrics import UNSEEN, confusion, match, pairs_of, without_ignored

SAMPLES = 2000
LEAST_UNITS = 6  # of fewer places or patients an interval says nothing
BLOCKS = 4  # along the shorter side of a scene; the same ground at any resolution
MANY = 16  # scenes from which each is one unit

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score as a ratio of sums over units (places or patients): above, below (units, classes); a mean of classes."""

    above: Counts
    below: Counts

    def drawn(self, weights: Counts) -> Counts:
        """(S,) the score of S samples, weights (S, units) how often each unit is in it."""
        above, below = weights @ self.above, weights @ self.below
        ratio = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
        known = ~np.isnan(ratio)
        total: Counts = np.where(known, ratio, 0).sum(1)
        return np.divide(total, known.sum(1), out=np.full(len(total), np.nan), where=known.any(1))

    @property
    def value(self) -> float:
        return float(self.drawn(np.ones((1, len(self.above))))[0])


@dataclass(frozen=True)
class Measured:
    """scores: as `maskbridge evaluate` writes them; by_unit: the ones that decide, the first the most."""

    scores: dict[str, Any]
    by_unit: Mapping[str, Score]


@dataclass(frozen=True)
class Difference:
    """Adapted minus source, with its 95 % interval over so many units."""

    mean: float
    low: float
    high: float
    units: int

    def to_dict(self) -> dict[str, float]:
        return {key: round(value, 4) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Verdict:
    """better: shown by the metric, and no other score shown to be worse. None where there is too little to tell by."""

    metric: str | None
    better: bool | None
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Blocks:
    """A scene cut into nearly square blocks; rows, columns: where they begin, and last where the scene ends."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, shape: Sequence[int], along: int) -> Blocks:
        """`along` blocks along the shorter side."""
        least = min(shape)
        counts = [max(round(along * length / least), 1) if along > 1 else 1 for length in shape]
        rows, columns = (np.linspace(0, n, k + 1).round().astype(int) for n, k in zip(shape, counts, strict=True))
        return cls(rows, columns)

    @property
    def windows(self) -> list[tuple[slice, slice]]:
        rows, columns = ([slice(int(a), int(b)) for a, b in pairwise(edges)] for edges in (self.rows, self.columns))
        return [(row, column) for row in rows for column in columns]

    def holding(self, objects: MaskSet) -> NDArray[np.int64]:
        """(N,) number of the block in which the middle of each object's box lies."""
        if not len(objects):
            return np.zeros(0, np.int64)
        boxes = np.asarray(objects.boxes)
        middle = (boxes[:, :2] + boxes[:, 2:]) // 2
        row = np.searchsorted(self.rows[1:-1], middle[:, 0], side="right")
        column = np.searchsorted(self.columns[1:-1], middle[:, 1], side="right")
        number: NDArray[np.int64] = row * (len(self.columns) - 1) + column
        return number


def compare(source: Measured, adapted: Measured, seed: int = 0) -> Verdict:
    """The verdict over two models measured on the same units."""
    differences = {
        name: _difference(score, adapted.by_unit[name], seed)
        for name, score in source.by_unit.items()
        if np.isfinite(score.value) and np.isfinite(adapted.by_unit[name].value)
    }
    metric = next(iter(differences), None)
    if metric is None or differences[metric].units < LEAST_UNITS:
        return Verdict(metric, None, differences)
    better = differences[metric].low > 0 and all(one.high >= 0 for one in differences.values())
    return Verdict(metric, better, differences)


def measured(subject: Subject, config: RunConfig) -> Measured:
    """The subject's model on the held-out part of labelled data (all of it where nothing is held out)."""
    if subject.adapter.volume is not None:
        from pipelines.adaptation.studies import measured_studies

        return measured_studies(subject, config)
    return _measured_scenes(subject, config)


def _measured_scenes(subject: Subject, config: RunConfig) -> Measured:
    from pipelines.assembly import predict_in_memory
    from pipelines.evaluation import combine, evaluate_scene
    from pipelines.experiments import everything
    from pipelines.labelled import LabelledData
    from pipelines.predictor import Predictor, default_task, settle

    adapter = subject.adapter
    config = config.model_copy(update={"adapter": adapter.to_dict()})
    task = config.predict.task or subject.task or default_task(adapter)
    options = settle(config.predict.model_copy(update={"task": task}), adapter, subject.thresholds)
    predictor = Predictor(deepcopy(subject.model), adapter, options)
    rows, objects, pixels = [], [], []
    with LabelledData(config) as data:
        places = data.split.test or everything(data)
        for place in places:
            source, truth = data.view(place)
            boxes = data.scenes[place.item].box_labels
            scene, ids = predict_in_memory(source, predictor, subject.thresholds)
            counted = adapter.points is not None
            rows.append(evaluate_scene(scene.objects, ids, truth, adapter.classes, boxes, adapter.covers, counted))
            blocks = Blocks.of(ids.shape, 1 if len(places) >= MANY else BLOCKS)
            pixels.append(_pixels(ids, truth, adapter, blocks))
            objects.append(_objects(scene.objects, truth, adapter, blocks, boxes))
    by_unit = {"miou": _stacked(pixels)}
    if any(adapter.classes.is_thing):
        by_unit = {("box_f1_50" if boxes else "f1_50"): _stacked(objects), **by_unit}
    return Measured(combine(rows), by_unit)


def _difference(source: Score, adapted: Score, seed: int) -> Difference:
    units = len(source.above)
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), SAMPLES).astype(float)
    low, high = np.nanpercentile(adapted.drawn(drawn) - source.drawn(drawn), [2.5, 97.5])
    return Difference(adapted.value - source.value, float(low), float(high), units)


def _stacked(parts: Sequence[tuple[Counts, Counts]]) -> Score:
    return Score(np.concatenate([above for above, _ in parts]), np.concatenate([below for _, below in parts]))


def _pixels(ids: NDArray[np.uint8], truth: Annotation, adapter: DomainAdapter, blocks: Blocks) -> tuple[Counts, Counts]:
    """Shared and united pixels of each class, (places, K) each."""
    count = len(adapter.classes)
    known = np.zeros(ids.shape, np.uint8)
    if len(truth.objects):
        known = np.concatenate([[0], truth.objects.labels + 1]).astype(np.uint8)[truth.objects.to_label_map()]
    ignored = np.zeros(ids.shape, bool) if truth.ignore is None else truth.ignore.copy()
    if adapter.covers:
        ignored |= known == 0
    known[ignored] = UNSEEN
    tables = [confusion(ids[window], known[window], count) for window in blocks.windows]
    shared = np.stack([np.diag(table)[1:] for table in tables]).astype(float)
    united = np.stack([(table.sum(0) + table.sum(1))[1:] for table in tables]) - shared
    return shared, united


def _objects(
    found: MaskSet, truth: Annotation, adapter: DomainAdapter, blocks: Blocks, boxes: bool
) -> tuple[Counts, Counts]:
    """Twice the matched things, and all things of both sides, by the place of the middle of their boxes, (places, 1).

    A pair counts at its truth's place.
    """
    thing = np.array(adapter.classes.is_thing)
    found = without_ignored(found, truth.ignore)
    found, wanted = found[thing[found.labels]], truth.objects[thing[truth.objects.labels]]
    pairs = pairs_of(found, wanted, "box" if boxes else "mask").above(0.5)
    chosen = match(pairs, 1 + pairs.iou / (1 + len(pairs.iou)))
    at, wanted_at = blocks.holding(found), blocks.holding(wanted)
    matched = wanted_at[pairs.truth[chosen]]
    at[pairs.prediction[chosen]] = matched
    bins = len(blocks.windows)
    above = 2 * np.bincount(matched, minlength=bins).astype(np.float64)
    below = np.bincount(at, minlength=bins) + np.bincount(wanted_at, minlength=bins)
    return above[:, None], below[:, None].astype(np.float64)
