"""`accelerate launch` with two processes is one with twice the batch: the curve, the weights, and the command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.bundle import load_bundle
from pipelines.config import save_config
from tests.conftest import REPOSITORY
from tests.models import squares_config

STEPS = 16
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}


def train(launcher: list[str], folder: Path, batch: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    folder.mkdir()
    words = [*launcher, "-m", "tests.pipelines.training_process", str(folder), str(batch), str(STEPS)]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "history.json").read_text()), torch.load(folder / "weights.pt")


@pytest.mark.slow
def test_the_loss_curve_is_that_of_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    alone, weights_alone = train([sys.executable], tmp_path / "one", 4)
    together, weights_together = train(LAUNCH, tmp_path / "two", 2)
    assert len(alone) == len(together) == STEPS
    for mine, other in zip(alone, together, strict=True):
        assert mine["total"] == pytest.approx(other["total"], rel=0.02), f"step {mine['step']}"
        assert mine["learning_rate"] == other["learning_rate"]
    assert together[-1]["total"] < 0.8 * together[0]["total"], "it learns"
    moved = torch.cat([(weights_alone[n] - weights_together[n]).flatten().abs() for n in weights_alone])
    assert moved.median() < 1e-3 and moved.max() < 0.05


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
