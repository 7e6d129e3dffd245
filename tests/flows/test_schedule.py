"""The whole road, with nobody watching: server, schedule, worker, run, files; and what a crash leaves of it.

A real server and real workers, as the repository's prefect.yaml sets them up. Killed at any moment, a run resumes, does
at most one shard again, gives the same bytes, and keeps no slot.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psutil
import pytest
from affine import Affine
from prefect.client.schemas.schedules import CronSchedule

from flows.reap import ReapOptions, reap
from flows.runs import PROCESS_LABEL, RESUMED_LABEL
from pipelines.sinks.folder import sha256
from tests.conftest import REPOSITORY
from tests.flows.service import Service, wait_for
from tests.models import adapter, tiny_bundle

FILES = ("semantic.tif", "objects.parquet")
SHARDS = 8  # rows of eight tiles, a third of a second each: time enough to hit a moment between them
OPTIONS = {
    **{"tile": 64, "overlap": 16, "score": 0.05, "min_area": 1, "device": "cpu", "precision": "fp32"},
    **{"shard_tiles": 8},
}
COMMAND = [
    *("--tile", "64", "--overlap", "16", "--score", "0.05", "--min-area", "1", "--device", "cpu"),
    *("--precision", "fp32", "--threads", "1"),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A real scene where the shared data are: tree crowns, 400 × 400 px; else noise of that size."""
    folder = tmp_path_factory.mktemp("scene")
    with suppress(pytest.skip.Exception):
        real = request.getfixturevalue("shared_data") / "satellite" / "crowns" / "OSBS_029.tif"
        return Path(shutil.copy(real, folder / "crowns.tif"))
    import rasterio

    picture = np.random.default_rng(0).integers(0, 255, (3, 400, 400)).astype(np.uint8)
    place = {"crs": "EPSG:32617", "transform": Affine(0.1, 0, 400_000, 0, -0.1, 3_300_000)}
    with rasterio.open(folder / "crowns.tif", "w", "GTiff", 400, 400, 3, dtype="uint8", **place) as file:
        file.write(picture)
    return folder / "crowns.tif"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rgb = adapter(channels=("red", "green", "blue"), tile=128, tile_overlap=32)
    thresholds = {"score": 0.05, "semantic": 0.3}
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", rgb, thresholds=thresholds)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, bundle: Path, scene: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    scenes = folder / "data" / "scenes"
    scenes.mkdir(parents=True)
    shutil.copy(scene, scenes)
    os.utime(scenes / scene.name, (time.time() - 3600,) * 2)  # it was there yesterday
    made = Service(folder, MASKBRIDGE_MODEL=str(bundle))
    try:
        made.start_server()
        made.deploy()
        yield made
    finally:
        made.stop()


