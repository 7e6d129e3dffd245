"""The embedded server: runs are recorded where they were meant to be, and nothing outlives the block."""

import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from adapters.errors import InputError
from flows.runtime import default_home, final_task_runs, serverless


@task
def double(number: int) -> int:
    return 2 * number


@flow(name="doubles")
def doubles(count: int) -> int:
    return sum(future.result() for future in [double.submit(number) for number in range(count)])


def recorded(home: Path) -> tuple[list[tuple[str, str]], list[tuple[str]]]:
    with sqlite3.connect(home / "prefect.db") as database:
        flows = database.execute(
            "select flow.name, flow_run.state_type from flow_run join flow on flow.id = flow_run.flow_id"
        ).fetchall()
        return flows, database.execute("select state_type from task_run").fetchall()


def test_runs_are_kept_in_the_named_home_and_the_server_is_gone_afterwards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Inside the harness of this folder: the block's server must not be mixed up with another one."""
    assert doubles(2) == 2  # leaves an events worker bound to the harness
    before = PREFECT_API_URL.value(), PREFECT_HOME.value()
    with serverless(tmp_path / "home") as address:
        assert PREFECT_API_URL.value() == address != before[0]
        assert PREFECT_HOME.value() == tmp_path / "home"
        assert doubles(4) == 12
    assert recorded(tmp_path / "home") == ([("doubles", "COMPLETED")], [("COMPLETED",)] * 4)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/health", timeout=2)
    assert (PREFECT_API_URL.value(), PREFECT_HOME.value()) == before
    assert doubles(3) == 6, "the earlier server serves again"
    # On a busy machine Prefect's own worker warns that it is still sending; that is no word of the server's.
    heard = [line for line in "".join(capfd.readouterr()).splitlines() if "Still processing items" not in line]
    assert not heard, "an embedded server is not heard of"


def test_task_runs_are_waited_for() -> None:
    state = doubles(3, return_state=True)
    assert state.state_details.flow_run_id is not None
    runs = final_task_runs(state.state_details.flow_run_id, 3)
    assert [run.state_name for run in runs] == ["Completed"] * 3
    with pytest.raises(TimeoutError, match="3 of 4 task runs"):
        final_task_runs(state.state_details.flow_run_id, 4, timeout_s=0.2)


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file/home: cannot keep Prefect's records here"),
        serverless(tmp_path / "file" / "home"),
    ):
        pass


def test_default_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path))
    assert default_home() == tmp_path / "prefect"
