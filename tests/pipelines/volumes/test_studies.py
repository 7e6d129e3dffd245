"""A night's batch as a user meets it: the command line, bad studies of every kind, names, running again, Ctrl-C."""

import csv
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from adapters.classes import Class, ClassSet
from adapters.medical import ct
from pipelines import cli
from pipelines.volumes.discretion import discreet, without_paths
from pipelines.volumes.prediction import VolumeModel, VolumeOptions, VolumePredictor
from pipelines.volumes.studies import predict_studies, studies_in
from tests.models import TINY, Oracle, tiny_bundle
from tests.models import adapter as scene_adapter
from tests.pipelines.volumes.make_dicom import CANARY, stack
from tests.pipelines.volumes.test_volume_prediction import AFFINE, FAST, adapter, save, truth

SECRETS = (CANARY, "Canarybird", "CANARY-4711", "Tweety")
CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_bundle(tmp_path_factory.mktemp("model") / "bundle")


def volume_bundle(folder: Path, seed: int = 0, **settings: object) -> Path:
    """A small network with random weights for CT with a slice of context on each side."""
    import torch

    from maskformer.config import ModelConfig
    from maskformer.model import build_model
    from pipelines.bundle import save_bundle

    one = ct(ClassSet((Class("liver", "stuff"), Class("lesion"))), [(-100, 100)], **{"spacing": None, **settings})
    config = ModelConfig.from_preset("mfenet-efficientnet-lite0", in_channels=3, num_classes=2, **SMALL)
    torch.manual_seed(seed)
    return save_bundle(folder, build_model(config), one)


SMALL = {k: v for k, v in TINY.items() if k != "loss_resolution"}


def scan(path: Path, seed: int = 0, shape: tuple[int, int, int] = (20, 22, 6)) -> Path:
    return save(path, np.random.default_rng(seed).integers(-200, 200, shape).astype(np.int16))


def no_secret(folder: Path) -> None:
    """No name in any file (but DICOM, whose patient module must have it) or file name."""
    for path in folder.rglob("*"):
        for secret in SECRETS:
            assert secret not in str(path.relative_to(folder))
            if path.is_file() and path.suffix != ".dcm":
                raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                assert secret.encode() not in raw, path.name


def test_a_night_from_the_command_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night, out = tmp_path / "night", tmp_path / "out"
    night.mkdir()
    good = scan(night / f"{CANARY} one.nii.gz")
    stack(night / CANARY / "deep", np.random.default_rng(1).integers(800, 1200, (5, 24, 26)).astype(np.uint16))
    bad = night / f"{CANARY}.nii.gz"
    bad.write_bytes(good.read_bytes()[:150])
    words = ["predict", str(bundle), str(night / CANARY), str(bad), str(good), "--out", str(out), *CPU, "--score", "0"]
    assert cli.run(words) == 3, capsys.readouterr().err
    seen = capsys.readouterr()
    assert "failed" in seen.out and "study 2" in seen.err and "taken: CT, 5 slices" in seen.err
    assert not any(secret in seen.out + seen.err for secret in SECRETS)
    no_secret(out)
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    dicom, nifti = out / rows[0]["folder"], out / rows[2]["folder"]
    names = {"labels.nii.gz", "labels.json", "objects.nii.gz", "objects.json", "objects.csv", "report.html", "run.json"}
    assert {p.name for p in nifti.iterdir()} == names
    assert {p.name for p in dicom.iterdir()} == names | {"segmentation.dcm"}
    for folder in (dicom, nifti):
        for name in ("labels.json", "objects.json", "report.html", "run.json"):
            assert "research use only" in (folder / name).read_text().casefold()
        assert "research use only" in str(nibabel.load(folder / "labels.nii.gz").header["descrip"])
    assert pydicom.dcmread(dicom / "segmentation.dcm").PatientName == CANARY, "the patient module is copied"

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != "summary.csv"}
    bad.write_bytes(scan(tmp_path / "mended.nii.gz", 5).read_bytes())
    assert cli.run(words) == 0
    table = capsys.readouterr().out
    assert table.count("there") == 2 and table.count("done") == 1
    assert before.items() <= {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}.items()