def by_command(bundle: Path, scene: Path, out: Path, *words: str) -> subprocess.Popen:
    """The command line doing the same, in the background."""
    return subprocess.Popen(
        [Path(sys.executable).parent / "maskbridge", "predict", bundle, scene, "--out", out, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def truth(service: Service, bundle: Path, scene: Path) -> dict[str, str]:
    """Hashes of what an unbroken run of the command leaves."""
    out = service.folder / "command"
    assert by_command(bundle, scene, out, *COMMAND).wait(300) == 0
    return {name: sha256(out / scene.stem / name) for name in FILES}


def test_a_cron_schedule_fires_by_itself_and_gives_the_commands_bytes(
    service: Service, bundle: Path, scene: Path, tmp_path: Path
) -> None:
    command = by_command(bundle, scene, tmp_path / "command")
    service.start_worker()
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
        assert run.state.is_completed(), run.state
        assert run.auto_scheduled and run.created_by is not None
        assert run.parameters["scenes"] == f"{service.folder}/data/scenes"
        shown = {artifact.type for artifact in client.read_artifacts() if artifact.key}
        assert shown >= {"progress", "image", "table", "markdown"}  # a link is a markdown
        (subject,) = [r for r in client.read_flow_runs() if r.parent_task_run_id]
        assert subject.name == f"segment-{scene.stem}" and subject.state.is_completed()
    assert command.wait(300) == 0
    folder = service.folder / "results" / "scenes" / scene.stem
    for name in FILES:
        assert sha256(folder / name) == sha256(tmp_path / "command" / scene.stem / name), name


class Broken:
    """One run of one scene, and what is known of it."""

    def __init__(self, service: Service, bundle: Path, scene: Path, out: Path) -> None:
        self.service, self.out, self.stem = service, out, scene.stem
        self.worker = service.start_worker()
        parameters = {"source": str(scene), "model": str(bundle), "out": str(out), "options": OPTIONS}
        executor = {"kind": "serial", "threads": 1}
        self.id: UUID = service.run(
            "segment-scene/segment-scene", **parameters, executor=executor, keep_shards=True, overwrite=True
        )
        self.finished: dict[str, int] = {}

    def shards(self) -> dict[str, int]:
        """Finished shards and when they were."""
        return {path.name: path.stat().st_mtime_ns for path in self.out.glob(".shards/*/shard-*.json")}

    def wait_until(self, moment: str) -> None:
        if moment == "starting":
            wait_for("the run's start", self.process)
            return
        if moment == "finishing":
            wait_for("the last files", lambda: list(self.out.glob(f".{self.stem}.*partial*")), 300, 0.005)
        else:
            wait_for("three shards", lambda: len(self.shards()) >= 3, 300, 0.01)
        self.finished = self.shards()

    def read(self) -> Any:
        with self.service.client() as client:
            return client.read_flow_run(self.id)

    def process(self) -> psutil.Process | None:
        """The flow's process, which the run named."""
        label = self.read().labels.get(PROCESS_LABEL)
        return psutil.Process(int(label.rsplit(":", 2)[1])) if label else None

    def strike(self, victim: str) -> None:
        """Kill one of the three, and start it again where it is a service."""
        if victim == "flow":
            process = self.process()
            assert process is not None
            process.kill()
        elif victim == "server":
            self.service.kill_server()
            time.sleep(2)
            self.service.start_server()
        else:
            self.worker.send_signal(signal.SIGTERM if victim == "worker, politely" else signal.SIGKILL)
            self.worker.wait(90)
            self.worker = self.service.start_worker()

    def resume(self) -> Any:
        """Reap until the run is at its end, as the deployment `reap` does every few minutes."""

        def ended() -> Any:
            with self.service.client(), suppress(httpx.HTTPError):
                reap(ReapOptions(silent_s=60))
                run = self.read()
                if RESUMED_LABEL in run.labels:  # another run goes on with it
                    self.id = UUID(run.labels[RESUMED_LABEL])
                return run if run.state.is_completed() or run.state.is_failed() else None
            return None

        return wait_for("the run's end", ended, 400, 1.0)

    def check(self, truth: dict[str, str]) -> None:
        run = self.resume()
        assert run.state.is_completed(), run.state
        assert [p.name for p in self.out.iterdir() if not p.name.startswith(".")] == [self.stem], "one folder"
        assert not list(self.out.rglob("*.partial-*")), "nothing half-written"
        assert {name: sha256(self.out / self.stem / name) for name in FILES} == truth
        after = self.shards()
        assert len(after) == SHARDS
        again = [name for name, time_ns in self.finished.items() if after[name] != time_ns]
        assert not again, "a finished shard is never computed again, so at most the one in work was"
        with self.service.client() as client:
            mine = [r for r in client.read_flow_runs() if r.deployment_id == run.deployment_id]
            assert all(r.state.is_final() for r in mine), "nothing stays running"

            def is_free() -> bool:
                limit = client.read_deployment_by_name("segment-scene/segment-scene").global_concurrency_limit
                return limit.limit == 4 and limit.active_slots == 0

            wait_for("free slots", is_free, 10)


@pytest.fixture
def broken(service: Service, bundle: Path, scene: Path, tmp_path: Path) -> Iterator[Broken]:
    made = Broken(service, bundle, scene, tmp_path / "out")
    yield made
    made.worker.kill()
    made.worker.wait()


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
