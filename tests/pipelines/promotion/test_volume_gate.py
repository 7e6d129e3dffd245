"""The gate over models of volumes: a good one passes, bad ones are refused by the rule that is there for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.classes import Class, ClassSet
from maskformer.masks import MaskSet
from pipelines.bundle import Bundle, load_bundle
from pipelines.promotion.aliases import aliases
from pipelines.promotion.frozen import data_digest, freeze, load_frozen
from pipelines.promotion.gate import RULES, Report
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import Request, promote
from pipelines.promotion.volumes.data import FrozenStudies
from pipelines.promotion.volumes.gate import JudgedVolumes, VolumeGate
from pipelines.promotion.volumes.identity import check_volume_identity
from pipelines.registry import register
from pipelines.tracking_store import connect
from pipelines.volumes.experiments import evaluate_volumes
from pipelines.volumes.linking import LinkRules
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.patients import case_rows
from tests.pipelines.promotion import colours, studies


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `clinic.yaml`: eight patients."""
    folder = tmp_path_factory.mktemp("clinic")
    studies.frozen(folder, "clinic", 8, seed=1)
    return folder


@pytest.fixture(scope="module")
def champion(clinic: Path) -> Bundle:
    """Sees all but the faint blocks."""
    return load_bundle(studies.bundle(clinic / "champion", against=colours.BLIND))


@pytest.fixture(scope="module")
def frozen(clinic: Path, champion: Bundle) -> Iterator[FrozenStudies]:
    with freeze(load_frozen([clinic / "clinic.yaml"]), champion.adapter) as data:
        yield data


@pytest.fixture(scope="module")
def gate(frozen: FrozenStudies) -> VolumeGate:
    return VolumeGate(frozen, Policy(slower=100))  # eight small volumes take no time; timing is for large ones


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bundle]:
    return lambda *change, **settings: load_bundle(studies.bundle(tmp_path / "candidate", *change, **settings))


def says(report: Report, rule: str) -> str:
    return next(verdict.says for verdict in report.verdicts if verdict.rule == rule)


def test_a_better_model_passes_every_rule(gate: VolumeGate, champion: Bundle, make) -> None:
    report = gate.judge(make(), champion)
    assert report.passed, report.refusal
    assert tuple(verdict.rule for verdict in report.verdicts) == RULES
    assert "better: dice" in says(report, "quality") and "-> 1.000" in says(report, "quality")
    assert "8 cases" in says(report, "data") and "megavoxels a second" in says(report, "budget")
    assert "3 scenes" in says(report, "shadow")


def test_the_scores_are_those_of_an_evaluation(
    gate: VolumeGate, champion: Bundle, clinic: Path, tmp_path: Path
) -> None:
    """Mean over patients of Dice, by class, to the last digit that is written."""
    from pipelines.experiments import Watch

    report = gate.judge(load_bundle(studies.bundle(tmp_path / "again", against=colours.BLIND)), champion)
    assert report.refused_by == ("quality",) and "no primary score is better" in says(report, "quality")
    rows = {row["what"]: row["candidate"] for row in report.verdicts[5].numbers["rows"]}
    (config,) = load_frozen([clinic / "clinic.yaml"])
    scores = evaluate_volumes(champion, config, tmp_path / "scores", Watch(None, None))
    for name in ("brick", "pool"):
        assert rows[f"dice of class {name}"] == pytest.approx(scores["per_class"][name]["dice"]["mean"], abs=1e-6)
    assert 0.5 < rows["dice of class brick"] < 1


@pytest.mark.parametrize(
    ("change", "score"), [(colours.drop_class, "dice of class pool"), (colours.swap_bands, "dice of")]
)
def test_a_worse_model_is_refused_by_its_scores(gate: VolumeGate, champion: Bundle, make, change, score: str) -> None:
    report = gate.judge(make(change), champion)
    assert "quality" in report.refused_by and score in says(report, "quality")
    assert "-> 0.000" in says(report, "quality") and "allowed -2.0 points" in says(report, "quality")


def test_a_nan_in_the_head_is_refused_at_once(gate: VolumeGate, champion: Bundle, make) -> None:
    report = gate.judge(make(colours.make_nan), champion)
    assert report.refused_by == ("finite",) and not report.complete


def test_a_candidate_that_learned_a_case_is_refused(gate: VolumeGate, champion: Bundle, make) -> None:
    known = [part.sha256 for part in gate.data.parts]
    cases = [{"role": "train", "sha256": known[0]}, {"role": "test", "sha256": known[1]}]
    report = gate.judge(make(provenance={"cases": cases}), champion)
    assert report.refused_by == ("data",) and "on 1 of the 8 cases" in says(report, "data")


