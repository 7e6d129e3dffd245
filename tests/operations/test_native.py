"""The whole service without Docker, as docker-compose.yml describes it: schedule → worker → MLflow on PostgreSQL.

One start for all tests of the module (a minute). In CI a machine without PostgreSQL is a failure.
"""

import http.server
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pytest
from affine import Affine

from tests.operations.service import PORTS, Native, register_crowns

pytestmark = pytest.mark.slow


def put_scene(native: Native, shared: Path | None) -> str:
    """A real scene where the shared data are, else noise; yesterday's, so that it counts as complete."""
    target = native.data / "scenes" / "crowns.tif"
    real = shared / "satellite" / "crowns" / "OSBS_029.tif" if shared else None
    if real and real.is_file():
        shutil.copy(real, target)
    else:
        import rasterio

        picture = np.random.default_rng(0).integers(0, 255, (3, 200, 200)).astype(np.uint8)
        place = {"crs": "EPSG:32617", "transform": Affine(0.1, 0, 400_000, 0, -0.1, 3_300_000)}
        with rasterio.open(target, "w", "GTiff", 200, 200, 3, dtype="uint8", **place) as file:
            file.write(picture)
    os.utime(target, (time.time() - 86_400,) * 2)
    return target.stem


SCHEDULE = """
import sys, time
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
with get_client(sync_client=True) as client:
    deployment = client.read_deployment_by_name("segment-scenes/segment-scenes")
    (nightly,) = deployment.schedules
    assert nightly.active and nightly.schedule.cron == "0 3 * * *"
    often = CronSchedule(cron="* * * * * */15", timezone="UTC")
    client.update_deployment_schedule(deployment.id, nightly.id, active=True, schedule=often)
    deadline = time.time() + 240
    while time.time() < deadline:
        runs = [r for r in client.read_flow_runs() if r.deployment_id == deployment.id and r.state.is_final()]
        if runs:
            break
        time.sleep(1)
    client.update_deployment_schedule(deployment.id, nightly.id, active=False, schedule=nightly.schedule)
    first = min(runs, key=lambda run: run.end_time)
    print(first.state.name, first.auto_scheduled, first.id, first.state.message or "")
"""


def test_schedule_worker_mlflow_and_promotion(native: Native, request: pytest.FixtureRequest) -> None:
    try:
        shared = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        shared = None
    stem = put_scene(native, shared)
    register_crowns(native)
    assert native.psql("mlflow", "select name, version from model_versions") == "crowns|1"
    assert native.psql("mlflow", "select alias from registered_model_aliases") == "challenger"
    told = native.worker("maskbridge", "promote", "crowns", "--data", str(native.data / "frozen.yaml"))
    assert told.strip().splitlines()[-1] == "models:/crowns/1 is @champion"
    assert native.psql("mlflow", "select alias from registered_model_aliases") == "champion"
    decided = "select value from model_version_tags where key = 'gate.decision' and name = 'crowns'"
    assert native.psql("mlflow", decided) == "promoted"
    said = native.worker("python", "-c", SCHEDULE).strip().splitlines()[-1]
    assert said.startswith("Completed True"), said
    folder = native.results / "scenes" / stem
    told = json.loads((folder / "run.json").read_text())
    assert told["model"]["name"].startswith("models:/crowns/1") or "crowns" in json.dumps(told["model"])
    assert (folder / "semantic.tif").is_file() and (folder / "objects.parquet").is_file()
    run = said.split()[2]
    states = native.psql("prefect", f"select state_type from flow_run where id = '{run}'")
    assert states == "COMPLETED"
    assert int(native.psql("mlflow", "select count(*) from runs")) >= 1
    artifacts = [path for path in (native.folder / "state/volumes/artifacts").rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in artifacts), "proxied into the volume"


