"""The whole road, with nobody watching: server, schedule, worker, run, files; and what a crash leaves of it.

A real server and real workers, as the repository's prefect.yaml sets them up. Killed at any moment, a run resumes, does
at most one shard again, gives the same bytes, and keeps no slot.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.schemas.schedules import CronSchedule

from flows.runs import RESUMED_LABEL
from pipelines.sinks.folder import sha256
from tests.conftest import REPOSITORY
from tests.flows.broken import FILES, Broken, by_command
from tests.flows.service import Service, wait_for

OWN_SERVER = True


def test_a_cron_schedule_fires_by_itself_and_gives_the_commands_bytes(
    service: Service, rgb_bundle: Path, real_scene: Path, tmp_path: Path
) -> None:
    command = by_command(rgb_bundle, real_scene, tmp_path / "command")
    worker = service.start_worker()
    with service.client() as client:
        deployment = client.read_deployment_by_name("segment-scenes/segment-scenes")
        (nightly,) = deployment.schedules
        assert nightly.active and nightly.schedule.cron == "0 3 * * *"
        # Tonight is now: every ten seconds (the sixth field), and nothing else is changed.
        often = CronSchedule(cron="* * * * * */10", timezone="UTC")
        client.update_deployment_schedule(deployment.id, nightly.id, active=True, schedule=often)

        def first_run() -> Any:
            runs = [r for r in client.read_flow_runs() if r.deployment_id == deployment.id and r.state.is_final()]
            return min(runs, key=lambda r: r.end_time) if runs else None

        try:
            run = wait_for("a scheduled run", first_run, 400, 0.5)
        finally:
            client.update_deployment_schedule(deployment.id, nightly.id, active=False, schedule=nightly.schedule)
            worker.kill()  # later tests have a worker of their own, and no other may take their runs
            worker.wait()
        assert run.state.is_completed(), run.state
        assert run.auto_scheduled and run.created_by is not None
        assert run.parameters["scenes"] == f"{service.folder}/data/scenes"
        shown = {artifact.type for artifact in client.read_artifacts() if artifact.key}
        assert shown >= {"progress", "image", "table", "markdown"}  # a link is a markdown
        (subject,) = [r for r in client.read_flow_runs() if r.parent_task_run_id]
        assert subject.name == f"segment-{real_scene.stem}" and subject.state.is_completed()
    assert command.wait(300) == 0
    folder = service.folder / "results" / "scenes" / real_scene.stem
    for name in FILES:
        assert sha256(folder / name) == sha256(tmp_path / "command" / real_scene.stem / name), name


def test_a_worker_that_is_stopped_leaves_no_zombie(broken: Broken, truth: dict[str, str]) -> None:
    """SIGTERM: the worker kills its run and says nothing; without the reaper it would be `Running` for ever."""
    broken.wait_until("between shards")
    broken.strike("worker, politely")
    broken.check(truth)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["flow", "server", "worker", "worker, politely"])
@pytest.mark.parametrize("moment", ["between shards", "finishing", "starting"])
def test_killed_at_any_moment_it_resumes(broken: Broken, truth: dict[str, str], victim: str, moment: str) -> None:
    broken.wait_until(moment)
    broken.strike(victim)
    broken.check(truth)


def has_signal(pid: int) -> bool:
    """Whether a signal waits for a suspended process; or it is gone."""
    try:
        return not re.search(r"^ShdPnd:\s*0+$", Path(f"/proc/{pid}/status").read_text(), re.M)
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["between shards", "finishing"])
def test_a_cancelled_run_leaves_no_half_files_and_no_slot(broken: Broken, truth: dict[str, str], moment: str) -> None:
    """As the button on Prefect's page does it; a run that is started later uses the shards that were finished."""
    from prefect.states import Cancelling

    broken.wait_until("starting")
    process = broken.process()
    assert process is not None
    broken.wait_until(moment)
    process.suspend()  # the moment lasts until the worker has heard of it
    with broken.service.client() as client:
        client.set_flow_run_state(broken.id, Cancelling())
    wait_for("the worker's signal", lambda: has_signal(process.pid), 60)
    process.resume()
    wait_for("the cancellation", lambda: broken.read().state.is_cancelled(), 60, 0.5)
    wait_for("the process' end", lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 30)
    wait_for("the sweep", lambda: not list(broken.out.rglob(".*.partial-*")), 30, 0.5)
    broken.leave_nothing_half_done()
    broken.wait_for_free_slots()
    assert RESUMED_LABEL not in broken.read().labels, "nobody starts it again"
    broken.id = broken.start()
    broken.check(truth)


def test_prefect_yaml_names_what_there_is() -> None:
    """Every deployment's flow exists, and its parameters are the flow's."""
    import importlib

    import yaml

    described = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    names = [deployment["name"] for deployment in described["deployments"]]
    assert len(names) == len(set(names))
    assert {"segment-scenes", "segment-studies", "count-folder", "train", "evaluate", "promote"} <= set(names)
    assert "retrain-when-drifting" in names
    for deployment in described["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
        known = set(flow.parameters.properties)
        given = set(deployment.get("parameters", {}))
        for trigger in deployment.get("triggers", []):
            given |= set(trigger.get("parameters", {}))
        assert given <= known, f"{deployment['name']}: {given - known}"
        assert deployment["tags"] and deployment["concurrency_limit"]["limit"] >= 1
        assert deployment["work_pool"]["name"] == "maskbridge"
