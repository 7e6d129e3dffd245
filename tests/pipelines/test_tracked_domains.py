"""Adaptation and drift as tracked runs: numbers, digests and pictures in MLflow, and nothing lost where it is away."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.bundle import load_bundle
from pipelines.cli import run as command_line
from pipelines.config import save_config
from pipelines.tracked_domains import digests_of
from pipelines.tracking_store import connect
from tests.models import adapter, squares_config, tiny_bundle
from tests.pipelines.volumes import make_cases


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MASKBRIDGE_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("MASKBRIDGE_TRACKING", "on")
    yield uri


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "m", adapter(channels=("red", "green", "blue"), tile=64, tile_overlap=16))


def only(uri: str, kind: str) -> Any:
    client = connect(uri)
    experiment = client.get_experiment_by_name("maskbridge")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.\"maskbridge.kind\" = '{kind}'")
    return found


def files(uri: str, run: Any) -> dict[str, Path]:
    return {
        one.path: Path(connect(uri).download_artifacts(run.info.run_id, one.path))
        for one in connect(uri).list_artifacts(run.info.run_id)
    }


def test_adapt_and_drift_are_a_run_each(model: Path, make_geotiff, store: str, tmp_path: Path) -> None:
    config = squares_config(make_geotiff, tmp_path)
    save_config(config, tmp_path / "labelled.yaml")
    scene = str(config.data[0].source)
    digest = digests_of([scene], load_bundle(model).adapter)[Path(scene).name]
    words = ["adapt", str(model), scene, "--out", str(tmp_path / "out"), "--strategy", "input_statistics"]
    assert command_line([*words, "--score-on", str(tmp_path / "labelled.yaml")]) in (0, 4)
    adapted = only(store, "adapt")
    assert adapted.info.status == "FINISHED" and adapted.data.params["effort.steps"] == "100"
    assert adapted.data.tags["better"] in ("yes", "no", "not known")
    assert adapted.data.tags["model.sha256"] == load_bundle(model).sha256
    assert adapted.data.tags[f"data.{Path(scene).name}"] == digest and len(digest) == 64
    assert {"score.source_only.f1_50", "score.adapted.f1_50"} <= set(adapted.data.metrics)
    kept = files(store, adapted)
    assert {"adaptation.json", "adapter.json", "config.yaml"} <= set(kept)
    assert "input_statistics" in json.loads(kept["adaptation.json"].read_text())

    assert command_line(["drift", str(model), scene, "--out", str(tmp_path / "drift"), "--crops", "2"]) == 0
    drifted = only(store, "drift")
    written = json.loads((tmp_path / "drift" / "drift.json").read_text())
    assert drifted.data.metrics["number"] == written["number"]
    assert drifted.data.tags[f"data.{Path(scene).name}"] == digest
    kept = files(store, drifted)
    assert kept["drift.svg"].read_text() == (tmp_path / "drift" / "drift.svg").read_text() and "drift.json" in kept


def test_with_the_store_away_the_work_is_done_and_said_in_one_line(
    model: Path, make_geotiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody answers
    scene = str(squares_config(make_geotiff, tmp_path).data[0].source)
    began = time.monotonic()
    assert command_line(["drift", str(model), scene, "--out", str(tmp_path / "drift"), "--crops", "2"]) == 0
    assert time.monotonic() - began < 30
    told = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert len(told) == 1 and "does not answer" in told[0] and list((tmp_path / "spool").iterdir()), told


def test_a_study_is_named_by_its_hash(tmp_path: Path) -> None:
    image = tmp_path / "Doe^Jane.nii.gz"
    make_cases.save(image, make_cases.balls((24, 28, 10), 0))
    (found,) = digests_of([str(image)], make_cases.adapter()).items()
    assert found[1].startswith(found[0]) and len(found[0]) == 12
    assert hashlib.sha256(b"Doe^Jane").hexdigest()[:12] != found[0]