def test_options_reach_the_pipeline(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = scan(tmp_path / "a scan.nii.gz"), volume_bundle(tmp_path / "fold", 1)
    flags = (
        "--task instance --score 0.1 --min-volume 3.5 --link-iou 0.4 --gap 1 --smooth --plane axial --plane sagittal "
        "--keep-names --tta flip --batch 2 --seg --rtstruct"
    )
    straight = nibabel.Nifti1Image(np.asanyarray(nibabel.load(path).dataobj), np.diag([-1.0, 1, 2, 1]))
    nibabel.save(straight, path)
    words = ["predict", str(bundle), str(path), "-o", str(tmp_path / "out"), *flags.split(), *CPU, "--fold", str(other)]
    assert cli.run(words) == 0, capsys.readouterr().err
    run = json.loads((tmp_path / "out" / "a_scan" / "run.json").read_text())
    assert {k: v for k, v in run["parameters"].items() if k != "folds"} == {
        **VolumeOptions().model_dump(mode="json", exclude={"folds"}),
        "task": "instance", "score": 0.1, "min_volume_mm3": 3.5, "link_iou": 0.4, "gap": 1, "smooth": True,
        "planes": ["axial", "sagittal"], "keep_names": True, "tta": "flip", "batch": 2, "seg": True, "rtstruct": True,
        "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    assert run["model"]["folds"] == 2 and any("invented" in note for note in run["warnings"])


def test_a_series_is_chosen_by_its_uid_or_the_end_of_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for name, depth in (("soft", 6), ("lung", 4)):
        stack(tmp_path / "night" / name, random.integers(800, 1200, (depth, 24, 26)).astype(np.uint16), name)
    uid = pydicom.dcmread(next((tmp_path / "night" / "lung").iterdir())).SeriesInstanceUID
    words = ["predict", str(bundle), str(tmp_path / "night"), *CPU, "--score", "0"]

    def predicted(name: str, *flags: str) -> tuple[dict, str]:
        assert cli.run([*words, "--out", str(tmp_path / name), *flags]) == 0
        seen = capsys.readouterr().err
        return json.loads(next((tmp_path / name).glob("study-*/run.json")).read_text()), seen

    by_rule, seen = predicted("rule")
    assert by_rule["source"]["shape"][0] == 6, "the most slices"
    ending = uid[-8:]
    assert f"{ending}" in seen, "what was passed over is named by what --series takes"
    for name, chosen in (("whole", uid), ("end", ending)):
        run, seen = predicted(name, "--series", chosen)
        assert run["source"]["shape"][0] == 4 and run["parameters"]["series"] == chosen
        assert "taken: CT, 4 slices" in seen and "passed over: CT, 6 slices" in seen and "not the one asked for" in seen
    seg = pydicom.dcmread(next((tmp_path / "end").glob("study-*/segmentation.dcm")))
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert cli.run([*words, "--out", str(tmp_path / "none"), "--series", "9.9.9.9"]) == 3
    table = capsys.readouterr().out
    assert "no series 9.9.9.9; there are" in table and ending in table


def test_what_does_not_apply_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert cli.run(["predict", str(bundle), "scan.nii.gz", "--tile", "512", "--aoi", "a.geojson", *out]) == 2
    assert "--aoi, --tile: only for scenes" in capsys.readouterr().err
    scenes = tiny_bundle(tmp_path / "scenes", scene_adapter())
    assert cli.run(["predict", str(scenes), "scene.tif", "--keep-names", *out]) == 2
    assert "--keep-names: only for studies" in capsys.readouterr().err
    assert cli.run(["predict", str(scenes), str(scan(tmp_path / "a.nii.gz")), *out]) == 2
    assert "a volume" in capsys.readouterr().err
    other = volume_bundle(tmp_path / "other", spacing=(1.0, 1.0, 3.0))
    assert cli.run(["predict", str(bundle), "scan.nii.gz", "--fold", str(other), *out]) == 2
    assert "not a fold" in capsys.readouterr().err
    assert cli.run(["predict", str(bundle), "scan.nii.gz", "--plane", "oblique", *out]) == 2
    assert "planes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_be_done(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scan(tmp_path / "a.nii.gz")
    words = ["predict", str(bundle), str(path), str(tmp_path / "gone"), "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.run(words) == 3
    text = capsys.readouterr().out
    assert "20x22x6 voxels" in text and "6 slices" in text and "study 2: would fail" in text
    assert not (tmp_path / "out").exists()


def test_files_of_one_patient_are_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from adapters.medical import mri
    from maskformer.config import ModelConfig
    from maskformer.model import build_model
    from pipelines.bundle import save_bundle

    one = mri(ClassSet((Class("lesion"),)), ("t1", "flair"), context_slices=0)
    torch.manual_seed(0)
    config = ModelConfig.from_preset("mfenet-efficientnet-lite0", in_channels=2, num_classes=1, **SMALL)
    model = save_bundle(tmp_path / "mr", build_model(config), one)
    t1, flair = scan(tmp_path / "p1_t1.nii.gz", 1), scan(tmp_path / "p1_flair.nii.gz", 2)
    out = tmp_path / "out"
    words = ["predict", str(model), f"t1={t1},flair={flair}", f"t1={t1}", f"{t1}=", "--out", str(out), *CPU]
    assert cli.run(words) == 2, "a word that is neither path nor channels is wrong usage"
    assert cli.run([w for w in words if w != f"{t1}="]) == 3
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["done", "failed"] and "flair" in rows[1]["reason"]
    run = json.loads((out / rows[0]["folder"] / "run.json").read_text())
    assert run["source"]["channels"] == ["t1", "flair"]


def bad_studies(folder: Path) -> dict[str, tuple[Path, str]]:
    """A study of every kind that cannot be predicted, and a word of the reason."""
    folder.mkdir()
    good = scan(folder / "good.nii.gz")
    raw = gzip.decompress(good.read_bytes())
    made: dict[str, tuple[Path, str]] = {}

    def put(name: str, content: bytes, word: str) -> None:
        (folder / name).write_bytes(content)
        made[name] = (folder / name, word)

    put("1.nii.gz", gzip.compress(b"no image" * 100), "not a NIfTI")
    put("2.txt", b"hello", "not a NIfTI")
    put("3.nii.gz", good.read_bytes()[: len(good.read_bytes()) // 2], "truncated")
    huge = bytearray(raw[:352])
    huge[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    put("4.nii.gz", gzip.compress(bytes(huge)), "cannot hold")
    empty = bytearray(raw)
    empty[40:56] = np.array([3, 20, 22, 0, 1, 1, 1, 1], "<i2").tobytes()
    put("5.nii", bytes(empty), "no voxels")
    flat = nibabel.Nifti1Image(np.zeros((5, 6), np.int16), np.eye(4))
    nibabel.save(flat, folder / "6.nii")
    made["flat"] = (folder / "6.nii", "picture of 5x6")
    nan = save(folder / "all nan.nii", np.full((8, 9, 5), np.nan, np.float32))
    made["all nan"] = (nan, "")  # no valid voxel: predicted, and nothing is found
    made["gone"] = (folder / "gone", "no such file")
    (folder / "n11").mkdir()
    made["nothing"] = (folder / "n11", "no DICOM image")
    (folder / "w10").mkdir()
    (folder / "w10" / "readme.txt").write_text("no image here")
    made["words"] = (folder / "w10", "none DICOM")
    plane = np.zeros((4, 8, 9), np.uint16)
    stack(folder / "two" / "a", plane, "one")
    stack(folder / "two" / "b", plane, "two", PatientID="CANARY-0815", PatientName="Canarybird^Sylvester")
    made["two patients"] = (folder / "two", "2 patients")
    for path in stack(folder / "p9", plane, "pixels")[1:2]:
        ds = pydicom.dcmread(path)
        del ds.PixelData
        ds.save_as(path)
    made["missing pixels"] = (folder / "p9", "no pixel data")
    stack(folder / "u7", plane, "uneven", [(0, 0, z) for z in (0, 2.5, 5.5, 7.5)])
    made["uneven"] = (folder / "u7", "unevenly spaced: 2 to 3 mm")
    stack(folder / "t8", plane, "tilt", [(0, 0.5 * z, 2.5 * z) for z in range(4)])
    made["tilt"] = (folder / "t8", "tilted")
    return made


def test_bad_studies_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = bad_studies(tmp_path / "in")
    model = VolumeModel(Oracle(2), adapter(2), digest="1")
    batch = predict_studies([p for p, _ in made.values()], model, tmp_path / "out", VolumeOptions(**FAST))
    for (name, (_, word)), row in zip(made.items(), batch.rows, strict=True):
        if word:
            assert row.status == "failed" and word in row.reason, (name, row.reason)
            assert "\n" not in row.reason and "unexpected" not in row.reason and str(tmp_path) not in row.reason
        else:
            assert row.status == "done" and row.objects == 0, (name, row.reason)
    assert batch.exit_code == 3
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("pipelines")]
    assert not any(secret in line for line in ours for secret in SECRETS)
    no_secret(tmp_path / "out")


def test_which_of_qform_and_sform_was_used_is_said_in_the_results(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(truth(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nibabel.save(image, tmp_path / "two forms.nii")
    batch = predict_studies([tmp_path / "two forms.nii"], VolumeModel(Oracle(2), adapter(2)), tmp_path / "out",
                            VolumeOptions(**FAST))  # fmt: skip
    folder = tmp_path / "out" / batch.rows[0].folder
    notes = json.loads((folder / "run.json").read_text())["warnings"]
    assert any("sform was used" in note for note in notes)
    made = nibabel.load(folder / "labels.nii.gz").header
    for key in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z", "pixdim"):
        assert np.array_equal(made[key], image.header[key]), key


def test_an_unforeseen_fault_stops_one_study_and_its_text_is_kept_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    predictor = VolumePredictor(VolumeModel(Oracle(2), adapter(2)), VolumeOptions(**FAST))
    plain = predictor.predictor

    def sometimes(pictures, wanted):  # type: ignore[no-untyped-def]
        if pictures[0][1].shape == (9, 9):
            raise KeyError(CANARY)
        return plain(pictures, wanted)

    predictor.predictor = sometimes  # type: ignore[assignment]
    odd = save(tmp_path / "odd.nii", np.zeros((9, 9, 3), np.int16), np.diag([-1.0, 1, 2, 1]))
    batch = predict_studies([odd, save(tmp_path / "fine.nii", truth())], predictor, tmp_path / "out")
    assert [row.status for row in batch.rows] == ["failed", "done"]
    assert "unexpected KeyError" in batch.rows[0].reason
    assert CANARY not in batch.rows[0].reason and not any(CANARY in r.getMessage() for r in caplog.records)
    assert any("sometimes" in r.getMessage() for r in caplog.records), "where, at the level of --debug"


def test_names_cannot_leave_the_output_folder_and_equal_ones_get_a_suffix(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [save(tmp_path / "a" / "x.nii", truth()), save(tmp_path / "b" / "x.nii", truth()[:, :, :9])]
    odd = save(tmp_path / "..nii", truth()[:, :8])
    long = save(tmp_path / f"{'y' * 200}.nii", truth()[:8])
    options = VolumeOptions(**FAST, keep_names=True)
    batch = predict_studies([*paths, odd, long], VolumeModel(Oracle(2), adapter(2)), tmp_path / "out", options)
    assert [row.folder for row in batch.rows] == ["x", "x-2", "study", "y" * 100]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", "b", "out", "..nii", long.name])


def test_reasons_and_notes_hold_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "Canarybird Tweety"
    (study / "scan of Tweety").mkdir(parents=True)
    (study / "scan of Tweety" / "Canarybird 1.nii.gz").touch()
    text = f"{study}/scan of Tweety/Canarybird 1.nii.gz: lies on another grid than Canarybird 1; found in {study}"
    plain = discreet(text, study, 4)
    assert not any(secret in plain for secret in SECRETS) and "study 4" in plain and "another grid than" in plain
    assert discreet("no series 1.2.3", {"t1": study / "Tweety_t1.nii"}, 1) == "no series 1.2.3"
    monkeypatch.chdir(study.parent)
    assert "Tweety" not in discreet("Canarybird Tweety/scan: gone", "Canarybird Tweety/scan", 2)


def test_a_schedulers_errors_name_no_file() -> None:
    said = without_paths(
        "/data/Doe, Jane/scan of Tweety.nii.gz: on another grid: 2x3 voxels against x; see a/Tweety b.dcm"
    )
    assert "Tweety" not in said and "Jane" not in said and "on another grid: 2x3 voxels against x" in said
    assert without_paths("split: leaves nothing; there are 4 patients") == "split: leaves nothing; there are 4 patients"


def test_the_studies_of_a_folder(tmp_path: Path) -> None:
    stack(tmp_path / "b", np.zeros((3, 8, 9), np.uint16))
    scan(tmp_path / "a.nii.gz")
    (tmp_path / "notes.txt").write_text("not a study")
    (tmp_path / ".hidden").mkdir()
    assert [p.name for p in studies_in(tmp_path)] == ["a.nii.gz", "b"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_goes_on(bundle: Path, tmp_path: Path) -> None:
    first, second = scan(tmp_path / "1.nii.gz"), scan(tmp_path / "2.nii.gz", 1, (160, 160, 120))
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    words = ["predict", str(bundle), str(first), str(second), "--out", str(out), *CPU, "--score", "0"]
    command = [sys.executable, "-m", "pipelines.cli", *words]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(1200):
        if list(out.glob("study-*/run.json")):
            break
        time.sleep(0.05)
    time.sleep(1.0)  # into the second study
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "interrupted" in errors, errors
    assert len(list(out.iterdir())) == 2, "the first study and the summary"
    assert [row["status"] for row in csv.DictReader((out / "summary.csv").open())] == ["done"]
    assert not list(temporary.iterdir()), "what was unpacked is gone"
    small = scan(second, 2)
    assert small == second and cli.run(words) == 0
    assert [row["status"] for row in csv.DictReader((out / "summary.csv").open())] == ["there", "done"]
