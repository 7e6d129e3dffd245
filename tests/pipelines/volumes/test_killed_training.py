"""A training on volumes that is killed in the middle of a fold and resumed ends at the weights of an unbroken one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines.bundle import load_bundle
from pipelines.checkpoints import NAME as CHECKPOINT
from tests.pipelines.volumes.make_cases import adapter, decathlon
from tests.pipelines.volumes.test_dicom_training import config_of

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """kill -9 in the middle of the first fold of a training on volumes, then --resume: both folds as if unbroken."""
    raw = {**config_of(tmp_path), "adapter": adapter().to_dict()}
    raw["data"] = [{"source": str(decathlon(tmp_path / "cases", 3, (40, 44, 10)))}]
    raw["split"] = {"folds": 2, "validation": 0}
    raw["train"] |= {"steps": 12, "augment": ["rotate", "noise"], "checkpoint_minutes": 1e-9}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "pipelines.cli", "train", str(tmp_path / "run.yaml"), "--out"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }  # fmt: skip
    checkpoint = tmp_path / "killed" / "fold-0" / "checkpoints" / CHECKPOINT
    running = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, cwd=REPOSITORY)
    for _ in range(4800):  # four minutes, on a machine that does other things
        if checkpoint.exists() or running.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    assert checkpoint.exists() and running.poll() is None, "it is killed while it learns"
    running.kill()
    running.wait()
    assert not (tmp_path / "killed" / "fold-0" / "metrics.json").exists()

    again = subprocess.run([*command, str(tmp_path / "killed")], env=environment, cwd=REPOSITORY, capture_output=True)
    assert again.returncode == 2 and b"resume it" in again.stderr, "not by accident"
    resumed = [*command, str(tmp_path / "killed"), "--resume"]
    assert subprocess.run(resumed, env=environment, cwd=REPOSITORY, check=False).returncode == 0
    assert (
        subprocess.run([*command, str(tmp_path / "whole")], env=environment, cwd=REPOSITORY, check=False).returncode
        == 0
    )
    for fold in ("fold-0", "fold-1"):
        one, other = (load_bundle(tmp_path / name / fold / "bundle") for name in ("killed", "whole"))
        assert one.sha256 == other.sha256
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("killed", "whole"))
    assert one["dice"] == other["dice"] and one["per_class"] == other["per_class"]
