"""Adapting a model of volumes to studies without labels: statistics, norms, self-training, a model a study."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from adapters.channels import Channel, ChannelSet
from adapters.errors import InputError
from pipelines import cli
from pipelines.adaptation.adapt import Request, adapt, apply, subject_of
from pipelines.adaptation.studies import lessons
from pipelines.adaptation.target import Effort, Target
from pipelines.adaptation.verdict import measured
from pipelines.bundle import load_bundle
from pipelines.config import DataItem, PredictOptions, RunConfig, SplitOptions
from pipelines.volumes.prepared import Keeper
from tests.models import tiny_bundle
from tests.pipelines.volumes.make_cases import adapter, decathlon

QUICK = Effort(crops=6, steps=1, rounds=1, batch=2)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return decathlon(tmp_path / "cases", 3, (40, 44, 10))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "model", adapter(context_slices=0), thresholds={"semantic": 0.05, "score": 0.0})


def images(cases: Path) -> list[str]:
    return sorted(str(path) for path in cases.glob("imagesTr/*.nii.gz"))


def test_statistics_and_norms_of_studies(model: Path, cases: Path, tmp_path: Path) -> None:
    made = adapt(model, images(cases), tmp_path / "out", Request(effort=QUICK))
    held = load_bundle(made.bundle)
    assert held.adapter.volume is not None and held.adapter.volume.intensity == "volume"
    assert set(made.notes["input_statistics"]) == {"flatten", "distances"}
    assert "left_out" in made.notes["resolution"]
    old, new = load_bundle(model).build().state_dict(), held.build().state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)


def test_lessons_leave_out_what_a_zoom_changes(model: Path, cases: Path) -> None:
    subject = subject_of(load_bundle(model))
    keeper = Keeper(1 << 28)
    taught, counts = lessons(subject, Target(tuple(images(cases)[:1]), QUICK), keeper)
    assert counts["doubtful"] > 0 and taught[0].ignore is not None and taught[0].ignore.any()
    keeper.close()


def test_self_training_on_studies(model: Path, cases: Path) -> None:
    subject = subject_of(load_bundle(model))
    after = apply(subject, Target(tuple(images(cases)), QUICK), Request(("self_training",), QUICK))
    old, new = subject.model.state_dict(), after.model.state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old if name.endswith("weight"))
    assert after.notes["self_training"]["rounds"][0]["taught"] > 0


def test_patients_are_the_units_of_the_verdict(model: Path, cases: Path) -> None:
    config = RunConfig(
        name="balls",
        adapter=adapter(context_slices=0).to_dict(),
        data=(DataItem(source=str(cases)),),
        split=SplitOptions(validation=0, test=0),
        predict=PredictOptions(device="cpu", precision="fp32"),
    )
    found = measured(subject_of(load_bundle(model)), config)
    assert len(found.by_unit["dice"].above) == 3
    assert found.by_unit["dice"].value == pytest.approx(found.scores["dice"], abs=1e-6)


def test_what_cannot_be_is_said(model: Path, cases: Path) -> None:
    subject = subject_of(load_bundle(model))
    config = RunConfig(name="x", adapter=adapter(context_slices=0).to_dict(), data=(DataItem(source=str(cases)),))
    with pytest.raises(InputError, match="style"):
        apply(subject, Target(tuple(images(cases)), QUICK), Request(("style",), QUICK, config))


def test_each_study_with_a_model_of_its_own(model: Path, cases: Path, tmp_path: Path, capsys) -> None:
    good = images(cases)[0]
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"not a volume")
    out = tmp_path / "out"
    assert cli.run(["predict", str(model), str(bad), good, "--out", str(out), "--test-time"]) == 3
    assert "failed" in capsys.readouterr().out
    folders = [path for path in out.iterdir() if path.is_dir()]
    assert len(folders) == 1 and not folders[0].name.startswith(".adapted")
    run = json.loads((folders[0] / "run.json").read_text())
    assert run["model"]["sha256"] != load_bundle(model).sha256 and "test-time" in run["model"]["name"]
    assert nibabel.load(folders[0] / "labels.nii.gz").shape == nibabel.load(good).shape
    assert np.asanyarray(nibabel.load(folders[0] / "labels.nii.gz").dataobj).max() <= 2


def test_a_model_of_ct_keeps_its_window_on_ct_alone(cases: Path, tmp_path: Path) -> None:
    """A window of Hounsfield units says nothing about MR, whose volumes are scaled by their own statistics."""
    window = Channel("image", (1,), offset=40.0, scale=200.0, clip=(-160.0, 240.0))
    ct = adapter(context_slices=0).with_channels(ChannelSet((window,)))
    bundle = tiny_bundle(tmp_path / "ct", ct, thresholds={"semantic": 0.05, "score": 0.0})
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in map(Path, images(cases)):
        image = nibabel.load(path)
        hounsfield = np.asanyarray(image.dataobj) * 100 - 90  # fat to muscle
        nibabel.save(nibabel.Nifti1Image(hounsfield.astype(np.int16), image.affine), scans / path.name)
    request = Request(("input_statistics",), QUICK)
    kept = apply(subject_of(load_bundle(bundle)), Target(tuple(map(str, sorted(scans.iterdir()))), QUICK), request)
    assert "physics" in kept.notes["input_statistics"]["left_out"] and kept.adapter.channels == ct.channels
    changed = apply(subject_of(load_bundle(bundle)), Target(tuple(images(cases)), QUICK), request)
    assert changed.adapter.volume is not None and changed.adapter.volume.intensity == "volume"