def test_both_servers_ask_who_is_there(native: Native) -> None:
    prefect, mlflow = native.setting("PREFECT_PORT"), native.setting("MLFLOW_PORT")
    for url in (
        f"http://127.0.0.1:{prefect}/api/flows/count",
        f"http://127.0.0.1:{mlflow}/api/2.0/mlflow/experiments/search?max_results=1",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=10)
        assert refused.value.code == 401
    refused = subprocess.run(
        ["psql", "-h", "127.0.0.1", "-p", native.setting("POSTGRES_PORT"), "-U", "postgres", "-w", "-c", "select 1"],
        capture_output=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert refused.returncode != 0, "PostgreSQL too, over TCP"


def test_every_port_is_on_loopback(native: Native) -> None:
    own = {int(native.setting(name)) for name in PORTS}
    listening = [
        one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.laddr.port in own
    ]
    assert {one.laddr.port for one in listening} >= {int(native.setting(name)) for name in PORTS[:3]}
    assert {one.laddr.ip for one in listening} == {"127.0.0.1"}


def test_logs_are_json_with_the_runs_id_and_hold_no_password(native: Native) -> None:
    log = native("logs", "worker")
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    runs = {record["run"] for record in records if record["logger"].startswith("prefect.flow_runs")}
    assert runs and all(re.fullmatch(r"[0-9a-f-]{36}", run) for run in runs)
    passwords = [
        native.setting(name)
        for name in (
            "POSTGRES_PASSWORD",
            "PREFECT_PASSWORD",
            "MLFLOW_PASSWORD",
            "MLFLOW_SECRET_KEY",
            "PREFECT_DB_PASSWORD",
            "MLFLOW_DB_PASSWORD",
        )
    ]
    for folder in (native.folder / "state" / "logs", native.folder / "state" / "run", native.results):
        for file in folder.rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert not any(password.encode() in content for password in passwords), file
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        assert not any(password in words for password in passwords), "no password on a command line"
    assert stat.S_IMODE((native.folder / "state/volumes/postgres").stat().st_mode) == 0o700


def test_it_repeats_itself_and_says_what_is_down(native: Native) -> None:
    def pids() -> dict[str, int]:
        return {
            name: json.loads((native.folder / f"state/run/{name}.json").read_text())["pid"]
            for name in ("postgres", "prefect", "mlflow", "worker")
        }

    before = pids()
    native("up")
    assert pids() == before, "nothing that runs is started again"
    assert "DOWN" not in native("ps")
    os.kill(before["worker"], signal.SIGKILL)
    time.sleep(1)
    assert re.search(r"worker .*DOWN", native("ps", code=1))
    native("up")
    after = pids()
    assert after["worker"] != before["worker"] and after["mlflow"] == before["mlflow"]
    assert "no such service" not in native("ps")
    native("up", "nothing-of-that-name", code=2)


class Told(http.server.BaseHTTPRequestHandler):
    """A chat system's end of a webhook."""

    messages: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        self.messages.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None: ...


def test_a_failed_run_is_told_and_its_path_was_refused(native: Native) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = f"http://127.0.0.1:{server.server_port}/hook"
    native.worker("env", f"NOTIFY_WEBHOOK={hook}", "python", "-m", "flows.notifications")
    words = ["-p", "source=/etc/hostname", "-p", "model=models:/crowns@champion"]
    native.worker("prefect", "deployment", "run", "segment-scene/segment-scene", *words)
    deadline = time.monotonic() + 240
    while not Told.messages and time.monotonic() < deadline:
        time.sleep(0.5)
    server.shutdown()
    (told, *_) = Told.messages
    assert told["state"] == "Failed" and told["run"] == "segment-hostname" and "segment-scene" in told["text"]
    assert "/etc/hostname: source lies outside of the folders for runs" in told["message"]
    assert told["page"].startswith(f"http://127.0.0.1:{native.setting('PREFECT_PORT')}/")
    stored = native.psql("prefect", "select data::text from block_document where name = 'maskbridge-failures'")
    assert stored and hook not in stored, "the address is a secret, and is kept as one"
