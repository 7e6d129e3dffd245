"""Train, track, evaluate by a run config: what it leaves, and that the numbers are those of the held-out place."""

import json
from collections.abc import Callable
from pathlib import Path

import geopandas
import pytest

from adapters.errors import InputError
from pipelines.bundle import load_bundle
from pipelines.config import (
    RunConfig,
    SplitOptions,
)
from pipelines.experiments import evaluate, train
from pipelines.scene_report import heldout_window, score_rows
from tests.models import squares_config


@pytest.fixture
def config(make_geotiff: Callable[..., Path], tmp_path: Path) -> RunConfig:
    return squares_config(make_geotiff, tmp_path)


def test_train_leaves_bundle_baseline_and_metrics(config: RunConfig, tmp_path: Path) -> None:
    stages = []
    outcome = train(config, tmp_path / "run", on_progress=lambda stage, *_, **__: stages.append(stage))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics == outcome.metrics
    assert {"miou", "iou", "foreground_iou", "pq", "sq", "rq", "ap", "ap50", "f1_50", "f1_75"} <= set(metrics)
    assert metrics["scored_on"] == "held-out place" and metrics["training"]["steps"] == 2
    assert metrics["counts"]["truth"] == 9, "the squares of the last 64 columns and no other"
    assert set(metrics["baseline"]["trivial"]) == {"all_background", "all_foreground", "threshold"}
    assert metrics["baseline"]["trivial"]["threshold"]["foreground_iou"] > 0.9, "bright on dark"
    assert metrics["baseline"]["unet"]["training"]["steps"] == 2
    assert any("train maskformer" in s or "train mfenet" in s for s in stages) and any("score" in s for s in stages)

    bundle = load_bundle(outcome.bundle)
    assert 0 <= bundle.thresholds["semantic"] <= 1 and 0 < bundle.thresholds["score"] <= 1
    digest = bundle.provenance["places"][0]["sha256"]
    assert heldout_window(bundle, digest) == (slice(0, 96), slice(224, 288))
    assert heldout_window(bundle, "another file") is None
    assert [row.name for row in score_rows(bundle)][:2] == ["mask model", "per-pixel U-Net"]

    scores = evaluate(outcome.bundle, config, tmp_path / "scores")
    for key in ("foreground_iou", "f1_50", "pq"):
        assert scores[key] == metrics[key], "evaluating the same place again gives the same numbers"
        assert scores["baseline"]["unet"][key] == metrics["baseline"]["unet"][key]


def test_what_was_trained_on_is_never_scored_as_held_out(config: RunConfig, tmp_path: Path) -> None:
    options = config.model_copy(update={"split": SplitOptions(validation=0, test=0), "baseline": None})
    metrics = train(options, tmp_path / "run").metrics
    assert metrics["scored_on"] == "every scene, training part included"


def test_resumed_training_ends_at_the_weights_of_an_unbroken_one(config: RunConfig, tmp_path: Path) -> None:
    plain = config.model_copy(update={"baseline": None})
    train(plain, tmp_path / "whole")
    half = plain.model_copy(update={"train": plain.train.model_copy(update={"steps": 1})})
    train(half, tmp_path / "broken")
    train(plain, tmp_path / "broken", resume=True)
    whole, broken = (load_bundle(tmp_path / name / "bundle") for name in ("whole", "broken"))
    # The schedule of one step is not the first half of the schedule of two: what has to agree is the step count.
    assert broken.provenance["training"]["steps"] == whole.provenance["training"]["steps"] == 2


def test_resume_where_the_baseline_had_not_begun(config: RunConfig, tmp_path: Path) -> None:
    half = config.model_copy(update={"baseline": None, "train": config.train.model_copy(update={"steps": 1})})
    train(half, tmp_path / "run")
    metrics = train(config, tmp_path / "run", resume=True).metrics
    assert metrics["training"]["steps"] == metrics["baseline"]["unet"]["training"]["steps"] == 2
    with pytest.raises(InputError, match="nothing to resume"):
        train(config, tmp_path / "elsewhere", resume=True)


def test_nothing_to_train_on_names_the_scene(config: RunConfig, tmp_path: Path) -> None:
    item = config.data[0].model_copy(update={"role": "test"})
    with pytest.raises(InputError, match=r"scene\.tif: the split leaves nothing"):
        train(config.model_copy(update={"data": (item,)}), tmp_path / "run")


def test_a_per_pixel_bundle_is_predicted_as_it_was_scored(config: RunConfig, tmp_path: Path) -> None:
    from pipelines.assembly import predict_in_memory
    from pipelines.labelled import LabelledData
    from pipelines.prediction import predict_scene
    from pipelines.predictor import Predictor, settle

    train(config, tmp_path / "run")
    bundle = load_bundle(tmp_path / "run" / "baseline")
    assert bundle.provenance["task"] == "semantic" and "regions" in bundle.thresholds
    folder = predict_scene(config.data[0].source, bundle.folder, tmp_path / "out", config.predict)
    with LabelledData(config) as data:
        options = settle(config.predict, bundle.adapter, bundle.thresholds, "semantic")
        predictor = Predictor(bundle.build(), bundle.adapter, options)
        scene, _ = predict_in_memory(data.scenes[0].source, predictor, bundle.thresholds)
    assert geopandas.read_parquet(folder / "objects.parquet")["id"].tolist() == scene.objects.ids.tolist()


def test_tracked_training_registers_what_it_made(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.tracked import train_tracked
    from pipelines.tracking import list_models

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracking = config.tracking.model_copy(update={"register_as": "squares", "alias": "champion"})
    options = config.model_copy(update={"baseline": None, "tracking": tracking})
    outcome = train_tracked(options, tmp_path / "run")
    assert outcome.registered == "models:/squares/1"
    assert [(row["name"], row["aliases"]) for row in list_models()] == [("squares", ["champion"])]
    by_registry, by_folder = load_bundle("models:/squares@champion"), load_bundle(outcome.bundle)
    assert by_registry.sha256 == by_folder.sha256 and by_registry.version == "1"

    from mlflow.tracking import MlflowClient

    run = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(outcome.run_id)
    assert run.data.metrics["heldout.f1_50"] == outcome.metrics["f1_50"]
    assert run.data.params["train.steps"] == "2"
    assert "mfenet-efficientnet-lite0/total" in run.data.metrics
