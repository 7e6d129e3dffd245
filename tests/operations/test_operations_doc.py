"""docs/operations.md: its commands run, in its order, and do what it says; what is not run is marked, and is known."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.compose_file import ROOT
from tests.operations.service import Native, register_crowns

DOC = ROOT / "docs" / "operations.md"
# Changes the checkout, loads gigabytes, or needs the Docker engine.
NOT_RUN = (
    *("git clone", "git pull", "make setup", "docker compose build", "docker compose -f docker-compose.yml -f"),
    ".venv/bin/python -m deploy.environment --data /srv",
)


def blocks(kind: str) -> list[list[str]]:
    found = re.findall(rf"^```{kind}\n(.*?)^```", DOC.read_text(), re.M | re.S)
    return [[line for line in block.splitlines() if line.strip()] for block in found]


def test_every_block_is_run_or_known_not_to_be() -> None:
    kinds = re.findall(r"^```(\w+)", DOC.read_text(), re.M)
    assert set(kinds) <= {"sh", "text"}
    assert sum(len(block) for block in blocks("sh")) >= 40
    for block in blocks("text"):
        for line in block:
            assert line.startswith(NOT_RUN), f"{line}: could this not be run?"
    for block in blocks("sh"):
        for line in block:
            assert not line.startswith(NOT_RUN), f"{line}: the test would change the checkout"


def test_every_variable_service_and_file_it_names_exists() -> None:
    text = DOC.read_text()
    known = (ROOT / "docker-compose.yml").read_text() + (ROOT / "deploy/env.example").read_text()
    for name in set(re.findall(r"\b(?:MASKBRIDGE|MLFLOW|PREFECT|OBJECT|NOTIFY|COMPOSE)_[A-Z_]+\b", text)):
        assert name in known, name
    for service in set(re.findall(r"docker compose (?:exec -T|restart|stop|logs) ([\w-]+)", text)):
        assert f"\n  {service}:" in known, service
    for path in re.findall(r"\b(?:deploy|docs|flows|tests)/[\w/.-]+\w", text):
        assert (ROOT / path).exists(), path


def script(lines: list[str]) -> str:
    """The commands as a shell takes them, with the twin in the place of Docker."""
    twin = f"{sys.executable} -m deploy.native"
    text = "\n".join(lines).replace(".venv/bin/python", sys.executable).replace("docker compose ", f"{twin} ")
    return "set -eo pipefail\n" + re.sub(r"(?<=\s)\.env(?=\s|$)", '"$MASKBRIDGE_ENV"', text)


@pytest.fixture
def backup(native: Native) -> Iterator[Path]:
    yield native.folder / "backup"
    shutil.rmtree(native.folder / "backup", ignore_errors=True)


@pytest.mark.slow
def test_the_commands_run_in_order(native: Native, backup: Path) -> None:
    """Between backup and restore everything is thrown away; after the rotation the old passwords open nothing."""
    variables = {**native.variables, "BACKUP": str(backup)}
    versions = "select name, version from model_versions"
    if not native.psql("mlflow", versions):
        register_crowns(native)
    old = {name: native.setting(name) for name in ("PREFECT_PASSWORD", "MLFLOW_PASSWORD", "POSTGRES_PASSWORD")}
    outputs: dict[str, str] = {}
    titles = re.split(r"^## ", DOC.read_text(), flags=re.M)[1:]
    for section in titles:
        title = section.partition("\n")[0]
        lines = [
            line for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S) for line in block.splitlines()
        ]
        if title == "Restore":
            native.psql("mlflow", "delete from model_version_tags; delete from model_versions")
            shutil.rmtree(native.folder / "state/volumes/artifacts")
            (native.folder / "state/volumes/artifacts").mkdir()
        if lines:
            done = subprocess.run(
                ["bash", "-c", script(lines)],
                cwd=ROOT,
                env=variables,
                capture_output=True,
                text=True,
                timeout=900,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, f"{title}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            outputs[title] = done.stdout
        if title == "Backup":
            assert all(
                (backup / name).stat().st_size > 1000 for name in ("prefect.dump", "mlflow.dump", "artifacts.tar")
            )
            assert (backup / "env").read_text() == native.env_file.read_text()
        if title == "Restore":
            assert native.psql("mlflow", versions) == "crowns|1"
            download = "from pipelines.registry import download; print(download('models:/crowns/1'))"
            shutil.rmtree(native.folder / "state/volumes/cache/maskbridge", ignore_errors=True)
            assert "models" in native.worker("python", "-c", download), "files and hashes agree"
        if title == "Rotate passwords":
            assert all(native.setting(name) != value for name, value in old.items())
            assert is_refused(native, old["POSTGRES_PASSWORD"]) and not is_refused(
                native, native.setting("POSTGRES_PASSWORD")
            )
            assert mlflow_status(native, old["MLFLOW_PASSWORD"]) == 401
            assert mlflow_status(native, native.setting("MLFLOW_PASSWORD")) == 200
    assert "crowns" in outputs["Restore"] and "segment-scenes" in outputs["Rotate passwords"]
    assert outputs["What to watch"].count("healthy") >= 4


def is_refused(native: Native, password: str) -> bool:
    words = ["psql", "-h", "127.0.0.1", "-p", native.setting("POSTGRES_PORT"), "-U", "postgres", "-w", "-c", "select 1"]
    environment = {"PATH": os.environ["PATH"], "PGPASSWORD": password}
    return subprocess.run(words, capture_output=True, env=environment).returncode != 0


def mlflow_status(native: Native, password: str) -> int:
    import base64
    import urllib.error
    import urllib.request

    url = f"http://127.0.0.1:{native.setting('MLFLOW_PORT')}/api/2.0/mlflow/experiments/search?max_results=1"
    signed = base64.b64encode(f"admin:{password}".encode()).decode()
    request = urllib.request.Request(url, headers={"authorization": f"Basic {signed}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
