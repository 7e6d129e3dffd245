"""The flow: dry by default, then all of it; and every flow's parameters stand in the confinement's list."""

import importlib
import os
import pkgutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import flows
from adapters.errors import InputError
from flows.retention import clean_up
from pipelines.retention import RetentionPolicy
from tests.operations.test_confinement import NOT_PATHS, strings_of


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKBRIDGE_RESULTS", str(tmp_path))
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def ended_run() -> str:
    """A run of some flow that has just ended."""
    from prefect import flow

    @flow(name="of-old")
    def of_old() -> int:
        return 1

    return str(of_old(return_state=True).state_details.flow_run_id)


def test_it_shows_first_and_removes_when_told(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    shards = places / "scenes" / ".shards" / "a-1"
    shards.mkdir(parents=True)
    os.utime(shards, (time.time() - 5 * 86_400,) * 2)
    old = ended_run()
    between = datetime.now(UTC)
    young = ended_run()
    monkeypatch.setattr("flows.retention._now", lambda: between + timedelta(days=RetentionPolicy().runs))
    outcome = clean_up()
    assert outcome["shards"] == {"found": 1, "removed": 0, "bytes": 0} and shards.exists(), "dry by default"
    assert outcome["runs"]["found"] >= 1 and outcome["runs"]["removed"] == 0
    outcome = clean_up(RetentionPolicy(), dry_run=False)
    assert outcome["shards"]["removed"] == 1 and not shards.exists()
    assert outcome["runs"]["removed"] == outcome["runs"]["found"]
    with get_client(sync_client=True) as client:
        left = {str(run.id) for run in client.read_flow_runs()}
        assert young in left and old not in left
        assert any(
            artifact.key == "clean-up" or "clean-up" in (artifact.key or "") for artifact in client.read_artifacts()
        )
    assert "runs" not in clean_up(RetentionPolicy(), dry_run=False)


def test_a_store_that_is_away_costs_its_own_kind(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("flows.retention.clean_artifacts", clean_without_delay())
    state = clean_up(return_state=True)
    assert state.is_completed() and state.name == "Partial" and "does not answer" in state.message


def clean_without_delay():
    from flows.retention import clean_artifacts

    return clean_artifacts.with_options(retries=0)


def test_it_deletes_inside_the_roots_only(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKBRIDGE_ROOTS", str(places))
    state = clean_up(RetentionPolicy(folders=("/etc",)), return_state=True)
    assert state.is_failed()
    with pytest.raises(InputError, match=r"policy\.folders lies outside"):
        state.result()


def every_flow():
    from prefect import Flow

    for module in pkgutil.iter_modules(flows.__path__, "flows."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Flow) and value.fn.__module__ == module.name:
                yield value


def test_every_string_a_flow_takes_is_known_to_be_a_path_or_not() -> None:
    """A new parameter that is a path and not in the list would reach the file system unconfined."""
    from pipelines.confinement import PATH_FIELDS

    known = PATH_FIELDS | NOT_PATHS
    names = set()
    for one in every_flow():
        schema = one.parameters.model_dump_for_openapi()
        for name in strings_of(schema, schema.get("definitions", {}), one.name):
            names.add(name)
            assert name in known, f"{one.name}: {name} is neither in PATH_FIELDS nor in NOT_PATHS"
    assert {"source", "out", "weights", "uri"} <= names


def with_paths():
    from pipelines.confinement import PATH_FIELDS

    return [one for one in every_flow() if PATH_FIELDS & set(one.parameters.properties)]


@pytest.mark.parametrize("one", with_paths(), ids=lambda one: one.name)
def test_every_flow_confines_its_paths(one, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by reading its code: each is started with a path outside, and has to refuse it before it does anything."""
    from pipelines.confinement import PATH_FIELDS

    monkeypatch.setenv("MASKBRIDGE_ROOTS", str(tmp_path / "inside"))
    given = {}
    for name, schema in one.parameters.properties.items():
        if "RunConfig" in str(schema):
            given[name] = CONFIG
        elif name in PATH_FIELDS:
            path = f"/etc/maskbridge-{name}"
            given[name] = [path] if "'array'" in str(schema) else path
        elif name in one.parameters.required:
            given[name] = "x"
    state = one(**given, return_state=True)
    assert state.is_failed()
    assert "lies outside of the folders for runs" in str(state.result(raise_on_failure=False)), one.name


CONFIG = {"adapter": {}, "data": [{"source": "/etc/passwd"}]}