def test_a_candidate_that_learned_another_scan_of_a_patient_is_refused(
    gate: VolumeGate, champion: Bundle, make
) -> None:
    """Other bytes, the same patient: known by a salted hash, and named by none."""
    first, second = gate.data.parts[:2]
    patient = first.case.case.patient
    learned = case_rows([("train", "0" * 64, patient), ("test", "1" * 64, second.case.case.patient)])
    assert patient not in json.dumps(learned) and first.patient not in json.dumps(learned)
    report = gate.judge(make(provenance=learned), champion)
    assert report.refused_by == ("data",)
    assert f"on 1 of the 8 cases or on other images of their patients ({first.name})" in says(report, "data")
    assert patient not in json.dumps(report.to_dict())
    old = {"cases": [{"role": "train", "sha256": "0" * 64}]}  # of before patients were kept
    assert gate.judge(make(provenance=old)).refused_by == ()


def test_incompatible_signatures_are_refused(gate: VolumeGate, champion: Bundle, make, tmp_path: Path) -> None:
    candidate = make()
    other = replace(candidate.adapter, classes=ClassSet((Class("pool", "thing", (2,)), Class("brick", "thing", (1,)))))
    report = gate.judge(replace(candidate, adapter=other), champion)
    assert report.refused_by == ("signature",) and "classes are pool (thing)" in says(report, "signature")
    flat = load_bundle(colours.bundle(tmp_path / "flat"))
    report = gate.judge(flat, champion)
    assert report.refused_by == ("signature",)
    assert says(report, "signature") == "a model of scenes, the champion is one of volumes"


def test_a_first_model_must_beat_what_needs_no_network(gate: VolumeGate, make) -> None:
    good = gate.judge(make())
    assert good.passed, good.refusal
    assert says(good, "baseline").startswith("foreground Dice 1.000, the best trivial answer (threshold) 0.")
    assert "F1 of lesions 1.000, the best trivial answer (threshold" in says(good, "baseline")
    bad = gate.judge(make(colours.drop_class))
    assert bad.refused_by == ("baseline",) and "it must be above" in says(bad, "baseline")


def test_a_first_model_that_marks_the_ground_and_tells_no_lesion_apart_is_refused(
    gate: VolumeGate, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Dice is perfect: all that it finds is one object."""
    found = JudgedVolumes.found
    monkeypatch.setattr(JudgedVolumes, "found", lambda self, part: _united(found(self, part)))
    report = gate.judge(make())
    told = says(report, "baseline")
    assert report.refused_by == ("baseline",) and told.startswith("foreground Dice 1.000")
    score = re.search(r"F1 of lesions (0\.\d+), the best trivial answer .* 0\.\d+: -[\d.]+ points", told)
    assert score and float(score[1]) < 0.5, told


def _united(objects: MaskSet) -> MaskSet:
    return objects.with_labels(np.zeros(len(objects), np.int64)).union(np.zeros(len(objects), np.int64))


def test_links_that_lose_an_object_are_refused_by_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    every = VolumeOptions(planes=("axial", "coronal", "sagittal"))
    passed = check_volume_identity(studies.adapter(overlap="free"), every)
    assert passed.passed and passed.numbers["objects"] >= 12, passed.says
    monkeypatch.setattr("pipelines.promotion.volumes.identity.LinkRules", partial(LinkRules, cover=2.0))
    strict = check_volume_identity(studies.adapter(), VolumeOptions(link_iou=0.95))
    assert not strict.passed and "objects became" in strict.says


def test_no_patient_is_named(frozen: FrozenStudies, gate: VolumeGate, champion: Bundle, make, clinic: Path) -> None:
    told = json.dumps(gate.judge(make(), champion).to_dict())
    assert "patient0" not in told and str(clinic) not in told
    assert all(name.startswith("clinic/") and len(name) == len("clinic/") + 12 for name in frozen.contents)


def test_the_digest_is_of_contents(clinic: Path, frozen: FrozenStudies, tmp_path: Path) -> None:
    (config,) = load_frozen([clinic / "clinic.yaml"])
    renamed = config.model_copy(update={"name": "elsewhere", "data": config.data[::-1]})
    assert data_digest([renamed], frozen.adapter) == frozen.digest
    assert data_digest([config.model_copy(update={"data": config.data[:7]})], frozen.adapter) != frozen.digest


def test_a_model_of_volumes_is_promoted(
    clinic: Path, champion: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the registry to @champion, with other studies for the shadow run."""
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    register(champion.folder, "blocks", uri=uri, alias="champion")
    register(studies.bundle(tmp_path / "better"), "blocks", uri=uri)
    configs = load_frozen([clinic / "clinic.yaml"])
    shadow = tmp_path / "night"
    shadow.mkdir()
    studies.study(shadow, "tonight", seed=99)
    (shadow / "tonight-labels.nii.gz").unlink()
    request = Request("blocks", "2", shadow=(str(shadow),), policy=Policy(slower=100, shadow_scenes=1))
    made = promote(request, configs, tmp_path / "out", uri=uri)
    assert made.promoted, made.report.refusal
    assert aliases(connect(uri), uri, "blocks") == {"champion": "2", "previous": "1"}
    page = (tmp_path / "out" / "promotion.md").read_text()
    assert "| dice of class brick |" in page and "tonight" not in page
    assert np.isfinite(made.report.verdicts[-1].numbers["agreement"])
