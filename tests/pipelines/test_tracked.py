"""Training, evaluation and prediction as tracked runs: what MLflow is told, what a resume continues, no secret."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapters.crowd import crowd
from pipelines.cli import run as command_line
from pipelines.config import RunConfig, save_config
from pipelines.tracked import evaluate_tracked, train_tracked, without_password
from pipelines.tracking_store import connect
from tests.models import squares_config, tiny_bundle

CANARY = "canary-3f9a71"


@pytest.fixture
def config(make_geotiff: Callable[..., Path], tmp_path: Path) -> RunConfig:
    return squares_config(make_geotiff, tmp_path).model_copy(update={"baseline": None})


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name, value in (
        ("MLFLOW_TRACKING_URI", uri),
        ("MASKBRIDGE_SPOOL", str(tmp_path / "spool")),
        ("MASKBRIDGE_TRACKING", "on"),
        ("MLFLOW_TRACKING_PASSWORD", CANARY + "-password"),
        ("PREFECT_API_AUTH_STRING", f"admin:{CANARY}-auth"),
        ("HF_TOKEN", CANARY + "-token"),
    ):
        monkeypatch.setenv(name, value)
    yield uri


def runs(uri: str, kind: str) -> list[Any]:
    client = connect(uri)
    experiment = client.get_experiment_by_name("maskbridge")
    return client.search_runs([experiment.experiment_id], f"tags.\"maskbridge.kind\" = '{kind}'")


def files(uri: str, run: Any, folder: str | None = None) -> set[str]:
    return {file.path for file in connect(uri).list_artifacts(run.info.run_id, folder)}


def test_train_resume_evaluate_and_predict_are_one_run_each_and_hold_no_secret(
    config: RunConfig, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = config.tracking.model_copy(update={"register_as": "squares"})
    # A user who writes secrets where they do not belong: as the run's name.
    config = config.model_copy(update={"tracking": tracking, "name": f"squares {CANARY}-token"})
    with caplog.at_level(logging.DEBUG):
        first = train_tracked(config, tmp_path / "run")
        again = train_tracked(config, tmp_path / "run", resume=True)
        save_config(config, tmp_path / "data.yaml")
        scores = evaluate_tracked(first.bundle, config, tmp_path / "test")
        scene = config.data[0].source
        assert command_line(["predict", "models:/squares/1", scene, "--out", str(tmp_path / "out")]) == 0

    (trained,) = runs(store, "train")
    assert first.run_id == again.run_id == trained.info.run_id, "the resumed training went on in its run"
    assert first.registered == "models:/squares/1" and trained.info.status == "FINISHED"
    assert trained.data.params["train.steps"] == "2" and trained.data.tags["adapter"] == "test"
    assert trained.data.tags["mlflow.source.git.commit"] and trained.data.tags["version.torch"]
    assert {"mfenet-efficientnet-lite0/total", "heldout.f1_50"} <= set(trained.data.metrics)
    assert trained.data.metrics["system/system_memory_usage_megabytes"] > 0
    contexts = {tag.value for one in trained.inputs.dataset_inputs for tag in one.tags}
    assert "train" in contexts and len(trained.data.tags["data.scene.tif"]) == 64
    assert {"config.yaml", "adapter.json", "metrics.json", "MODEL_CARD.md", "model"} <= files(store, trained)

    (evaluated,) = runs(store, "evaluate")
    assert evaluated.data.metrics["score.f1_50"] == scores["f1_50"]
    assert evaluated.data.tags["data.scene.tif"] == trained.data.tags["data.scene.tif"]
    assert evaluated.data.params["model.sha256"] and "metrics.json" in files(store, evaluated)

    (predicted,) = runs(store, "predict")
    manifest = json.loads((tmp_path / "out" / "scene" / "run.json").read_text())
    assert predicted.data.metrics["objects"] == manifest["objects"]
    assert predicted.data.params["model.version"] == "1" and predicted.data.params["parameters.tile"] == "64"
    assert predicted.data.tags["data.scene.tif"] == manifest["source"]["sha256"]
    assert files(store, predicted, "scene") == {"scene/run.json", "scene/report.html"}
    assert not list((tmp_path / "spool").iterdir())

    assert CANARY not in caplog.text
    told = [tmp_path / "mlflow.db", *(tmp_path / "mlruns").rglob("*"), tmp_path / "out" / "scene" / "run.json"]
    model = Path("model/artifacts/bundle")  # the bundle's own bytes have a hash, and the name is the user's
    for file in told:
        if file.is_file() and str(model) not in str(file):
            assert f"{CANARY}-token".encode() not in file.read_bytes(), file


def test_a_password_in_the_config_stays_there(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, store: str
) -> None:
    """The address of the config carries a password, and nothing answers there: all that is kept is without it."""
    uri = f"http://me:{CANARY}@127.0.0.1:9"
    config = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"uri": uri, "register_as": "squares"})}
    )
    with caplog.at_level(logging.DEBUG):
        outcome = train_tracked(config, tmp_path / "run")
    assert outcome.run_id is None and outcome.registered is None and outcome.bundle.is_dir()
    assert without_password(config).tracking.uri == "http://127.0.0.1:9"
    assert "does not answer" in caplog.text and CANARY not in caplog.text
    kept = [file for folder in ("spool", "run") for file in (tmp_path / folder).rglob("*") if file.is_file()]
    assert len(kept) > 10
    for file in kept:
        assert CANARY.encode() not in file.read_bytes(), file


def test_a_count_is_a_run_and_a_sweep_without_news_is_none(store: str, tmp_path: Path) -> None:
    model = tiny_bundle(tmp_path / "model", crowd(tile=64, tile_overlap=16))
    pictures = tmp_path / "photos"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(random.integers(0, 255, (64, 96, 3), np.uint8)).save(pictures / name)
    words = ["count", str(model), str(pictures), "--out", str(tmp_path / "counts"), "--device", "cpu", "--score", "0.1"]
    assert command_line(words) == 0 and command_line(words) == 0
    (run,) = runs(store, "count")
    told = json.loads((tmp_path / "counts" / "run.json").read_text())
    assert run.data.metrics["count"] == told["count"] and run.data.metrics["pictures"] == 2
    assert run.data.metrics["expected"] == pytest.approx(told["expected"], abs=1e-2)
    assert files(store, run) == {"run.json", "counts.csv", "adapter.json"}
    assert len(run.data.tags["data.photos"]) == 64 and run.data.params["parameters.score"] == "0.1"
    Image.fromarray(random.integers(0, 255, (64, 96, 3), np.uint8)).save(pictures / "c.png")
    assert command_line(words) == 0
    assert sorted(one.data.metrics["fresh"] for one in runs(store, "count")) == [1, 2]
