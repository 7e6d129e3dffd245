"""What a model finds in volumes, counted patient by patient: the units that the bootstrap draws.

Voxels and lesions of a patient's cases are summed; his Dice is the mean over his cases, and a class' Dice the mean over
patients, as `maskbridge evaluate` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from adapters.base import DomainAdapter
from pipelines.promotion.units import Counts, Floats, ratio
from pipelines.promotion.volumes.data import StudyPart
from pipelines.volumes.evaluation import class_masks
from pipelines.volumes.metrics import lesion_f1
from pipelines.volumes.prediction import VolumeResult


@dataclass(frozen=True)
class PatientCounts(Counts):
    """`Counts` of voxels and lesions, and for Dice: its sum over patients and the number of patients that have one."""

    dice_sum: Floats
    patients: Floats

    NAMES: ClassVar[tuple[str, str]] = ("dice", "lesion F1")

    def of_pixels(self) -> Floats:
        """(…, K) mean Dice over patients; NaN where nobody has or is given the class."""
        return ratio(self.dice_sum, self.patients)

    def of_objects(self) -> Floats:
        """(…, K) F1 of lesions, all of them together."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def count_case(part: StudyPart, result: VolumeResult, adapter: DomainAdapter) -> PatientCounts:
    """One case as one unit, (1, K). Only things have lesions; ignored voxels count for nothing."""
    rows = []
    for index, pair in enumerate(class_masks(result, part.truth, adapter)):
        mine, theirs, found, wanted = pair
        shared, number, true = (float(mask.sum()) for mask in (mine & theirs, mine, theirs))
        tp = fp = fn = 0.0
        if adapter.classes.is_thing[index] and len(found) + len(wanted):
            tp = round(lesion_f1(found, wanted) * (len(found) + len(wanted)) / 2)
            fp, fn = len(found) - tp, len(wanted) - tp
        known = number + true > 0
        dice = 2 * shared / (number + true) if known else 0.0
        rows.append([shared, number, true, tp, fp, fn, 0.0, dice, float(known)])
    return PatientCounts(*(column[None] for column in np.array(rows, np.float64).T))


def by_patient(cases: Sequence[PatientCounts], owners: Sequence[str]) -> PatientCounts:
    """Cases (1, K) each, and whose they are → patients (U, K), in the order in which they come first."""
    names = list(dict.fromkeys(owners))
    weights = np.array([[float(owner == name) for owner in owners] for name in names])
    table = PatientCounts.joined(cases).summed(weights)
    dice = np.where(table.patients > 0, table.of_pixels(), 0.0)
    return replace(table, dice_sum=dice, patients=(table.patients > 0).astype(np.float64))
