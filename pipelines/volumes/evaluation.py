"""Whole volumes against their labels, on the image's own grid and in millimetres; per class, per patient, pooled.

Cases are known by a hash of their bytes: the table travels to MLflow and into bundles, names of patients must not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.config import ScoringOptions
from pipelines.volumes.labels import VolumeLabels
from pipelines.volumes.metrics import NAMES, lesion_f1, score_masks, summarise
from pipelines.volumes.prediction import VolumeResult

DIGITS = 6
HEX = 12


@dataclass(frozen=True)
class CaseScores:
    """Of one case: a hash of its image, a hash of its patient, and class -> score -> value."""

    case: str
    patient: str
    scores: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; scores that are not defined are None."""
        table = {name: {key: _json(value) for key, value in row.items()} for name, row in self.scores.items()}
        return {"case": self.case, "patient": self.patient, "scores": table}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CaseScores:
        table = {
            name: {key: math.nan if value is None else float(value) for key, value in row.items()}
            for name, row in data["scores"].items()
        }
        return cls(data["case"], data["patient"], table)


def hashed(text: str) -> str:
    """What stands for a patient's name in tables: 12 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:HEX]


def score_case(
    result: VolumeResult,
    truth: VolumeLabels,
    adapter: DomainAdapter,
    spacing: Sequence[float],
    tolerance_mm: float = 2.0,
) -> dict[str, dict[str, float]]:
    """class -> score -> value of one volume; ignored voxels count neither as prediction nor as truth.

    Masks are those of the class map, an outer class with all that lies in it. Lesions of a thing are its objects, of
    which those mostly in ignored voxels do not count; lesions of stuff are connected components.
    """
    scores = {}
    for name, thing, one in zip(
        adapter.classes.names, adapter.classes.is_thing, class_masks(result, truth, adapter), strict=True
    ):
        row = score_masks(one.mine, one.theirs, spacing, tolerance_mm)
        if thing:
            row["lesion_f1"] = lesion_f1(one.found, one.wanted)
        scores[name] = row
    return scores


class ClassMasks(NamedTuple):
    """One class of one case: (d, h, w) masks of the prediction and the truth, and the objects of both."""

    mine: NDArray[np.bool_]
    theirs: NDArray[np.bool_]
    found: MaskSet
    wanted: MaskSet


def class_masks(result: VolumeResult, truth: VolumeLabels, adapter: DomainAdapter) -> Iterator[ClassMasks]:
    """Every class, as `score_case` says; in no mask is an ignored voxel."""
    classes, rules = adapter.classes, adapter.volume or VolumeRules()
    known = None if truth.ignore is None else ~truth.ignore
    found, wanted = (_kept(objects, known) for objects in (result.objects, truth.objects))
    for index in range(len(classes)):
        mine = np.isin(result.labels, [index + 1, *_inner(index, classes.names, rules)])
        theirs = wanted[wanted.labels == index].to_label_map() > 0
        if known is not None:
            mine &= known
            theirs &= known
        yield ClassMasks(mine, theirs, found[found.labels == index], wanted[wanted.labels == index])


def summary(cases: Sequence[CaseScores], options: ScoringOptions | None = None) -> dict[str, Any]:
    """Scores over all cases, JSON-ready; None where a score is not defined.

    Overall: `dice iou hd95 nsd lesion_f1 volume_error_mm3 relative_volume_error`, means over patients of the mean over
    classes. `intervals`: score -> [low, high], 95 %, by bootstrap over patients. `per_class`: class -> score -> mean,
    interval and number of patients. `per_case`: rows of `CaseScores`.
    """
    options = options or ScoringOptions()
    table = summarise([one.scores for one in cases], [one.patient for one in cases], options.samples)
    overall = table.pop("mean")
    return {
        **{name: _json(overall[name].mean) for name in NAMES},
        "intervals": {name: [_json(overall[name].low), _json(overall[name].high)] for name in NAMES},
        "counts": {"cases": len(cases), "patients": len({one.patient for one in cases})},
        "tolerance_mm": options.tolerance_mm,
        "per_class": {
            label: {
                name: {
                    "mean": _json(row[name].mean),
                    "interval": [_json(row[name].low), _json(row[name].high)],
                    "patients": row[name].patients,
                }
                for name in NAMES
            }
            for label, row in table.items()
        },
        "per_case": [one.to_dict() for one in cases],
    }


def _inner(index: int, names: Sequence[str], rules: VolumeRules) -> list[int]:
    """Ids of the classes that lie in class `index`."""
    return [k + 1 for k, name in enumerate(names) if names[index] in rules.outer(name)]


def _kept(objects: MaskSet, known: NDArray[np.bool_] | None) -> MaskSet:
    """The objects of which at least half lies in known voxels."""
    if known is None or not len(objects):
        return objects
    inside = objects.intersections(MaskSet.from_dense(known[None], [0]))[:, 0]
    return objects[2 * inside >= objects.areas]


def _json(value: float) -> float | None:
    return round(float(value), DIGITS) if math.isfinite(value) else None
