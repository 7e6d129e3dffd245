"""`accelerate launch` with two processes is one with twice the batch: the curve, the weights, and the command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.bundle import load_bundle
from pipelines.config import save_config
from tests.conftest import REPOSITORY
from tests.models import squares_config

STEPS = 16
# `--multi_gpu` means torch's own launcher; with `--cpu` accelerate starts one process, or asks for MPI.
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}


def train(launcher: list[str], folder: Path, batch: int, class_weight: float) -> list[dict[str, float]]:
    folder.mkdir()
    numbers = [str(batch), str(STEPS), str(class_weight)]
    words = [*launcher, "-m", "tests.pipelines.training_process", str(folder), *numbers]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "history.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("class_weight", "tolerance"),
    # The class loss is a mean over a process' own queries, as published, weighted by what they were matched to; the
    # mask losses are divided by the objects of all processes.
    [(0.0, 1e-4), (2.0, 1e-3)],
)
def test_the_loss_curve_is_that_of_one_process_with_the_whole_batch(
    tmp_path: Path, class_weight: float, tolerance: float
) -> None:
    alone = train([sys.executable], tmp_path / "one", 4, class_weight)
    together = train(LAUNCH, tmp_path / "two", 2, class_weight)
    assert len(alone) == len(together) == STEPS
    for mine, other in zip(alone, together, strict=True):
        assert mine["total"] == pytest.approx(other["total"], rel=tolerance), f"step {mine['step']}"
        assert mine["learning_rate"] == other["learning_rate"]
    assert together[-1]["total"] < 0.7 * together[0]["total"], "it learns"


@pytest.mark.slow
def test_the_command_trains_under_accelerate_launch(make_geotiff: Callable[..., Path], tmp_path: Path) -> None:
    config = squares_config(make_geotiff, tmp_path)
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    save_config(config, path)
    words = [*LAUNCH, "-m", "pipelines.cli", "train", str(path), "--out", str(out)]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [str(out / "bundle")], "one process speaks"
    provenance = load_bundle(out / "bundle").provenance
    assert provenance["training"]["steps"] == 2 and len(provenance["history"]) == 2
    assert json.loads((out / "metrics.json").read_text())["baseline"]["unet"]["training"]["steps"] == 2

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"], "one process records"
