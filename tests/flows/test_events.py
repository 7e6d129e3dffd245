"""What the server does by itself, shown with a real one: an evaluation starts a promotion, and silence ends a run."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.states import Crashed, Running

from flows.evaluate_model import EVALUATED
from flows.promote import PROMOTED
from flows.reap import HEARTBEAT, REAPED, WATCH, watch
from pipelines.config import load_config
from pipelines.promotion import ledger
from pipelines.promotion.aliases import aliases
from pipelines.registry import register
from pipelines.tracking_store import connect
from tests.flows.broken import Broken
from tests.flows.service import Service, wait_for
from tests.pipelines.mlflow_service import tracking_server
from tests.pipelines.promotion import colours

OWN_SERVER = True
SILENT_S = 15.0


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[str]:
    address, service = tracking_server(tmp_path)
    service.start()
    yield address
    service.stop()


@pytest.mark.slow
def test_an_evaluation_starts_the_promotion_and_the_alias_moves(
    service: Service, mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prefect.yaml's own trigger, a worker, MLflow over HTTP: nobody calls the gate, and every run links to MLflow."""
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    data = load_config(colours.frozen(service.folder / "data", "frozen", seed=1, size=(256, 256)))
    for against in (colours.BLIND, colours.KEEN):
        register(colours.bundle(tmp_path / f"bundle-{against}", against=against), "fields", uri=mlflow)
    client = connect(mlflow)
    client.set_registered_model_alias("fields", "champion", "1")
    worker = service.start_worker(MLFLOW_TRACKING_URI=mlflow, MASKBRIDGE_TRACKING="on")
    parameters = {"data": data.model_dump(mode="json"), "out": str(tmp_path / "evaluation")}
    try:
        evaluation = service.run("evaluate-model/evaluate", model="models:/fields/2", **parameters)

        def promotion() -> FlowRun | None:
            with service.client() as prefect:
                evaluated = prefect.read_flow_run(evaluation)
                assert not (evaluated.state.is_failed() or evaluated.state.is_crashed()), evaluated.state
                deployment = prefect.read_deployment_by_name("promote/promote")
                runs = [run for run in prefect.read_flow_runs() if run.deployment_id == deployment.id]
            return next((run for run in runs if run.state.is_final()), None)

        run = wait_for("the promotion", promotion, 300, 1.0)
    finally:
        worker.kill()
        worker.wait()
    assert run.state.is_completed() and run.state.name == "Completed", run.state
    assert run.created_by is not None and run.created_by.type == "AUTOMATION", "nobody but the event started it"
    assert (run.parameters["name"], str(run.parameters["version"])) == ("fields", "2")
    assert aliases(client, mlflow, "fields") == {"champion": "2", "previous": "1"}
    (entry,) = ledger.read("fields", mlflow)
    assert (entry.action, entry.version, entry.previous) == ("promoted", "2", "1")
    assert entry.data == run.parameters["data_digest"], "judged on the data of the evaluation"
    with service.client() as prefect:
        told = {name: _events(prefect, name) for name in (EVALUATED, PROMOTED)}
        shown = {(str(one.flow_run_id), one.key): str(one.data) for one in prefect.read_artifacts()}
    assert [event.payload["version"] for events in told.values() for event in events] == [2, 2]
    page = f"{mlflow}/#/models/fields/versions/2"
    for flow_run in (evaluation, run.id):
        assert page in shown[str(flow_run), "scene-fields-model"]
    assert "passed" in shown[str(run.id), "promote-fields-report"]
    link = shown[str(evaluation), "evaluate-frozen-run"]
    assert f"{mlflow}/#/experiments/" in link
    tracked = link.rpartition("/runs/")[2].rstrip(")")
    assert client.get_run(tracked).data.tags["maskbridge.kind"] == "evaluate"


def _events(prefect: Any, name: str) -> list[Any]:
    return wait_for(
        name, lambda: prefect.read_events(EventFilter(event=EventNameFilter(name=[name])), limit=10).events, 30
    )


@flow(name="long-work")
def long_work() -> None: ...


class Alive:
    """A run that works elsewhere, as far as the server can know: its heartbeats come."""

    def __init__(self, service: Service) -> None:
        self.service = service
        with service.client() as client:
            self.id = client.create_flow_run(long_work).id
            client.set_flow_run_state(self.id, Running(), force=True)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Alive:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.is_set():
            event = {
                "id": str(uuid.uuid4()),
                "occurred": datetime.now(UTC).isoformat(),
                "event": HEARTBEAT,
                "resource": {"prefect.resource.id": f"prefect.flow-run.{self.id}"},
                "related": [],
                "payload": {},
            }
            httpx.post(f"{self.service.url}/events", json=[event], timeout=10).raise_for_status()
            self._end.wait(SILENT_S / 5)


@pytest.mark.slow
def test_the_automation_ends_a_run_whose_process_was_killed(broken: Broken, service: Service) -> None:
    """No worker lives, so nobody else could say so. Heartbeats are Prefect's own; the patience alone is shorter."""
    other = Alive(service)
    with service.client() as client:
        watch(silent_s=SILENT_S)
    try:
        broken.wait_until("starting")
        process = broken.process()
        broken.worker.send_signal(signal.SIGTERM)
        broken.worker.wait(90)
        assert process is not None
        wait_for("the process' end", lambda: not process.is_running(), 30)
        assert broken.read().state.is_running(), "a zombie, with its slot"
        with other:
            wait_for("the automation", lambda: broken.read().state.is_crashed(), 120, 0.5)
            with service.client() as client:
                assert client.read_flow_run(other.id).state.is_running(), "its heartbeats come"
        found = broken.read().state
        assert found.name == REAPED and found.message == f"no heartbeat for {SILENT_S:.0f} s"
        broken.wait_for_free_slots()
    finally:
        with service.client() as client:
            for automation in client.read_automations_by_name(WATCH):
                client.delete_automation(automation.id)
            client.set_flow_run_state(other.id, Crashed(), force=True)
            client.set_flow_run_state(broken.id, Crashed(), force=True)
