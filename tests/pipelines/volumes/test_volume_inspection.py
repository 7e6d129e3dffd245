"""inspect: what a volume is, whether a model takes it, what a run config of volumes finds."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from adapters.errors import InputError
from pipelines import cli
from pipelines.inspection import inspect_thing, render
from tests.models import adapter as scene_adapter
from tests.models import tiny_bundle
from tests.pipelines.volumes.make_cases import adapter, balls, decathlon, save
from tests.pipelines.volumes.make_dicom import stack


def test_a_volume_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "scan.nii.gz", balls())
    assert cli.run(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "volume (NIfTI)" in text and "24x28x10 voxels of 1x1x2 mm, RAS" in text
    stack(tmp_path / "study" / "deep", np.zeros((4, 8, 9), np.uint16))
    found = inspect_thing(str(tmp_path / "study"))
    assert found["kind"] == "volume (DICOM)" and found["modality"] == "CT" and "taken: CT, 4 slices" in render(found)
    assert inspect_thing(str(next((tmp_path / "study" / "deep").iterdir())))["kind"] == "volume (DICOM)"


def test_whether_a_model_takes_it(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", balls())
    fits = tiny_bundle(tmp_path / "fits", adapter(context_slices=0, spacing=(2.0, 2.0, 2.0)))
    found = inspect_thing(str(path), str(fits))
    assert found["model"]["runs"] and found["model"]["grid"].startswith("12x14x10 voxels of 2x2x2 mm")
    scenes = tiny_bundle(tmp_path / "scenes", scene_adapter())
    found = inspect_thing(str(path), str(scenes))
    assert not found["model"]["runs"] and "for scenes" in found["problems"][0]
    two = save(tmp_path / "two.nii.gz", np.zeros((6, 7, 8, 2), np.float32))
    found = inspect_thing(str(two), str(fits))
    assert found["model"]["runs"], "channel 1 of two"
    stack(tmp_path / "mr", np.zeros((4, 8, 9), np.uint16), Modality="MR")
    ct = tiny_bundle(tmp_path / "ct", adapter(context_slices=0, volume=_ct_only()))
    with pytest.raises(InputError, match="modality MR is not CT"):
        inspect_thing(str(tmp_path / "mr"), str(ct))


def _ct_only():  # type: ignore[no-untyped-def]
    from adapters.volume import SeriesRule, VolumeRules

    return VolumeRules(planes=("axial",), series=SeriesRule("CT"))


def test_cases_of_a_run_config_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decathlon(tmp_path / "cases", 3)
    raw = {"name": "balls", "adapter": adapter().to_dict()}
    raw["data"] = [{"source": "cases/imagesTr/*.nii.gz", "labels": "{folder}/../labelsTr/{stem}.nii.gz"}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    assert cli.run(["inspect", str(tmp_path / "run.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cases"], found["patients"], found["problems"]) == (3, 3, [])
    raw["data"][0]["labels"] = "{folder}/{stem}_mask.nii.gz"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    assert "no such label file" in inspect_thing(str(tmp_path / "run.yaml"))["problems"][0]


def test_a_plan_is_for_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "scan.nii.gz", balls())
    assert cli.run(["plan", str(path), "--out", str(tmp_path / "p.yaml")]) == 2
    assert "configs/medical" in capsys.readouterr().err
