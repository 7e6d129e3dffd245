"""What is old goes: Prefect's runs, files of MLflow runs, and what dead runs left on disk. Dry unless told otherwise.

The deployment looks every week and shows what it would remove; who has read that sets `dry_run` to false. Logs and
artifacts of removed runs go with Prefect's own vacuum (PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED=events,orphans).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.states import Completed, State

from adapters.errors import InputError
from flows.artifacts import show_table
from flows.runs import begin
from pipelines.retention import (
    DAY_S,
    RetentionPolicy,
    Stale,
    remove_artifacts,
    remove_file,
    stale_artifacts,
    stale_files,
)

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

PAGE = 200


@task(name="clean-files", cache_policy=NO_CACHE)
def clean_files(policy: RetentionPolicy, dry_run: bool) -> list[tuple[Stale, bool]]:
    """Shards, half-written files and spools, each with whether it was removed."""
    return [(one, not dry_run and remove_file(one)) for one in stale_files(policy)]


@task(name="clean-artifacts", retries=1, retry_delay_seconds=10, cache_policy=NO_CACHE)
def clean_artifacts(policy: RetentionPolicy, dry_run: bool) -> list[tuple[Stale, bool]]:
    """Files of old MLflow runs."""
    from pipelines.tracking_store import connect, default_uri, readable

    uri = default_uri()
    client = connect(uri)
    with readable(uri):
        return [(one, not dry_run and remove_artifacts(client, uri, one)) for one in stale_artifacts(client, policy)]


@task(name="clean-runs", retries=1, retry_delay_seconds=10, cache_policy=NO_CACHE)
def clean_runs(policy: RetentionPolicy, dry_run: bool) -> list[tuple[Stale, bool]]:
    """Prefect's own runs that ended long ago."""
    from prefect.exceptions import ObjectNotFound

    done = []
    with get_client(sync_client=True) as client:
        for run in list(_old_runs(client, policy)):
            assert run.end_time is not None
            stale = Stale("runs", str(run.id), (_now() - run.end_time).total_seconds() / DAY_S, 0)
            if not dry_run:
                try:
                    client.delete_flow_run(run.id)
                except ObjectNotFound:
                    log.debug("%s was removed by somebody else", run.id)
            done.append((stale, not dry_run))
    return done


@flow(name="clean-up", flow_run_name="clean-up")
def clean_up(
    policy: RetentionPolicy = RetentionPolicy(),  # noqa: B008  (frozen)
    dry_run: bool = True,
) -> State[dict[str, Any]]:
    """Look for what is older than the policy allows, and remove it where `dry_run` is off.

    The result says how many were `found` and `removed` of each kind, and their `bytes`. A store that is away costs its
    own kind: the run is then `Partial`.
    """
    begin()
    everything: list[tuple[Stale, bool]] = []
    faults = []
    for step in (clean_files, clean_artifacts, clean_runs):
        state: State[Any] = step(policy, dry_run, return_state=True)
        result: Any = state.result(raise_on_failure=False)
        if state.is_completed():
            everything += result
        elif isinstance(result, InputError):
            faults.append(str(result))
        else:
            state.result()
    outcome = _summary(everything)
    if outcome:
        rows = [{"kind": kind, **numbers} for kind, numbers in outcome.items()]
        show_table("clean-up", "would be removed" if dry_run else "removed", rows)
    for stale, removed in everything:
        log.info("%s %s: %.0f days, %d bytes", "removed" if removed else "found", stale.what, stale.days, stale.bytes)
    if faults:
        return Completed(name="Partial", message="; ".join(faults), data=outcome)
    return Completed(data=outcome)


def _summary(everything: list[tuple[Stale, bool]]) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for stale, removed in everything:
        numbers = kinds.setdefault(stale.kind, {"found": 0, "removed": 0, "bytes": 0})
        numbers["found"] += 1
        numbers["removed"] += removed
        numbers["bytes"] += stale.bytes
    return kinds


def _now() -> datetime:
    return datetime.now(UTC)


def _old_runs(client: Any, policy: RetentionPolicy) -> Iterator[FlowRun]:
    """Ended runs whose end is older than the policy; children of one another come as they come."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime

    before = _now() - timedelta(days=policy.runs)
    old = FlowRunFilter(end_time=FlowRunFilterEndTime(before_=before))
    offset = 0
    while True:
        page = client.read_flow_runs(flow_run_filter=old, limit=PAGE, offset=offset)
        yield from (run for run in page if run.state is not None and run.state.is_final())
        if len(page) < PAGE:
            return
        offset += PAGE
