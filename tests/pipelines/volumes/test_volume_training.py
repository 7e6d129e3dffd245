"""Volumes by a run config: train, evaluate, folds, resume, what is left behind, and whose names are not."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from adapters.errors import InputError
from maskformer.prediction import DensePrediction
from pipelines.bundle import load_bundle
from pipelines.config import (
    BaselineOptions,
    DataItem,
    ModelOptions,
    PredictOptions,
    RunConfig,
    SplitOptions,
    TrainOptions,
)
from pipelines.experiments import evaluate, train
from pipelines.predictor import settle
from pipelines.volumes.cases import LabelledCase, gather_cases, split_cases
from pipelines.volumes.layouts import read_layout
from pipelines.volumes.prepared import CaseStore
from pipelines.volumes.tuning import class_ids, tune_volumes
from tests.models import TINY
from tests.pipelines.volumes.make_cases import adapter, decathlon, save

FAST = PredictOptions(device="cpu", precision="fp32")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        name="balls",
        adapter=adapter().to_dict(),
        data=(DataItem(source=str(decathlon(tmp_path / "Doe^Jane", 4, (40, 44, 10)))),),
        split=SplitOptions(validation=0.25, test=0.25),
        model=ModelOptions(preset="mfenet-efficientnet-lite0", overrides=TINY),
        train=TrainOptions(steps=2, batch=2, crop=32, workers=0, log_every=1, precision="fp32", augment=()),
        baseline=BaselineOptions(preset="unet-efficientnet-lite0", steps=1),
        predict=FAST,
    )


def test_train_leaves_bundle_baseline_and_metrics(config: RunConfig, tmp_path: Path) -> None:
    stages: list[str] = []
    outcome = train(config, tmp_path / "run", on_progress=lambda stage, *_, **__: stages.append(stage))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics == outcome.metrics and metrics["scored_on"] == "held-out patients"
    assert {"dice", "iou", "hd95", "nsd", "lesion_f1", "volume_error_mm3", "intervals", "per_case"} <= set(metrics)
    assert metrics["counts"] == {"cases": 1, "patients": 1} and set(metrics["per_class"]) == {"class0", "class1"}
    assert metrics["training"]["steps"] == 2 and metrics["processor_seconds"] > 0
    assert metrics["baseline"]["unet"]["training"]["steps"] == 1, "the baseline's own length, where it has one"
    assert "read cases" in stages and any(s.startswith("score") for s in stages)
    bundle = load_bundle(outcome.bundle)
    assert bundle.config.in_channels == 3, "a slice and its neighbours"
    assert sorted(row["role"] for row in bundle.provenance["cases"]) == ["test", "train", "train", "validation"]
    for file in (tmp_path / "run").rglob("*.json"):
        assert "Doe" not in file.read_text() and "case_" not in file.read_text(), file

    scores = evaluate(outcome.bundle, config, tmp_path / "scores")
    for key in ("dice", "iou", "hd95", "per_class"):
        assert scores[key] == metrics[key], "evaluating the same patients again gives the same numbers"
        assert scores["baseline"]["unet"][key] == metrics["baseline"]["unet"][key]
    assert scores["trained_on"] == 0
    everyone = config.model_copy(update={"split": SplitOptions(test=0, validation=0)})
    again = evaluate(outcome.bundle, everyone, tmp_path / "every")
    assert again["scored_on"] == "every case" and again["trained_on"] == 3 and again["counts"]["cases"] == 4
    for image in (tmp_path / "Doe^Jane" / "imagesTr").glob("*.nii.gz"):  # every patient's next scan: other bytes
        save(image, np.asarray(nibabel.load(image).dataobj) + np.float32(0.5))
    next_scans = evaluate(outcome.bundle, everyone, tmp_path / "next")
    assert next_scans["trained_on"] == 3, "patients are known by other scans of theirs"


def test_every_patient_is_held_out_once(config: RunConfig, tmp_path: Path) -> None:
    folds = config.model_copy(update={"split": SplitOptions(folds=2, validation=0), "baseline": None})
    metrics = train(folds, tmp_path / "run").metrics
    assert metrics["counts"] == {"cases": 4, "patients": 4} and len(metrics["folds"]) == 2
    parts = [json.loads((tmp_path / "run" / f"fold-{k}" / "metrics.json").read_text()) for k in range(2)]
    assert metrics["dice"] == pytest.approx(np.mean([p["dice"] for p in parts]), abs=1e-6)
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.provenance["fold"] == 0
    assert bundle.sha256 == load_bundle(tmp_path / "run" / "fold-0" / "bundle").sha256
    scores = evaluate(bundle.folder, folds, tmp_path / "scores")
    assert scores["dice"] == parts[0]["dice"], "a fold's model is scored on its own held-out patients"

    (tmp_path / "run" / "fold-1" / "metrics.json").unlink()
    before = (tmp_path / "run" / "fold-0" / "metrics.json").stat().st_mtime_ns
    again = train(folds, tmp_path / "run", resume=True).metrics
    assert again["dice"] == metrics["dice"]
    assert (tmp_path / "run" / "fold-0" / "metrics.json").stat().st_mtime_ns == before, "done is done"


def test_nothing_to_train_on(config: RunConfig, tmp_path: Path) -> None:
    item = config.data[0].model_copy(update={"role": "test"})
    with pytest.raises(InputError, match=r"nothing to train on; there are 4 patients"):
        train(config.model_copy(update={"data": (item,)}), tmp_path / "run")
    with pytest.raises(InputError, match="nothing to resume"):
        train(config, tmp_path / "run", resume=True)


def test_the_command_line_trains_and_scores(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And neither MLflow nor what is printed learns a patient's name."""
    from pipelines.cli import run

    store = tmp_path / "mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    raw = config.model_copy(update={"baseline": None}).model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    assert run(["train", "run.yaml", "--out", "run"]) == 0
    assert run(["evaluate", "run/bundle", "run.yaml", "--out", "scores"]) == 0
    assert json.loads(Path("scores/metrics.json").read_text())["counts"]["cases"] == 1
    printed = capsys.readouterr()
    assert "Doe" not in printed.out + printed.err and "case_0" not in printed.out + printed.err
    assert b"Doe" not in store.read_bytes()
    tracked = [p for p in (tmp_path / "mlruns").rglob("*") if p.is_file()]
    assert any(p.name == "config.yaml" for p in tracked)
    assert not any(b"Doe" in p.read_bytes() or b"case_0" in p.read_bytes() for p in tracked)


