"""The rules over models of volumes. What differs from scenes is what is predicted, what is counted, and the units.

A study's slices are seen whole, so there is no tile border: rule `grid_shift` has nothing to judge and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.errors import InputError
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.promotion.budget import Ground, check_budget
from pipelines.promotion.frozen import SHOWN
from pipelines.promotion.gate import Gate
from pipelines.promotion.outputs import watch_outputs
from pipelines.promotion.policy import Verdict
from pipelines.promotion.quality import Pairing, check_baseline, check_quality
from pipelines.promotion.shadow import check_shadow
from pipelines.promotion.slices import Slice, check_slices, classes_in_domains
from pipelines.promotion.volumes.data import FrozenStudies, StudyPart
from pipelines.promotion.volumes.floor import floors_of_studies, foreground_dice
from pipelines.promotion.volumes.identity import check_volume_identity
from pipelines.promotion.volumes.units import PatientCounts, by_patient, count_case
from pipelines.volumes.metrics import lesion_f1
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.prediction import VolumeModel, VolumePredictor, VolumeResult
from pipelines.volumes.series import read_header
from pipelines.volumes.source import VolumeSource, open_volume
from pipelines.volumes.studies import studies_in


class JudgedVolumes:
    """One model on the frozen studies; a study is predicted once."""

    def __init__(self, bundle: Bundle, gate: VolumeGate) -> None:
        self.bundle, self.gate = bundle, gate
        network = bundle.build()
        network.register_forward_hook(watch_outputs)
        model = VolumeModel(network, bundle.adapter, bundle.thresholds, task=bundle.provenance.get("task"))
        self.predictor = VolumePredictor(model, volume_options(gate.machine))
        self._seen: dict[str, VolumeResult] = {}

    def over(self, source: VolumeSource, sha256: str) -> VolumeResult:
        """What it finds in a study of that digest."""
        if sha256 not in self._seen:
            self._seen[sha256] = self.predictor(source)
        return self._seen[sha256]

    def found(self, part: StudyPart) -> MaskSet:
        """The objects of a case that the evaluation has seen."""
        return self._seen[part.sha256].objects

    @cached_property
    def evaluation(self) -> tuple[PatientCounts, float]:
        """Counts by patient, and the mean over cases of the Dice of any class against nothing."""
        data, cases, dice = self.gate.data, [], []
        for number, part in enumerate(data.parts, start=1):
            with part.open(self.bundle.adapter) as source:
                result = self.over(source, part.sha256)
            cases.append(count_case(part, result, data.adapter))
            dice.append(foreground_dice(result.labels > 0, part))
            self.gate.tell(f"score {self.bundle.folder.name}", number, len(data.parts))
        return by_patient(cases, self.gate.owners), float(np.nanmean(dice))


class VolumeGate(Gate):
    """`Gate` for models of volumes. `shadow`: studies, or folders of them."""

    data: FrozenStudies  # type: ignore[assignment]

    def _ready(self, bundle: Bundle) -> JudgedVolumes:
        return JudgedVolumes(bundle, self)

    def _rules(self, mine: JudgedVolumes, theirs: JudgedVolumes | None) -> Iterator[Verdict]:  # type: ignore[override]
        adapter = mine.bundle.adapter
        yield check_volume_identity(adapter, mine.predictor.options)
        yield Verdict("grid_shift", True, "slices are seen whole: no tile border to judge")
        counts, dice = mine.evaluation
        if theirs is None:
            found = [mine.found(part) for part in self.data.parts]
            yield check_baseline([*floors_of_studies(self.data.parts, self.data.adapter, dice, found)])
        else:
            names, things = self.data.adapter.classes.names, np.array(self.data.adapter.classes.is_thing)
            pairing = Pairing(counts, theirs.evaluation[0], self._domains, names, things)
            yield check_quality(pairing, self.policy)
            yield check_slices(pairing, self._slices(pairing), None, self.policy)
        largest = max(self.data.parts, key=lambda part: int(np.prod(part.shape)))
        ground = Ground(largest.case.case.image, tuple((0, side) for side in largest.shape))
        champion = theirs.bundle if theirs else None
        yield check_budget(mine.bundle, champion, ground, self.machine, self.policy)
        yield check_shadow([self._agreement(path, mine, theirs) for path in self._last()], self.policy)

    @property
    def owners(self) -> list[str]:
        """(cases,) whose each is; a patient in two domains counts in both."""
        return [f"{part.domain}/{part.patient}" for part in self.data.parts]

    @property
    def _domains(self) -> NDArray[np.str_]:
        """(U,) each patient's domain."""
        return np.array([owner.partition("/")[0] for owner in dict.fromkeys(self.owners)])

    def _slices(self, pairing: Pairing) -> Iterator[Slice]:
        """Classes in domains, patients with little or much to find, and thin or thick slices."""
        yield from classes_in_domains(pairing)
        everything = np.ones(len(pairing.names), bool)
        thickest: dict[str, float] = {}
        for owner, part in zip(self.owners, self.data.parts, strict=True):
            thickest[owner] = max(thickest.get(owner, 0.0), *part.spacing)
        values = {
            "patients with {} to find": (pairing.champion.true.sum(1), ("little", "much")),
            "{} slices": (np.array(list(thickest.values())), ("thin", "thick")),
        }
        for words, (value, (low, high)) in values.items():
            middle = float(np.median(value))
            yield Slice(words.format(low), value <= middle, everything)
            yield Slice(words.format(high), value > middle, everything)

    def _last(self) -> list[Any]:
        """The newest studies of the shadow run; without any named, those that were scored."""
        if not self.shadow:
            return [part.case.case.image for part in self.data.parts][: self.policy.shadow_scenes]
        found: list[Path] = []
        for place in map(Path, self.shadow):
            if not place.exists():
                raise InputError(f"{place}: no such file or folder")
            found += _studies(place)
        newest = sorted(dict.fromkeys(found), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        return list(newest[: self.policy.shadow_scenes])

    def _agreement(self, path: Any, mine: JudgedVolumes, theirs: JudgedVolumes | None) -> dict[str, Any]:
        """A row of the shadow report; a study is known by its hash."""
        names = self.data.adapter.classes.names
        with _opened(path, mine.bundle.adapter) as source:
            digest = source.digest()
            own = mine.over(source, digest)
        row: dict[str, Any] = {"scene": digest[:SHOWN], "candidate": _found(own, names)}
        if theirs is None:
            return row
        with _opened(path, theirs.bundle.adapter) as source:
            other = theirs.over(source, digest)
        either = (own.labels > 0) | (other.labels > 0)
        differs = either & (own.labels != other.labels)
        pixels = {"either": int(either.sum()), "same": int(either.sum() - differs.sum())}
        f1 = lesion_f1(own.objects, other.objects, 0.5) if len(own.objects) + len(other.objects) else None
        worst = [int(where) for where in np.argwhere(differs).mean(0)] if differs.any() else None
        agreement = pixels["same"] / pixels["either"] if pixels["either"] else 1.0
        beside = {"champion": _found(other, names), "pixels": pixels, "agreement": agreement}
        return {**row, **beside, "objects_f1": f1, "worst": worst}


def volume_options(machine: PredictOptions) -> VolumeOptions:
    """The options a run with any bundle would have on that machine; all else is the bundle's own."""
    return VolumeOptions(device=machine.device, precision=machine.precision)


def _found(result: VolumeResult, names: Sequence[str]) -> dict[str, Any]:
    voxels = np.bincount(result.labels.ravel(), minlength=256)
    return {"objects": len(result.objects), "pixels": {name: int(voxels[i + 1]) for i, name in enumerate(names)}}


def _opened(path: Any, adapter: DomainAdapter) -> VolumeSource:
    return open_volume(path, adapter.channels, rule=(adapter.volume or VolumeRules()).series)


def _studies(place: Path) -> list[Path]:
    """The studies of a folder, or the study itself: a file, or a folder with DICOM files right in it."""
    if place.is_file() or any(file.is_file() and read_header(file) is not None for file in place.iterdir()):
        return [place]
    return list(studies_in(place))
