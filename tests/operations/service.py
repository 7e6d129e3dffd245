"""The service without Docker, in a folder of the tests' own, and what tests put into it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from deploy.compose_file import ROOT
from deploy.environment import fresh
from flows.runtime import _free_port
from tests.pipelines.promotion import colours

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


def register_crowns(native: Native) -> None:
    """A version with the alias `challenger`, through MLflow's server, signed in; and the data to judge it by.

    Its weights were set by hand to see exactly the fields of that data, so the gate has a reason to let it pass.
    """
    colours.frozen(native.data, "frozen", seed=1, size=(256, 256))
    bundle = colours.bundle(native.results / "bundle")
    code = f"from pipelines.registry import register; print(register({str(bundle)!r}, 'crowns', alias='challenger'))"
    assert native.worker("python", "-c", code).strip().splitlines()[-1] == "1"
