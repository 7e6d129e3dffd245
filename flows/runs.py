"""What every flow of ours does around its work: say which process it is, pin its model, tell bad input from bad luck.

None of it may end a run. The server may be away for a moment; the work goes on, and what could not be told is logged.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from adapters.errors import InputError

log = logging.getLogger(__name__)

PROCESS_LABEL = "maskbridge.process"  # host:pid:started, by which a reaper on that host knows a dead run
MODEL_LABEL = "maskbridge.model"
ORIGIN_LABEL = "maskbridge.origin"  # the run whose work this one goes on with, see flows.reap
RESUMED_LABEL = "maskbridge.resumed-by"
ATTEMPT_LABEL = "maskbridge.attempt"
_acting_for: ContextVar[str | None] = ContextVar("acting_for", default=None)
PARTIAL = re.compile(r"\..*\.partial-(?P<host>\w+)-(?P<pid>\d+)-\d+")


@contextmanager
def at_leisure(what: str) -> Iterator[None]:
    """For calls the run can do without: tried once, and a server that is away costs a line in the log."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        try:
            yield
        except (httpx.HTTPError, PrefectException) as error:
            log.warning("%s was not told to Prefect: %s", what, str(error).splitlines()[:1])


def process_label(pid: int | None = None) -> str:
    """`host:pid:started` of this process; a pid alone may be another's after a restart."""
    process = psutil.Process(pid)
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def begin() -> None:
    """Write on the flow run which process works at it, and refuse paths outside the configured roots.

    Call it first in a flow. InputError for such a path.
    """
    from pipelines.confinement import confine

    with at_leisure("the run's process"):
        _label({PROCESS_LABEL: process_label()})
    confine(runtime.flow_run.parameters)


def pinned(model: str) -> str:
    """The version `model` names when the run starts first; a resumed run keeps it, wherever the alias went since."""
    from pipelines.bundle import REGISTRY

    if not model.startswith(REGISTRY):
        return model
    known = _labels().get(MODEL_LABEL)
    if known:
        return str(known)
    from pipelines.registry import resolve

    found = resolve(model).reference
    with at_leisure("the run's model"):
        _label({MODEL_LABEL: found})
    return found


@contextmanager
def on_behalf_of_this_run() -> Iterator[None]:
    """Runs that are called in the block are parts of this one: resumed, it makes new ones of other ids."""
    token = _acting_for.set(root_run())
    try:
        yield
    finally:
        _acting_for.reset(token)


def root_run() -> str:
    """Id of this run, or of the one it is a part of or goes on with: the same however often it is resumed."""
    return _acting_for.get() or _labels().get(ORIGIN_LABEL) or str(runtime.flow_run.id)


def is_bad_luck(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a failed task is worth another try: bad input stays bad. For `retry_condition_fn`."""
    return not isinstance(state.result(raise_on_failure=False), InputError)


def is_repeated() -> bool:
    """Whether this work was begun before, and its run crashed."""
    run = _flow_run()
    return run is not None and (run.run_count > 1 or ORIGIN_LABEL in (run.labels or {}))


def sweep(out: str | Path) -> None:
    """Remove what killed processes of this host left half-written in `out` and among its shards; nothing else."""
    import shutil

    from pipelines.sinks.folder import HOST

    for folder in (Path(out), *Path(out).glob(".shards/*")):
        for left in folder.glob(".*.partial-*"):
            found = PARTIAL.match(left.name)
            if found and found["host"] == HOST and not psutil.pid_exists(int(found["pid"])):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def sweep_after(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of flows with a parameter `out`: after a cancellation or a crash nothing half-written is left."""
    out = flow_run.parameters.get("out")
    if out:
        sweep(out)


def _flow_run() -> Any:
    """The run as the server has it; None where there is none to ask."""
    if not runtime.flow_run.id:
        return None
    with at_leisure("nothing"), get_client(sync_client=True) as client:
        return client.read_flow_run(runtime.flow_run.id)
    return None


def _labels() -> dict[str, Any]:
    run = _flow_run()
    return dict(run.labels or {}) if run is not None else {}


def _label(labels: dict[str, Any]) -> None:
    if runtime.flow_run.id:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(runtime.flow_run.id, labels)
