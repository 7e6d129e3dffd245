"""Runs whose process is gone: told so, their slot freed, and their work gone on with where it was.

A worker that is stopped with SIGTERM kills its runs and leaves them `Running` for ever, with their concurrency slot
(seen on Prefect 3.8.8); one that is killed between taking a run and starting it leaves it `Pending`. A run is dead when
the process it named is not there any more on this host, or when nothing was heard of it for longer than any heartbeat
takes. Dead runs are set to Crashed, which frees the slot; for those of deployments a new run goes on where they were.

    python -m flows.reap            once, now; the deployment `reap` does it every few minutes
    python -m flows.reap --watch    the automation that does the same from inside the server is made or renewed
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psutil
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed
from pydantic import Field

from flows.artifacts import show_table
from flows.runs import ATTEMPT_LABEL, MODEL_LABEL, ORIGIN_LABEL, PROCESS_LABEL, RESUMED_LABEL
from pipelines.config import Strict

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

HEARTBEAT = "prefect.flow-run.heartbeat"
WATCH = "maskbridge: runs without a heartbeat"
REAPED = "Reaped"  # name of the Crashed state that is set here
RESUMED = "resumed"  # tag of runs that go on with a dead one's work
FRESH_S = 5.0  # a run that began so lately may not have named its process yet
PAGE = 200
HELD = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)  # states that hold a slot


class ReapOptions(Strict):
    """When a run counts as dead, and how often it is started again."""

    silent_s: float = Field(150.0, ge=60, description="no heartbeat for so long; they come every 30 s")
    pending_s: float = Field(300.0, gt=0, description="taken by a worker and not begun for so long")
    resume: bool = Field(True, description="go on with dead runs of deployments")
    attempts: int = Field(3, gt=0, description="runs at one piece of work in all")
    crashed_s: float = Field(86_400.0, gt=0, description="runs that crashed so lately are gone on with too")


@dataclass(frozen=True)
class Reaped:
    """What was done with one run."""

    run: str
    id: str
    was: str
    why: str
    resumed: bool


def reap(options: ReapOptions = ReapOptions()) -> list[Reaped]:  # noqa: B008  (frozen)
    """Set dead runs to Crashed and start what can be resumed. Does nothing to runs that live; safe to repeat."""
    done = []
    with get_client(sync_client=True) as client:
        for run in _runs(client, *HELD):
            why = _cause_of_death(client, run, options)
            if why is None or str(run.id) == runtime.flow_run.id:
                continue
            cancelled = run.state_type == StateType.CANCELLING
            _end(client, run, why)
            done.append(
                Reaped(
                    run.name, str(run.id), run.state_name or "", why, not cancelled and _resume(client, run, options)
                )
            )
        lately = datetime.now(UTC) - timedelta(seconds=options.crashed_s)
        known = {one.id for one in done}
        for run in _runs(client, StateType.CRASHED):
            assert run.state is not None
            if str(run.id) not in known and run.state.timestamp > lately and _resume(client, run, options):
                done.append(Reaped(run.name, str(run.id), "Crashed", run.state.message or "", True))
    for one in done:
        log.warning("%s (%s) was %s: %s%s", one.run, one.id, one.was, one.why, "; starts again" if one.resumed else "")
    return done


@flow(name="reap", flow_run_name="reap")
def reap_runs(options: ReapOptions = ReapOptions()) -> list[dict[str, Any]]:  # noqa: B008
    """Find runs whose process is gone, free their slots and resume them. Returns what was done, a row a run."""
    rows = [asdict(one) for one in reap(options)]
    if rows:
        show_table("reap", "runs", rows)
    return rows


def watch(silent_s: float = 150.0) -> str:
    """Make, or make anew, the automation that sets a run to Crashed whose heartbeat stays away; returns its id.

    It lives in the server and so works while no worker does; resuming is left to `reap`.
    """
    from prefect.events import EventTrigger, Posture, ResourceSpecification
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore

    trigger = EventTrigger(
        posture=Posture.Proactive,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        after={HEARTBEAT},
        expect={"prefect.flow-run.*"},  # the next heartbeat, or the run's end under whatever name
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(seconds=silent_s),
    )
    action = ChangeFlowRunState(
        state=StateType.CRASHED, name=REAPED, message=f"no heartbeat for {silent_s:.0f} s", force=False
    )
    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(WATCH):
            client.delete_automation(old.id)
        made = client.create_automation(AutomationCore(name=WATCH, trigger=trigger, actions=[action]))
    return str(made)


def _cause_of_death(client: SyncPrefectClient, run: FlowRun, options: ReapOptions) -> str | None:
    """Why this run cannot be alive; None where it may be."""
    named = (run.labels or {}).get(PROCESS_LABEL)
    assert run.state is not None
    age = (datetime.now(UTC) - run.state.timestamp).total_seconds()
    # The label of an earlier start stays until the new one has written its own.
    if named and run.state_type != StateType.PENDING and age > FRESH_S:
        host, pid, started = str(named).rsplit(":", 2)
        if host == socket.gethostname():
            return None if _lives(int(pid), float(started)) else f"its process {pid} on {host} is gone"
    silent = (datetime.now(UTC) - max(run.state.timestamp, _last_heartbeat(client, run))).total_seconds()
    longest = options.pending_s if run.state_type == StateType.PENDING else options.silent_s
    return f"nothing was heard of it for {silent:.0f} s" if silent > longest else None


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _last_heartbeat(client: SyncPrefectClient, run: FlowRun) -> datetime:
    from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter

    since = datetime.now(UTC) - timedelta(days=1)
    wanted = EventFilter(
        event=EventNameFilter(name=[HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=since),
    )
    newest = client.read_events(wanted, limit=1).events
    return newest[0].occurred if newest else since


def _end(client: SyncPrefectClient, run: FlowRun, why: str) -> None:
    # Forced: the server's rules take a state from the run's own engine only, and that is dead.
    client.set_flow_run_state(run.id, Crashed(name=REAPED, message=why), force=True)


def _resume(client: SyncPrefectClient, run: FlowRun, options: ReapOptions) -> bool:
    """Start the run's deployment again, as a run that goes on where this one was. True where that is news.

    A new run, because a worker still holds the old one for as long as its hooks run, and one that is handed a run it
    holds ends with an error (seen on Prefect 3.8.8). A part of another run is resumed by that one; a run without a
    deployment by nobody.
    """
    labels = dict(run.labels or {})
    attempt = int(labels.get(ATTEMPT_LABEL, 1)) + 1
    apart = run.deployment_id is None or run.parent_task_run_id is not None
    if not options.resume or apart or RESUMED_LABEL in labels or attempt > options.attempts:
        return False
    assert run.deployment_id is not None
    known = {name: labels[name] for name in (ORIGIN_LABEL, MODEL_LABEL) if name in labels}
    made = client.create_flow_run_from_deployment(
        run.deployment_id,
        parameters=run.parameters,
        tags=[tag for tag in run.tags if tag != RESUMED] + [RESUMED],
        idempotency_key=f"resume-{run.id}",
        job_variables=run.job_variables,
        labels={ORIGIN_LABEL: str(run.id), **known, ATTEMPT_LABEL: attempt},
    )
    client.update_flow_run_labels(run.id, {RESUMED_LABEL: str(made.id)})
    return True


def _runs(client: SyncPrefectClient, *states: StateType) -> Iterator[FlowRun]:
    chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))))
    found: list[FlowRun] = []
    while True:  # read to the end first: what is done with a run takes it out of the list
        page = client.read_flow_runs(flow_run_filter=chosen, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            yield from found
            return


def main(words: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if words == ["--watch"]:
        watch()
        return 0
    if words:
        sys.stderr.write("usage: python -m flows.reap [--watch]\n")
        return 2
    reap()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
