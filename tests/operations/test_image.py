"""The Dockerfile's steps, run as a script in a clean folder: what comes out can run every service."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import licences
from deploy.compose_file import ROOT
from deploy.image_steps import Build, steps


@pytest.fixture(scope="module")
def clean() -> Iterator[Path]:
    """Beside uv's cache, so that its files are linked and not copied: no second 7 GB."""
    cache = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="maskbridge-image-", dir=cache.parent))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_the_steps_make_an_environment_that_runs_the_services(clean: Path) -> None:
    build = Build(clean)
    text = (ROOT / "Dockerfile").read_text()
    try:
        build.run(text)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.cmd[-1]}\n{error.stdout}{error.stderr}")
    assert len(build.log) == len(steps(text)), "every instruction was carried out"
    python = clean / "opt/venv/bin/python"
    site = next((clean / "opt/venv/lib").glob("python3*/site-packages"))
    assert (site / "torch/lib/libtorch_cpu.so").stat().st_nlink > 1, "linked from uv's cache"
    assert not (clean / "app/tests").exists() and not list((clean / "app").rglob(".env*"))

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(python), *words], cwd=clean / "app", env=build.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(clean / "app") in run("-c", "import pipelines.cli; print(pipelines.cli.__file__)")
    assert "start" in run("-m", "prefect", "worker", "--help")
    # What compose starts, by the names it uses: each has to be there.
    for module in (
        "deploy.health",
        "deploy.mlflow_server",
        "deploy.register",
        "deploy.worker",
        "flows.reap",
        "flows.retention",
    ):
        run("-c", f"import {module}")
    assert (clean / "app/prefect.yaml").is_file() and (clean / "app/deploy/prefect-logging.yml").is_file()
    installed = [
        plain(line.partition("==")[0])
        for line in run("-m", "pip", "freeze", "--exclude-editable").splitlines()
        if "==" in line
    ]
    locked = {plain(name) for name in licences.locked(ROOT / "requirements.lock")}
    # (The three that make environments may be newer than the lock, or not in it.)
    assert len(installed) > 200 and not set(installed) - locked - {"uv", "pip", "setuptools"}


def plain(name: str) -> str:
    """A distribution's name as all spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()
