"""What MLflow cannot take stays on disk and arrives later, once: a real server, stopped and started in the middle."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import tracking, tracking_sender
from pipelines.cli import run as command_line
from pipelines.tracking_journal import EVENTS, SENT, Journal, left_behind, open_journal, spool_folder
from pipelines.tracking_store import SQLITE, connect
from tests.pipelines.mlflow_service import Service, free_port, tracking_server

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKBRIDGE_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    address, service = tracking_server(tmp_path_factory.mktemp("mlflow"))
    service.start()
    yield address, service
    service.stop()


@pytest.fixture
def awake(server: tuple[str, Service], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Service]:
    """The server, running, as the store of this process and its children."""
    address, service = server
    if service.process is None:
        service.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address, service


def runs_named(address: str, name: str) -> list[Any]:
    client = connect(address)
    experiment = client.get_experiment_by_name("maskbridge")
    return client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'") if experiment else []


def curve(address: str, run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect(address).get_metric_history(run_id, name)]


# --- a journal ----------------------------------------------------------------------------------------------


def test_half_a_line_of_a_killed_process_is_dropped_and_the_rest_is_read(spool: Path) -> None:
    journal = open_journal("a")
    assert journal is not None
    for number in range(3):
        journal.append("metrics", step=number, time=1, values={"loss": float("nan")})
    journal.close(discard=False)
    with (spool / "a" / EVENTS).open("ab") as file:
        file.write(b'{"kind": "metrics", "st')
    again = open_journal("a")
    assert again is not None
    again.append("end", status="FINISHED", time=2)
    said = [event.said for event in again.read()]
    assert [one["kind"] for one in said] == ["metrics"] * 3 + ["end"] and said[0]["values"] == {"loss": "nan"}
    assert open_journal("a") is None, "a second holder"
    again.close(discard=True)
    assert not (spool / "a").exists()


def test_events_longer_than_a_chunk_and_a_full_disk(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipelines.tracking_journal.CHUNK", 16)
    journal = open_journal("a")
    assert journal is not None
    journal.append("tags", values={"long": "x" * 100})
    (event,) = journal.read()
    assert event.said["values"] == {"long": "x" * 100}

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        journal.append("tags", values={})
        journal.append("tags", values={})
    assert [r.getMessage() for r in caplog.records] == [f"{journal.folder} takes nothing more for MLflow: "
                                                        "No space left on device"]  # fmt: skip
    journal.close(discard=True)


def test_a_sent_journal_is_emptied_when_it_is_long(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking_journal.COMPACT", 100)
    journal = open_journal("a")
    assert journal is not None
    for _ in range(5):
        journal.append("tags", values={"a": "b"})
    journal.mark(journal.read()[-1].end)
    assert journal.size == 0 and journal.sent == 0
    journal.append("tags", values={"c": "d"})
    assert [event.said["values"] for event in journal.read()] == [{"c": "d"}]
    journal.close(discard=False)
    (spool / "a" / SENT).write_text("99999")  # killed between emptying and marking
    again = open_journal("a")
    assert again is not None and again.is_sent
    again.close(discard=True)


# --- no server at all -----------------------------------------------------------------------------------------


def test_without_a_server_the_run_goes_on_and_one_line_says_so(caplog: pytest.LogCaptureFixture, spool: Path) -> None:
    address, began = f"http://127.0.0.1:{free_port()}", time.monotonic()
    with caplog.at_level(logging.WARNING), tracking.track("x", uri=address) as run:
        for step in range(1000):
            run.metrics({"loss": 1.0}, step)
        run.artifact(__file__)
    assert time.monotonic() - began < 10
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{address}: the MLflow server does not answer") and "maskbridge sync" in line
    assert "\n" not in line and run.run_id is None
    (left,) = left_behind()
    kinds = [event.said["kind"] for event in left.read()]
    assert kinds == ["begin"] + ["metrics"] * 1000 + ["artifact", "end"]
    left.close(discard=False)


def test_a_mute_server_holds_a_run_for_less_than_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        began = time.monotonic()
        with tracking.track("x", uri=f"http://127.0.0.1:{mute.getsockname()[1]}") as run:
            started = time.monotonic() - began
            run.metrics({"loss": 1.0})
        assert started < 10 and time.monotonic() - began < 20
    assert len(caplog.records) == 1


def test_a_spool_that_cannot_be_written_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKBRIDGE_SPOOL", str(tmp_path / "file"))
    with tracking.track("x", uri=f"http://127.0.0.1:{free_port()}") as run:
        run.metrics({"loss": 1.0})
    assert "is kept in" in caplog.records[0].getMessage()


# --- a server that comes and goes -----------------------------------------------------------------------------


def test_a_server_away_in_the_middle_gets_all_of_it_once(awake: tuple[str, Service], tmp_path: Path) -> None:
    address, service = awake
    (tmp_path / "early.txt").write_text("early")
    (tmp_path / "late.txt").write_text("late")
    with tracking.track("middle") as run:
        for step in range(50):
            run.metrics({"loss": float(step)}, step)
        run.artifact(tmp_path / "early.txt")
        assert run.flush()
        service.stop()
        for step in range(50, 120):
            run.metrics({"loss": float(step)}, step)
        run.params({"seed": 7})
        run.artifact(tmp_path / "late.txt")
        (tmp_path / "late.txt").write_text("changed afterwards")
        assert not run.flush()
    assert len(list(spool_folder().iterdir())) == 1
    service.start()
    with tracking.track("the next run"):  # sends what is left before it ends
        pass
    assert not list(spool_folder().iterdir())
    (found,) = runs_named(address, "middle")
    assert found.info.run_id == run.run_id and found.info.status == "FINISHED"
    assert curve(address, found.info.run_id) == [(step, float(step)) for step in range(120)]
    assert found.data.params["seed"] == "7"
    client = connect(address)
    assert sorted(file.path for file in client.list_artifacts(found.info.run_id)) == ["early.txt", "late.txt"]
    assert Path(client.download_artifacts(found.info.run_id, "late.txt", str(tmp_path))).read_text() == "late"


KILLED = """
import os, signal, sys
from pipelines import tracking
with tracking.track("killed", key="killed-run") as run:
    for step in range(int(sys.argv[1]), int(sys.argv[2])):
        run.metrics({"loss": float(step)}, step)
    if sys.argv[3] == "flush":
        run.flush()
    if sys.argv[3] != "end":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def train(first: int, last: int, how: str) -> int:
    command = [sys.executable, "-c", KILLED, str(first), str(last), how]
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ, timeout=240).returncode


