"""Which runs are dead, and what is done with them. (With real processes and kills: test_schedule.py.)"""

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed, Pending, Running

from flows import reap as reaper
from flows.reap import REAPED, WATCH, ReapOptions, reap, reap_runs, watch
from flows.runs import MODEL_LABEL, ORIGIN_LABEL, PROCESS_LABEL, process_label, sweep
from pipelines.sinks.folder import HOST


@flow(name="long-work")
def long_work() -> None: ...


@pytest.fixture
def client() -> Iterator:
    with get_client(sync_client=True) as made:
        yield made


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "FRESH_S", -1.0)


def run_in(client, state, label: str | None = None, deployment: UUID | None = None) -> UUID:
    if deployment is None:
        run = client.create_flow_run(long_work)
    else:
        run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, state, force=True)
    if label:
        client.update_flow_run_labels(run.id, {PROCESS_LABEL: label})
    return run.id


def deployment_of(client) -> UUID:
    return client.create_deployment(client.create_flow(long_work), "reaped")


def gone() -> str:
    """The label of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    label = process_label(process.pid)
    process.communicate(b"\n")
    return label


def test_the_dead_are_told_and_the_living_left_alone(client) -> None:
    dead, alive = run_in(client, Running(), gone()), run_in(client, Running(), process_label())
    host, pid, _ = process_label().rsplit(":", 2)
    reborn = run_in(client, Running(), f"{host}:{pid}:1.00")
    elsewhere = run_in(client, Running(), "another-host:1:1.00")
    found = {one.id: one for one in reap()}
    assert set(found) == {str(dead), str(reborn)}
    assert "is gone" in found[str(dead)].why and not found[str(dead)].resumed, "nobody could start it again"
    assert client.read_flow_run(dead).state.name == REAPED
    for one in (alive, elsewhere):
        assert client.read_flow_run(one).state.is_running()
        client.set_flow_run_state(one, Crashed(), force=True)


def test_silence_is_death(client) -> None:
    silent = run_in(client, Running(), "another-host:1:1.00")
    stuck = run_in(client, Pending(), gone())
    assert not reap(), "both may be alive"
    time.sleep(0.2)
    impatient = ReapOptions.model_construct(**{**ReapOptions().model_dump(), "silent_s": 0.1, "pending_s": 0.1})
    done = {one.id: one.why for one in reap(impatient)}
    assert set(done) == {str(silent), str(stuck)}
    assert all("nothing was heard" in why for why in done.values())


def test_work_of_deployments_goes_on_a_few_times(client) -> None:
    deployment = deployment_of(client)

    def newest() -> FlowRun:
        runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment]
        return max(runs, key=lambda run: run.created)

    first = run_in(client, Running(), gone(), deployment)
    client.update_flow_run_labels(first, {MODEL_LABEL: "models:/roads/3"})
    assert [one.resumed for one in reap()] == [True]
    second = newest()
    assert client.read_flow_run(first).state.is_crashed(), "and its slot is free"
    assert second.id != first and second.state.is_scheduled() and "resumed" in second.tags
    assert (second.labels[ORIGIN_LABEL], second.labels[MODEL_LABEL]) == (str(first), "models:/roads/3")
    assert not reap(), "once is enough"
    client.set_flow_run_state(second.id, Crashed(), force=True)
    assert not reap(ReapOptions(resume=False)) and not reap(ReapOptions(crashed_s=0.001))
    assert [one.id for one in reap()] == [str(second.id)], "a worker that lives says Crashed by itself"
    third = newest()
    assert third.labels[ORIGIN_LABEL] == str(first), "the work is still the first one's"
    client.set_flow_run_state(third.id, Crashed(), force=True)
    assert not reap(), "three runs are enough"


def test_as_a_flow(client) -> None:
    dead = run_in(client, Running(), gone())
    (row,) = reap_runs()
    assert row["id"] == str(dead) and row["was"] == "Running"
    assert reap_runs() == [], "nor itself"


def test_the_automation_is_made_once(client) -> None:
    watch()
    watch(silent_s=200)
    (made,) = client.read_automations_by_name(WATCH)
    assert made.trigger.within == timedelta(seconds=200)
    assert made.actions[0].state == StateType.CRASHED


def test_sweeping_takes_what_the_dead_left_half_written(tmp_path: Path) -> None:
    pid = int(gone().rsplit(":", 2)[1])
    mine = Path(f"/proc/{pid}")
    assert not mine.exists()
    work = tmp_path / ".shards" / "scene-0123"
    work.mkdir(parents=True)
    left = [
        work / f".shard-0001.npz.00000000.partial-{HOST}-{pid}-1.npz",
        tmp_path / f".scene.00000000.partial-{HOST}-{pid}-2",
    ]
    left[0].write_text("half")
    left[1].mkdir()
    (left[1] / "semantic.tif").write_text("half")
    kept = [
        work / "shard-0000.npz",
        tmp_path / f".scene.00000000.partial-{HOST}-1-2",
        tmp_path / f".scene.00000000.partial-elsewhere-{pid}-2",
        tmp_path / ".profile",
    ]
    for path in kept:
        path.write_text("whole, or another's")
    sweep(tmp_path)
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