class Faint(nn.Module):
    """Right about every slice it sees, at a probability of 0.3, and sees class 1 in noise at 0.1."""

    def forward(self, x: Tensor) -> DensePrediction:
        middle = x[:, 1].round()
        chance = torch.stack([torch.where(middle == k + 1, 0.3, 0.1 * (k == 0)) for k in range(2)], 1)
        return DensePrediction(torch.cat([chance, 1 - chance.sum(1, keepdim=True)], 1).clamp(min=1e-6).log())


def test_thresholds_come_from_the_validation_patients(tmp_path: Path) -> None:
    cases = [LabelledCase(c) for c in read_layout(decathlon(tmp_path, 2))]
    with CaseStore(adapter()) as store:
        ready = store.prepare(cases)
        options = settle(FAST, store.adapter, {})
        assert tune_volumes(Faint(), [], store.adapter, options) == {"semantic": 0.5, "score": 0.5}
        found = tune_volumes(Faint(), ready, store.adapter, options)
        assert 0.1 <= found["semantic"] <= 0.3
        truth = class_ids(ready[0], 2, 5)
        assert np.array_equal(truth, ready[0].values[0, :, :, 5].round())


def test_a_named_split_is_by_patient(config: RunConfig) -> None:
    cases = gather_cases(config)
    split = split_cases(cases, config.split)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [2, 1, 1]