def test_after_kill_9_without_a_server_all_arrives_once_by_hand(
    awake: tuple[str, Service], capsys: pytest.CaptureFixture[str]
) -> None:
    address, service = awake
    service.stop()
    assert train(0, 300, "kill") == -signal.SIGKILL
    assert command_line(["sync"]) == 3, "the server is away still"
    assert "1 runs wait" in capsys.readouterr().err
    service.start()
    assert command_line(["sync"]) == 0
    assert capsys.readouterr().out == f"1 runs sent to {address}\n"
    (found,) = runs_named(address, "killed")
    assert found.info.status == "KILLED"
    assert curve(address, found.info.run_id) == [(step, float(step)) for step in range(300)]
    assert command_line(["sync"]) == 0 and len(runs_named(address, "killed")) == 1

    assert train(300, 400, "end") == 0  # resumed: the same run
    (again,) = runs_named(address, "killed")
    assert again.info.run_id == found.info.run_id and again.info.status == "FINISHED"
    assert curve(address, again.info.run_id) == [(step, float(step)) for step in range(400)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["create_run", "log_batch", "set_terminated", "log_artifact", "log_inputs"])
def test_a_sender_killed_after_the_answer_and_before_its_mark_doubles_nothing(
    awake: tuple[str, Service], moment: str, tmp_path: Path
) -> None:
    """The worst moment: MLflow has taken it, and the journal does not know."""
    address, _ = awake
    name = f"doubled {moment}"
    code = f"""
import os, signal
from mlflow.tracking import MlflowClient
from pipelines import tracking
real = MlflowClient.{moment}
def then_die(*a, **k):
    real(*a, **k)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.{moment} = then_die
with tracking.track({name!r}, key="k-{moment}") as run:
    run.metrics({{"loss": 1.0}}, 1)
    run.artifact({__file__!r})
    run.data({{"scene.tif": "ab" * 32}}, "train")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=os.environ, timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert command_line(["sync"]) == 0
    (found,) = runs_named(address, name)
    if moment != "create_run":  # it died before it had anything to say
        assert curve(address, found.info.run_id) == [(1, 1.0)]
        assert len(found.inputs.dataset_inputs) == 1


def test_what_the_store_refuses_is_told_and_the_rest_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    uri = f"{SQLITE}{tmp_path}/mlflow.db"
    with tracking.track("refused", uri=uri) as run:

        def refuse(*_: object, **__: object) -> None:
            raise MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)

        monkeypatch.setattr(run.client, "log_inputs", refuse)
        run.data({"scene": "ab" * 32})
        run.metrics({"loss": 1.0})
    assert "does not take inputs of refused: no such thing" in caplog.text
    assert connect(uri).get_run(run.run_id).data.metrics == {"loss": 1.0}
    assert not list(spool_folder().iterdir())


def test_a_store_that_is_gone_for_good_is_not_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = open_journal("a")
    assert journal is not None
    uri = f"{SQLITE}{tmp_path}/gone/mlflow.db"
    journal.describe(address=uri, name="x", experiment="maskbridge", tags={}, began_ms=1)
    journal.close(discard=False)
    assert command_line(["sync"]) == 3
    assert "the file is gone; 1 runs wait" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()


def test_an_address_with_a_password_is_kept_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spool: Path
) -> None:
    port = free_port()
    with tracking.track("x", uri=f"http://me:canary-in-uri@127.0.0.1:{port}"):
        pass
    assert "canary" not in "".join(file.read_text() for file in spool.rglob("*") if file.is_file())
    assert command_line(["sync"]) == 3
    assert "needs its password" in capsys.readouterr().err
    assert tracking_sender.waiting() == {f"http://***@127.0.0.1:{port}": 1}


def test_a_living_run_s_journal_is_left_alone(spool: Path) -> None:
    held = open_journal("alive")
    assert isinstance(held, Journal)
    held.describe(address="sqlite:///x", name="x")
    assert list(left_behind()) == [] and json.loads((spool / "alive" / "run.json").read_text())["name"] == "x"
    held.close(discard=True)
