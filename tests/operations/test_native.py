"""The whole service without Docker, as docker-compose.yml describes it: schedule → worker → MLflow on PostgreSQL.

One start for all tests of the module (a minute). In CI a machine without PostgreSQL is a failure.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from affine import Affine

from deploy import postgres
from deploy.compose_file import ROOT
from deploy.environment import fresh
from flows.runtime import _free_port
from tests.models import adapter, tiny_bundle

pytestmark = pytest.mark.slow
PORTS = ("POSTGRES_PORT", "PREFECT_PORT", "MLFLOW_PORT", "CPU_HEALTH_PORT", "GPU_HEALTH_PORT")


class Native:
    """`python -m deploy.native` over a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env_file = folder / "test.env"
        self.data, self.results = folder / "data", folder / "results"
        for made in (self.data / "scenes", self.results):
            made.mkdir(parents=True)
        ports = {name: str(_free_port()) for name in PORTS}
        settings = {**ports, "MASKBRIDGE_MODEL": "models:/crowns@champion"}
        self.env_file.write_text(fresh(self.data, self.results, settings))
        self.variables = {**os.environ, "MASKBRIDGE_ENV": str(self.env_file), "MASKBRIDGE_STATE": str(folder / "state")}

    def setting(self, name: str) -> str:
        found = re.findall(rf"^{name}=(.*)$", self.env_file.read_text(), re.M)
        return found[-1]

    def __call__(self, *words: str, code: int = 0, timeout: float = 400) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.native", *words],
            cwd=ROOT,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == code, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def worker(self, *words: str, **settings) -> str:
        """A command in the worker's environment."""
        return self("exec", "worker", *words, **settings)

    def psql(self, database: str, query: str) -> str:
        return self("exec", "postgres", "psql", "-U", "postgres", "-d", database, "-At", "-c", query).strip()


@pytest.fixture(scope="module")
def native() -> Iterator[Native]:
    if not postgres.is_installed():
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed, and in CI that is a failure (see .ci/run)")
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="maskbridge-native-"))  # not pytest's: PostgreSQL's user must get there
    folder.chmod(0o755)
    made = Native(folder)
    try:
        made("up")
        yield made
        left = psutil.Process().children()  # (services are nobody's children)
        assert not [one for one in left if one.name() == "postgres"]
    finally:
        made("down")
        shutil.rmtree(folder, ignore_errors=True)


def register_crowns(native: Native) -> None:
    """A version with the alias `challenger`, through MLflow's server, signed in."""
    rgb = adapter(channels=("red", "green", "blue"), tile=128, tile_overlap=32)
    bundle = tiny_bundle(native.results / "bundle", rgb, thresholds={"score": 0.05, "semantic": 0.3})
    code = f"from pipelines.registry import register; print(register({str(bundle)!r}, 'crowns', alias='challenger'))"
    assert native.worker("python", "-c", code).strip().splitlines()[-1] == "1"


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
    promote = (
        "from pipelines.tracking_store import connect; client = connect();"
        "client.set_registered_model_alias('crowns', 'champion', '1')"
    )
    native.worker("python", "-c", promote)
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
