"""A real Prefect server on SQLite and real process workers, on loopback, in a folder of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from flows.runtime import _free_port
from tests.conftest import REPOSITORY

POOL = "maskbridge"
PREFECT = [sys.executable, "-m", "prefect"]


def wait_for(what: str, found: Callable[[], Any], timeout_s: float = 300.0, every_s: float = 0.1) -> Any:
    """What `found` gives, once it is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = found()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(every_s)


class Service:
    """Server, pool and deployments of the repository's prefect.yaml; workers come and go."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.server: subprocess.Popen | None = None
        self.workers: list[subprocess.Popen] = []
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environment = inherited | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            # Seconds where the defaults are made for nights.
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "OMP_NUM_THREADS": "1",
            "MASKBRIDGE_PROJECT": str(REPOSITORY),
            "MASKBRIDGE_DATA": str(folder / "data"),
            "MASKBRIDGE_RESULTS": str(folder / "results"),
            **environment,
        }

    def start_server(self) -> None:
        words = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.server = self._start("server", words)
        wait_for("server", self._answers, 300)

    def deploy(self) -> None:
        """The pool, and `prefect deploy --all` as docs and prefect.yaml say."""
        from prefect.client.schemas.actions import WorkPoolCreate

        with self.client() as client:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        words = [*PREFECT, "--no-prompt", "deploy", "--all"]
        done = subprocess.run(words, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def start_worker(self, **environment: str) -> subprocess.Popen:
        """A worker; `environment` is its own and its runs'."""
        words = [*PREFECT, "worker", "start", "--pool", POOL, "--name", f"w{len(self.workers)}", "--limit", "2"]
        self.workers.append(self._start(f"worker-{len(self.workers)}", words, environment))
        return self.workers[-1]

    def kill_server(self) -> None:
        assert self.server is not None
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def stop(self) -> None:
        for process in (*self.workers, self.server):
            if process is not None:
                _end_tree(process)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of this server, and of no other; flows and `reap` called in the block go there too."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        with (
            temporary_settings({PREFECT_API_URL: self.url, PREFECT_CLIENT_MAX_RETRIES: 2}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def run(self, deployment: str, **parameters: Any) -> UUID:
        """Start a run of `flow/name`."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def _answers(self) -> bool:
        assert self.server is not None and self.server.poll() is None, (self.folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _start(self, name: str, words: list[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                words,
                cwd=self.folder,
                env={**self.environment, **(environment or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Prefect ends a worker by SIGINT, which a background job of a shell ignores, and so would its child.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )


def _end_tree(process: subprocess.Popen) -> None:
    """Kill a process and what it started, by their ids."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
