"""Training and evaluation as flows: the same bundle and numbers as the steps they call."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.evaluate_model import evaluate_model
from flows.train_model import train_model
from pipelines.bundle import load_bundle
from tests.models import squares_config


def test_train_then_evaluate(
    make_geotiff: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    config = squares_config(make_geotiff, tmp_path).model_copy(update={"baseline": None})
    bundle = train_model(config, str(tmp_path / "run"))
    assert load_bundle(bundle).provenance["training"]["steps"] == 2
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    scores = evaluate_model(bundle, config, str(tmp_path / "scores"))
    assert scores["foreground_iou"] == trained["foreground_iou"]
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text()) == scores


def test_a_config_with_a_fault_is_refused_before_anything_runs() -> None:
    state = train_model({"adapter": {}, "data": [], "trian": {}}, "nowhere", return_state=True)  # type: ignore[arg-type]
    assert state.is_failed()
