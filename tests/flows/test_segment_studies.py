"""A night of studies as a flow: shards, a bad study, running again, and no name in what Prefect keeps."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from prefect.client.orchestration import get_client

from flows.runtime import final_task_runs
from flows.segment_studies import segment_studies, studies_of
from flows.train_model import train_model
from pipelines.config import RunConfig
from pipelines.volumes.options import VolumeOptions
from tests.pipelines.volumes.make_dicom import CANARY, stack
from tests.pipelines.volumes.test_dicom_training import clinic, config_of, holds_no_secret
from tests.pipelines.volumes.test_studies import scan, volume_bundle

OPTIONS = VolumeOptions(device="cpu", precision="fp32", score=0.05)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_bundle(tmp_path_factory.mktemp("model") / "bundle")


def test_a_night_of_studies(bundle: Path, tmp_path: Path) -> None:
    night, out = tmp_path / "night", tmp_path / "out"
    night.mkdir()
    scan(night / f"{CANARY} a.nii.gz")
    stack(night / CANARY, np.random.default_rng(1).integers(800, 1200, (4, 24, 26)).astype(np.uint16))
    (night / "Tweety.nii.gz").write_bytes(b"nothing")
    state = segment_studies(str(night), str(bundle), str(out), OPTIONS, shard=2, return_state=True)
    assert state.name == "Partial" and state.result() == {"done": 2, "there": 0, "failed": 1}
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["study"] for row in rows] == ["1", "2", "3"]
    flow_run = state.state_details.flow_run_id
    runs = final_task_runs(flow_run, 4)
    assert (
        sorted(run.name.rsplit("-", 1)[0] for run in runs if run.name.startswith("predict")) == ["predict-studies"] * 2
    )
    with get_client(sync_client=True) as client:
        kept = [client.read_flow_run(flow_run).model_dump(mode="json"), *(run.model_dump(mode="json") for run in runs)]
    text = json.dumps(kept, default=str)
    assert "Canarybird" not in text and "Tweety" not in text

    (night / "Tweety.nii.gz").unlink()
    again = segment_studies(str(night), str(bundle), str(out), OPTIONS, shard=2, return_state=True)
    assert again.name == "Completed" and again.result() == {"done": 0, "there": 2, "failed": 0}


def test_a_list_names_the_studies(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# tonight\na.nii.gz\n\nb\n")
    assert studies_of(str(tmp_path / "list.txt")) == [str(tmp_path / "a.nii.gz"), str(tmp_path / "b")]


def test_a_training_that_fails_names_no_file(tmp_path: Path) -> None:
    """A label file that cannot be read: what Prefect keeps of the run does not say whose it is."""
    folder = clinic(tmp_path / "night")
    for labels in folder.glob("*/labels.dcm"):
        labels.write_bytes(labels.read_bytes()[:600])
    config = RunConfig.model_validate(config_of(folder))
    state = train_model(config, str(tmp_path / "out"), return_state=True)
    assert state.is_failed()
    with get_client(sync_client=True) as client:
        flow_run = state.state_details.flow_run_id
        kept = [client.read_flow_run(flow_run).model_dump(mode="json")]
        kept += [run.model_dump(mode="json") for run in final_task_runs(flow_run, 1)]
    text = json.dumps(kept, default=str)
    assert "***" in text and "names the file" in text
    holds_no_secret(text)
