"""Prefect without a server to start: one embedded server for a block, its history in a folder of ours.

Left alone, a flow without PREFECT_API_URL starts a server of its own too, but logs its life, writes to
~/.prefect, and each flow run ends with a second of waiting for its heartbeat thread. A machine with a real
server (PREFECT_API_URL) needs nothing of this: call the flows.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import InputError
from pipelines.samples import cache_folder

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import TaskRun

log = logging.getLogger(__name__)

# A first start migrates the database: 6 to 12 s on two idle cores, 136 s seen on busy ones.
START_TIMEOUT_S = 300

DRAIN_S = 10  # a server that died takes no events; the block's own error is to be seen, not a hang

SETTLE_S = 20  # at most this long for the last records
QUIET_S = 0.5  # records come 10 to 50 ms apart
ABANDONED_S = 4.0  # a task run of a killed flow never ends
POLL_S = 0.1
PAGE = 200  # the API's own limit
UNSETTLED = ("Pending", "Running", "Scheduled")

# Prefect gives these levels and handlers of their own when it is imported, before any settings of ours.
LOGGERS = ("prefect", "prefect.flow_runs", "prefect.task_runs", "prefect.server", "prefect.client")


def default_home() -> Path:
    """Where runs without a server are recorded: $PREFECT_HOME, else beside the samples' cache."""
    named = os.environ.get("PREFECT_HOME")
    return Path(named).expanduser() if named else cache_folder().parent / "prefect"


@contextmanager
def serverless(home: str | Path | None = None, *, level: int = logging.WARNING) -> Iterator[str]:
    """Run the block's flows against an embedded server with its database in `home`; yields the API's address.

    PREFECT_API_URL is not looked at. The server takes 4 to 12 s to start, serves every flow of the block and is
    stopped at its end, after its records were written; `PREFECT_HOME=home prefect server start` shows them later.
    Prefect's own messages below `level` are not shown. InputError where `home` cannot be written to.
    """
    from prefect import settings
    from prefect.server.api.server import SubprocessASGIServer

    home = Path(home).resolve() if home is not None else default_home().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{home}: cannot keep Prefect's records here: {error.strerror or error}") from error
    updates = {
        settings.PREFECT_HOME: home,
        settings.PREFECT_API_URL: None,
        settings.PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        settings.PREFECT_LOCAL_STORAGE_PATH: home / "storage",
        settings.PREFECT_SERVER_ANALYTICS_ENABLED: False,
        settings.PREFECT_LOGGING_TO_API_ENABLED: False,  # our logs go to the terminal; 20 ms a record saved
        # No heartbeats: they find dead workers, and joining their thread costs 1.0 s at the end of each run.
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with _log_levels(level), settings.temporary_settings(updates):
        server = SubprocessASGIServer(port=_free_port())
        try:
            server.start(timeout=START_TIMEOUT_S)
        except RuntimeError as error:
            server.stop()
            raise InputError(f"{home}: Prefect's embedded server does not start: {error}") from error
        try:
            with settings.temporary_settings({settings.PREFECT_API_URL: server.api_url}):
                _drain()  # a worker of an earlier server would take this one's events there
                try:
                    yield server.api_url
                finally:
                    _drain()
                    _settle()
        finally:
            server.stop()


def final_task_runs(flow_run: "UUID", count: int, timeout_s: float = 60.0) -> "list[TaskRun]":
    """Task runs of an ended flow run, once at least `count` are recorded and all in a final state.

    Prefect records task runs behind the flow's back, seconds late on a busy machine: reading them at once
    finds too few, some still running. TimeoutError where they do not come.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        runs = task_runs(flow_run)
        if len(runs) >= count and all(run.state is not None and run.state.is_final() for run in runs):
            return runs
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(runs)} of {count} task runs of {flow_run} recorded after {timeout_s:.0f} s")
        time.sleep(POLL_S)


def _settle() -> None:
    """Wait until the server has written the task runs it was told of: nothing open, and no news for a while."""
    import httpx
    from prefect.exceptions import PrefectException

    deadline = time.monotonic() + SETTLE_S
    seen, quiet_since = None, time.monotonic()
    try:
        while time.monotonic() < deadline:
            states = sorted((str(run.id), run.state_name or "") for run in task_runs())
            if states != seen:
                seen, quiet_since = states, time.monotonic()
            unsettled = any(name in UNSETTLED for _, name in states)
            if time.monotonic() - quiet_since > (ABANDONED_S if unsettled else QUIET_S):
                return
            time.sleep(POLL_S)
    except (httpx.HTTPError, PrefectException) as error:
        log.warning("Prefect's embedded server is gone, its last records are lost: %s", error)


def task_runs(flow_run: "UUID | None" = None) -> "list[TaskRun]":
    """Task runs of one flow run, or the 200 newest of all."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])) if flow_run else None
    with get_client(sync_client=True) as client:
        found: list[TaskRun] = []
        while True:
            page = client.read_task_runs(
                flow_run_filter=chosen,
                sort=TaskRunSort.EXPECTED_START_TIME_DESC,
                limit=PAGE,
                offset=len(found),
            )
            found += page
            if flow_run is None or len(page) < PAGE:
                return found


@contextmanager
def _log_levels(level: int) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


def _drain() -> None:
    """Let the last events out (task runs reach the database through them) and let go of the server they went to."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=DRAIN_S, at_exit=False)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
