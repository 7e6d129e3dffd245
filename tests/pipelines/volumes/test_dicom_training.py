"""Training on DICOM with RTSTRUCT and DICOM-SEG as labels; no name gets out of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.medical import ct
from maskformer.masks import MaskSet
from pipelines.cli import run
from pipelines.config import RunConfig
from pipelines.experiments import train
from pipelines.volumes.cases import gather_cases
from pipelines.volumes.labels import read_labels
from pipelines.volumes.sinks.rtstruct import write_structures
from pipelines.volumes.sinks.seg import write_seg
from pipelines.volumes.source import open_volume
from tests.models import TINY
from tests.pipelines.volumes.make_cases import adapter, decathlon
from tests.pipelines.volumes.make_dicom import stack

SECRETS = ("canarybird", "tweety", "sylvester", "4711", "scan of")
DRAWN = ClassSet((Class("liver"), Class("lesion")))
CLASSES = ClassSet((Class("liver", "stuff", ("liver 1",)), Class("lesion", "thing", ("lesion 2",))))


def clinic(folder: Path) -> Path:
    """Three patients whose lesion lies in the liver: `NAME/scan of NAME/*.dcm` and `NAME/labels.dcm`."""
    dense = np.zeros((2, 6, 40, 44), bool)
    dense[0, 1:5, 6:30, 8:34] = dense[1, 2:4, 14:22, 16:26] = True
    wanted = MaskSet.from_dense(dense, [0, 1])
    for number, name in enumerate(("Tweety", "Sylvester", "Granny Canarybird")):
        values = 1024 + 60 * dense[0] + 90 * dense[1] + np.random.default_rng(number).integers(0, 9, dense.shape[1:])
        scan = folder / name / f"scan of {name}"
        stack(scan, values.astype(np.uint16), name, PatientName=f"Canarybird^{name}", PatientID=f"CANARY-4711-{number}")
        with open_volume(scan) as source:
            labels, reference = folder / name / "labels.dcm", list(source.reference)
            if number == 1:
                write_seg(labels, wanted, reference, DRAWN)
            else:
                write_structures(labels, wanted, source.geometry, reference, DRAWN)
    return folder


def config_of(folder: Path) -> dict:
    one = ct(CLASSES, [(-100, 200)], overlap="free", spacing=None, context_slices=1, planes=("axial",))
    return {
        "name": "clinic",
        "adapter": one.to_dict(),
        "data": [{"source": f"{folder}/*/scan*", "labels": "{folder}/labels.dcm"}],
        "split": {"validation": 0, "test": 0.3},
        "model": {"preset": "mfenet-efficientnet-lite0", "overrides": TINY},
        "train": {"steps": 2, "batch": 2, "crop": 32, "workers": 0, "log_every": 1, "precision": "fp32", "augment": []},
        "baseline": None,
        "predict": {"device": "cpu", "precision": "fp32"},
    }


def holds_no_secret(*texts: str) -> None:
    for text in texts:
        assert not [word for word in SECRETS if word in text.casefold()]


def test_structures_and_segments_are_labels_to_learn_from(tmp_path: Path) -> None:
    cases = gather_cases(RunConfig.model_validate(config_of(clinic(tmp_path))))
    assert len({one.case.patient for one in cases}) == 3, "the patient is the header's"
    for one in cases:
        with open_volume(one.case.images[""]) as source:
            found = read_labels(one.labels, source.geometry, CLASSES).objects
        assert found.labels.tolist() == [0, 1] and found.areas.tolist() == [4 * 24 * 26, 2 * 8 * 10]


@pytest.mark.slow
def test_no_name_gets_out_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither where all goes well nor where a file is broken: the user reads which one, MLflow does not."""
    folder, store = clinic(tmp_path / "night"), tmp_path / "mlflow.db"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_of(folder)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    assert run(["train", "run.yaml", "--out", "run"]) == 0
    assert run(["evaluate", "run/bundle", "run.yaml", "--out", "scores"]) == 0
    metrics = json.loads(Path("scores/metrics.json").read_text())
    assert metrics["counts"] == {"cases": 1, "patients": 1} and set(metrics["per_class"]) == {"liver", "lesion"}
    printed = capsys.readouterr()
    holds_no_secret(printed.out, printed.err)

    (folder / "Tweety" / "labels.dcm").write_bytes((folder / "Sylvester" / "labels.dcm").read_bytes()[:600])
    assert run(["train", "run.yaml", "--out", "broken"]) == 2
    said = capsys.readouterr().err
    assert "Tweety" in said and "Traceback" not in said
    tops = ("run", "scores", "broken", "mlruns")
    left = [path for top in tops for path in Path(top).rglob("*") if path.is_file()]
    assert len(left) > 10
    for path in (*left, store):
        holds_no_secret(str(path), path.read_bytes().decode("latin-1"))


@pytest.mark.slow
def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    """Other cases than those the checkpoint was made of are refused."""
    raw = {**config_of(tmp_path), "adapter": adapter().to_dict(), "split": {"validation": 0, "test": 0.3}}
    raw["data"] = [{"source": str(decathlon(tmp_path / "cases", 3, (40, 44, 10)))}]
    train(RunConfig.model_validate(raw), tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    raw["data"] = [{"source": str(decathlon(tmp_path / "others", 4, (40, 44, 10)))}]
    with pytest.raises(InputError, match="another data"):
        train(RunConfig.model_validate(raw), tmp_path / "run", resume=True)
