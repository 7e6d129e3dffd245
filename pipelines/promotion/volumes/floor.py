"""What answers without a network reach on the frozen studies: the floor under the first model of a name.

As for scenes (`pipelines.promotion.floor`): the threshold is tuned on the data that judges. Two scores: the mean over
cases of the Dice of any class against nothing, and, where there are things, the F1 of lesions of whatever class, where
the trivial lesions are the connected components of the trivial foreground.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.medical import for_volume
from maskformer.masks import MaskSet
from pipelines.metrics import without_ignored
from pipelines.promotion.floor import SPECK
from pipelines.promotion.quality import Floor
from pipelines.promotion.volumes.data import StudyPart
from pipelines.trivial import SAMPLE_PIXELS, Rule, best_rule
from pipelines.volumes.metrics import components, lesion_f1

Mask = NDArray[np.bool_]


def floors_of_studies(
    parts: Sequence[StudyPart], adapter: DomainAdapter, dice: float, found: Sequence[MaskSet]
) -> Iterator[Floor]:
    """dice: the candidate's `foreground_dice`, a mean over cases; found: the objects it finds in each part."""
    rule = _tuned(parts, adapter)
    wanted = [_lesions(part.truth.objects, adapter) for part in parts]
    areas = np.concatenate([one.areas for one in wanted])
    least = SPECK * float(np.median(areas)) if len(areas) else 0.0
    mine = _Tally()
    of_dice: dict[str, list[float]] = defaultdict(list)
    of_lesions: dict[str, _Tally] = defaultdict(_Tally)
    for part, theirs, objects in zip(parts, wanted, found, strict=True):
        mine.add(_lesions(objects, adapter), theirs, part)
        for name, mask in _answers(rule, part, adapter):
            of_dice[name].append(foreground_dice(mask, part))
            regions = components(mask)
            of_lesions[name].add(regions, theirs, part)
            of_lesions[f"{name} without specks"].add(regions[regions.areas >= least], theirs, part)
    yield Floor("foreground Dice", dice, {name: _mean(values) for name, values in of_dice.items()})
    if len(areas):
        yield Floor("F1 of lesions", mine.f1, {name: tally.f1 for name, tally in of_lesions.items()})


@dataclass
class _Tally:
    """Lesions of several parts, found and wanted, counted together."""

    hits: float = 0.0
    number: int = 0

    def add(self, found: MaskSet, wanted: MaskSet, part: StudyPart) -> None:
        kept = without_ignored(found, part.truth.ignore)
        if count := len(kept) + len(wanted):
            self.hits += lesion_f1(kept, wanted) * count
            self.number += count

    @property
    def f1(self) -> float:
        return self.hits / self.number if self.number else float("nan")


def _answers(rule: Rule | None, part: StudyPart, adapter: DomainAdapter) -> Iterator[tuple[str, Mask]]:
    yield "nothing", np.zeros(part.shape, bool)
    yield "everything", np.ones(part.shape, bool)
    if rule is not None:
        values, known = _scaled(part, adapter)
        yield "threshold", rule(dict(zip(adapter.channels.names, values.astype(np.float64), strict=True))) & known


def foreground_dice(found: Mask, part: StudyPart) -> float:
    """Dice of any class against nothing; NaN where there is nothing in either. Ignored voxels count for nothing."""
    truth = part.truth.objects.to_label_map() > 0
    if part.truth.ignore is not None:
        found, truth = found & ~part.truth.ignore, truth & ~part.truth.ignore
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else float("nan")


def _mean(values: Sequence[float]) -> float | None:
    """Of what is known; None where nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _tuned(parts: Sequence[StudyPart], adapter: DomainAdapter) -> Rule | None:
    """The best threshold on one channel, on the model's scale, of an even sample of all parts."""
    step = max(1, sum(int(np.prod(part.shape)) for part in parts) // SAMPLE_PIXELS)
    samples = []
    for part in parts:
        values, known = _scaled(part, adapter)
        chosen = np.flatnonzero(known)[::step]
        truth = (part.truth.objects.to_label_map() > 0).reshape(-1)[chosen]
        samples.append((values.reshape(len(values), -1)[:, chosen], truth))
    columns = np.concatenate([values for values, _ in samples], axis=1).astype(np.float64)
    quantities = dict(zip(adapter.channels.names, columns, strict=True))
    return best_rule(quantities, np.concatenate([truth for _, truth in samples]))


def _scaled(part: StudyPart, adapter: DomainAdapter) -> tuple[NDArray[np.float32], Mask]:
    """(C, d, h, w) on the model's scale, (d, h, w) where it is known."""
    with part.open(adapter) as source:
        values, valid = source.read()
        channels = for_volume(adapter, source).channels
    known = valid if part.truth.ignore is None else valid & ~part.truth.ignore
    return channels.normalise(values), known


def _lesions(objects: MaskSet, adapter: DomainAdapter) -> MaskSet:
    """The things, as objects of one class."""
    chosen = objects[np.array(adapter.classes.is_thing)[objects.labels]]
    return chosen.with_labels(np.zeros(len(chosen), np.int64))
