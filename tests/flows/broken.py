"""One run of one scene on a real worker, and ways to end it: killed at a moment, cancelled, resumed, checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil

from flows.reap import ReapOptions, reap
from flows.runs import PROCESS_LABEL, RESUMED_LABEL
from pipelines.sinks.folder import sha256
from tests.flows.service import Service, wait_for

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


def by_command(bundle: Path, scene: Path, out: Path, *words: str) -> subprocess.Popen:
    """The command line doing the same, in the background."""
    return subprocess.Popen(
        [Path(sys.executable).parent / "maskbridge", "predict", bundle, scene, "--out", out, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


class Broken:
    """One run of one scene, and what is known of it."""

    def __init__(self, service: Service, bundle: Path, scene: Path, out: Path) -> None:
        self.service, self.bundle, self.scene = service, bundle, scene
        self.out, self.stem = out, scene.stem
        self.worker = service.start_worker()
        self.id = self.start()
        self.finished: dict[str, int] = {}

    def start(self) -> UUID:
        """A run of the scene, on whatever worker there is."""
        parameters = {"source": str(self.scene), "model": str(self.bundle), "out": str(self.out), "options": OPTIONS}
        executor = {"kind": "serial", "threads": 1}
        return self.service.run(
            "segment-scene/segment-scene", **parameters, executor=executor, keep_shards=True, overwrite=True
        )

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

    def digests(self) -> dict[str, str]:
        """Hashes of what it has written."""
        return {name: sha256(self.out / self.stem / name) for name in FILES}

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
        self.leave_nothing_half_done()
        assert self.digests() == truth
        after = self.shards()
        assert len(after) == SHARDS
        again = [name for name, time_ns in self.finished.items() if after[name] != time_ns]
        assert not again, "a finished shard is never computed again, so at most the one in work was"
        with self.service.client() as client:
            mine = [r for r in client.read_flow_runs() if r.deployment_id == run.deployment_id]
            assert all(r.state.is_final() for r in mine), "nothing stays running"
        self.wait_for_free_slots()

    def leave_nothing_half_done(self) -> None:
        """Of files under temporary names none is left, and the scene's folder is whole or not there."""
        assert not list(self.out.rglob(".*.partial-*")), "nothing half-written"
        visible = (
            [path.name for path in self.out.iterdir() if not path.name.startswith(".")] if self.out.exists() else []
        )
        assert visible in ([], [self.stem])
        assert not visible or (self.out / self.stem / "run.json").is_file()

    def wait_for_free_slots(self) -> None:
        """The deployment's concurrency slots: none is taken."""

        def is_free() -> bool:
            with self.service.client() as client:
                limit = client.read_deployment_by_name("segment-scene/segment-scene").global_concurrency_limit
            return limit.limit == 4 and limit.active_slots == 0

        wait_for("free slots", is_free, 10)
