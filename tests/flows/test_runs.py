"""What flows do around their work: the model's version is pinned, and MLflow's pages are linked without passwords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect import flow, runtime
from prefect.client.orchestration import get_client

from flows.artifacts import show_model, show_run
from flows.runs import MODEL_LABEL, ORIGIN_LABEL, pinned
from pipelines.registry import register
from pipelines.tracking_store import connect
from tests.models import adapter, tiny_bundle

ADDRESS = "http://me:canary-in-address@127.0.0.1:5999"


@flow(name="pins")
def pins(model: str) -> tuple[str, str]:
    return pinned(model), str(runtime.flow_run.id)


def test_a_run_keeps_the_version_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alias moves in mid-run: the run, and one that goes on with it, stay; the next run takes the new version."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    bundle = tiny_bundle(tmp_path / "bundle", adapter())
    for alias in ("champion", None):
        register(bundle, "roads", alias=alias)
    first, run = pins("models:/roads@champion")
    assert first == "models:/roads/1"
    connect(uri).set_registered_model_alias("roads", "champion", "2")
    with get_client(sync_client=True) as client:
        labels = client.read_flow_run(run).labels
        assert labels[MODEL_LABEL] == "models:/roads/1"

    @flow(name="goes-on")
    def goes_on() -> str:
        with get_client(sync_client=True) as client:  # as the reaper labels a run that goes on
            client.update_flow_run_labels(runtime.flow_run.id, {ORIGIN_LABEL: run, MODEL_LABEL: labels[MODEL_LABEL]})
        return pinned("models:/roads@champion")

    assert goes_on() == "models:/roads/1"
    assert pins("models:/roads@champion")[0] == "models:/roads/2"
    assert pins(str(bundle))[0] == str(bundle), "a folder has no version"


class Answer:
    """MLflow's answer about a run."""

    class info:
        experiment_id = "7"

    def get_run(self, run_id: str) -> Any:
        return self


def test_models_and_runs_are_linked_and_no_password_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESS)
    monkeypatch.setattr("pipelines.tracking_store.connect", lambda uri: Answer())

    @flow(name="links")
    def links() -> str:
        show_model("models:/roads/3", "3", "north")
        show_model("a/folder", None, "no-page")
        show_run("abcdef", "train", "north")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
        show_model("models:/roads/3", "3", "no-page")
        show_run("abcdef", "train", "no-page")
        return str(runtime.flow_run.id)

    run = links()
    with get_client(sync_client=True) as client:
        shown = {one.key: str(one.data) for one in client.read_artifacts() if str(one.flow_run_id) == run}
    assert set(shown) == {"scene-north-model", "train-north-run"}
    assert "http://127.0.0.1:5999/#/models/roads/versions/3" in shown["scene-north-model"]
    assert "http://127.0.0.1:5999/#/experiments/7/runs/abcdef" in shown["train-north-run"]
    assert "canary" not in "".join(shown.values())
