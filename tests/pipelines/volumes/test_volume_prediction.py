"""Volumes from file to files with a model that knows the answer: slices, links, grids, batches, memory."""

import csv
import json
import logging
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.volume import SeriesRule, VolumeRules
from maskformer.masks import MaskSet
from maskformer.prediction import DensePrediction, Prediction
from pipelines.volumes.prediction import VolumeModel, VolumeOptions, VolumePredictor, apart
from pipelines.volumes.slicing import Slices
from pipelines.volumes.source import open_volume
from pipelines.volumes.studies import predict_studies, predict_volume
from tests.models import Oracle
from tests.pipelines.volumes.make_dicom import CANARY, stack

FAST = {"device": "cpu", "precision": "fp32"}
AFFINE = np.array([[0, -1.0, 0.1, 30], [1.2, 0, 0, -20], [0, 0.1, 3, 5], [0, 0, 0, 1]])


def adapter(classes: int = 2, **settings: object) -> DomainAdapter:
    names = tuple(Class(f"class{k}") for k in range(classes))
    return DomainAdapter("test", ChannelSet((Channel("image", (1,)),)), ClassSet(names), **settings)


def truth(shape: tuple[int, int, int] = (20, 22, 16)) -> np.ndarray:
    """Two classes, objects that end and begin, one above the other with an empty slice between."""
    z = np.indices(shape)
    labels = np.zeros(shape, np.int16)
    for centre, radius, value in (((5, 6, 4), 4, 1), ((13, 14, 7), 5, 2), ((5, 16, 12), 3, 1)):
        labels[sum((g - c) ** 2 for g, c in zip(z, centre)) <= radius**2] = value
    labels[12:15, 2:5, 2:6] = labels[12:15, 2:5, 7:10] = 2
    return labels


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    image.header["descrip"] = CANARY.encode()
    nibabel.save(image, path)
    return path


def model(classes: int = 2, **settings: object) -> VolumeModel:
    return VolumeModel(Oracle(classes), adapter(classes, **settings), sha256="0" * 64, digest="1" * 64)


class Threshold(nn.Module):
    """Says class 0 where the middle one of the picture's channels is above one half, less surely close to it."""

    def __init__(self, channels: int = 1, shift: float = 0.0, sure: float = 20.0) -> None:
        super().__init__()
        self.middle, self.shift, self.sure = channels // 2, shift, sure

    def forward(self, x: Tensor) -> DensePrediction:
        seen = x[:, self.middle]
        return DensePrediction(torch.stack([self.sure * (seen - 0.5 + self.shift), torch.zeros_like(seen)], 1))


class OneQuery(nn.Module):
    """One object of class 0, whose mask is as probable as the picture is bright: from 0.02 to 0.98."""

    def forward(self, x: Tensor) -> Prediction:
        masks = 8 * (nn.functional.avg_pool2d(x[:, :1], 4) - 0.5)
        return Prediction(torch.tensor([[[9.0, -9.0]]]).expand(len(x), 1, 2), masks)


@pytest.mark.parametrize("planes", [None, ("axial",), ("coronal",), ("axial", "coronal", "sagittal")])
@pytest.mark.parametrize("smooth", [False, True])
def test_the_truth_comes_back_from_any_plane(tmp_path: Path, planes: tuple | None, smooth: bool) -> None:
    labels = truth()
    options = VolumeOptions(**FAST, planes=planes, smooth=smooth)
    folder = predict_volume(save(tmp_path / "scan.nii.gz", labels), model(), tmp_path / "out", options)
    image = nibabel.load(folder / "labels.nii.gz")
    if not smooth:
        assert np.array_equal(np.asanyarray(image.dataobj), labels)
    assert np.array_equal(image.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
    objects = np.asanyarray(nibabel.load(folder / "objects.nii.gz").dataobj)
    assert np.array_equal(objects > 0, labels > 0)
    if planes in (None, ("axial",)):
        assert len(np.unique(objects)) - 1 == 5  # what an empty slice parts is two objects
        with (folder / "objects.csv").open() as file:
            assert sorted(row["class"] for row in csv.DictReader(file)) == ["class0"] * 2 + ["class1"] * 3


def test_small_objects_are_left_out_and_gaps_bridged_on_request(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", truth())
    few = predict_volume(path, model(), tmp_path / "a", VolumeOptions(**FAST, min_volume_mm3=1000))
    assert json.loads((few / "run.json").read_text())["objects"] == 1
    gap = predict_volume(path, model(), tmp_path / "b", VolumeOptions(**FAST, gap=1))
    assert json.loads((gap / "run.json").read_text())["objects"] == 4


def test_regions_of_a_semantic_task_touch_in_three_dimensions(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", truth())
    folder = predict_volume(path, model(), tmp_path / "out", VolumeOptions(**FAST, task="semantic"))
    assert json.loads((folder / "run.json").read_text())["objects"] == 5


def test_a_coarser_model_grid_gives_results_on_the_files_grid(tmp_path: Path) -> None:
    labels = np.zeros((30, 30, 20), np.float32)
    labels[6:20, 8:24, 4:16] = 1
    path = save(tmp_path / "scan.nii", labels, np.diag([-1.0, 1, 1, 1]))
    soft = VolumeModel(Threshold(), adapter(1, spacing=(2, 2, 2)))
    folder = predict_volume(path, soft, tmp_path / "out", VolumeOptions(**FAST))
    found = np.asanyarray(nibabel.load(folder / "labels.nii.gz").dataobj)
    assert found.shape == labels.shape
    objects = np.asanyarray(nibabel.load(folder / "objects.nii.gz").dataobj)
    for one in (found, objects):
        away = np.mean(np.nonzero(one == 1), 1) - np.mean(np.nonzero(labels), 1)
        assert np.abs(away).max() < 0.1 and abs(int((one == 1).sum()) / labels.sum() - 1) < 0.15


def test_a_slice_and_its_neighbours_are_masked_each_by_its_own_voxels() -> None:
    values = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    valid = np.ones((3, 4, 5), bool)
    valid[2, 1, 3] = False  # a voxel of the slice above: no other slice may lose it, and it may reach none
    channels = ChannelSet((Channel("x", (), 1, 2), Channel("y", (), 3, 4)))
    one = DomainAdapter("a", channels, ClassSet((Class("c"),)), context_slices=1)
    slices = Slices(values, valid, 1, one)
    picture, seen = slices[0]
    assert slices.shape == (4, 3, 5) and picture.shape == (6, 3, 5) and seen.all()
    assert np.allclose(picture[0], (values[0, :, 0] - 1) / 2) and np.array_equal(picture[:2], picture[2:4])
    above = (values[1, :, 1] - 3) / 4
    above[2, 3] = 0
    assert np.allclose(picture[5], above)
    assert not slices[1][1][2, 3] and slices[1][1].sum() == 14


@pytest.mark.parametrize("spacing", [None, (1.7, 1.3, 2.0)])
def test_voxels_without_a_value_reach_none_that_has_one(tmp_path: Path, spacing: tuple | None) -> None:
    labels = np.zeros((24, 26, 18), np.float32)
    labels[4:18, 6:20, 3:15] = 1
    hole = (slice(9, 11), slice(9, 11), slice(7, 9))
    found = []
    for number, fill in enumerate((np.nan, np.inf, -np.inf)):
        broken = labels.copy()
        broken[hole] = fill
        path = save(tmp_path / f"{number}.nii", broken, np.diag([-1.0, 1, 1, 1]))
        one = VolumeModel(Threshold(3), adapter(1, spacing=spacing, context_slices=1))
        folder = predict_volume(path, one, tmp_path / "out", VolumeOptions(**FAST, batch=2))
        found.append(np.asanyarray(nibabel.load(folder / "labels.nii.gz").dataobj))
        assert (found[-1][hole] == 0).all(), "nothing is seen where nothing was measured"
        away = found[-1] != labels
        away[tuple(slice(s.start - 2, s.stop + 2) for s in hole)] = False
        border = ndimage.binary_dilation(labels, iterations=2) & ~ndimage.binary_erosion(labels, iterations=2)
        assert not (away & ~border).any() and away.sum() < (0.5 if spacing else 1e-9) * border.sum() + 1
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize("planes", [None, ("axial", "coronal", "sagittal")])
def test_mirrored_slices_give_the_same(tmp_path: Path, planes: tuple | None) -> None:
    labels = truth()
    options = VolumeOptions(**FAST, tta="flip", planes=planes)
    folder = predict_volume(save(tmp_path / "scan.nii", labels), model(), tmp_path / "out", options)
    assert np.array_equal(np.asanyarray(nibabel.load(folder / "labels.nii.gz").dataobj), labels)
    assert json.loads((folder / "run.json").read_text())["objects"] == 5


def test_folds_are_averaged(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 1, 24, dtype=np.float32), (16, 10, 1)).swapaxes(1, 2)
    path = save(tmp_path / "scan.nii", ramp, np.diag([-1.0, 1, 1, 1]))
    sizes = {}
    for name, shifts in (("low", (-0.1,)), ("high", (0.1,)), ("both", (-0.1, 0.1)), ("middle", (0.0,))):
        first, *folds = (Threshold(shift=shift, sure=6) for shift in shifts)
        one = VolumeModel(first, adapter(1), folds=tuple(folds), digest=name)
        folder = predict_volume(path, one, tmp_path / "out", VolumeOptions(**FAST, score=0.1))
        sizes[name] = [
            int((np.asanyarray(nibabel.load(folder / f"{kind}.nii.gz").dataobj) > 0).sum())
            for kind in ("labels", "objects")
        ]
    assert sizes["low"][0] < sizes["both"][0] < sizes["high"][0] and sizes["both"] == sizes["middle"]


@pytest.mark.parametrize("way", [{}, {"tta": "flip"}, {"spacing": (2.0, 2.0, 1.0)}, {"spacing": (0.5, 0.5, 1.0)}])
def test_masks_are_cut_at_the_models_own_threshold(tmp_path: Path, way: dict) -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32)[:, None, None], (1, 64, 3))
    path = save(tmp_path / "scan.nii", ramp, np.diag([-1.0, -1, 1, 1]))
    one = adapter(1, **{k: v for k, v in way.items() if k == "spacing"})
    flags = {**FAST, **{k: v for k, v in way.items() if k == "tta"}}
    share = {}
    for name, tuned, asked in (
        ("plain", {}, {}),
        ("tuned", {"mask": 0.8}, {}),
        ("asked", {"mask": 0.8}, {"mask": 0.2}),
    ):
        model = VolumeModel(OneQuery(), one, {"score": 0.1, **tuned}, digest=name)
        with open_volume(path) as source:
            objects = VolumePredictor(model, VolumeOptions(**flags, **asked, planes=("axial",)))(source).objects
        assert len(objects) == 1
        share[name] = objects.areas[0] / ramp.size
    # the picture is bright enough for 0.8 from 0.5 + ln(4) / 8 on
    for name, wanted in (("plain", 0.5), ("tuned", 0.5 - np.log(4) / 8), ("asked", 0.5 + np.log(4) / 8)):
        assert abs(share[name] - wanted) < 2.5 / 64, (name, share)


def test_an_organ_and_its_lesions_in_one_pass(tmp_path: Path) -> None:
    labels = np.zeros((20, 22, 12), np.int16)
    labels[3:17, 3:19, 2:10] = 1
    labels[5:8, 5:8, 4:7] = labels[10:14, 10:14, 3:8] = 2
    labels[10:14, 10:14, 5] = 1  # an empty slice between: two lesions in line
    classes = ClassSet((Class("liver", "stuff"), Class("lesion")))
    rules = VolumeRules(inside={"lesion": "liver"})
    one = DomainAdapter("t", ChannelSet((Channel("image", (1,)),)), classes, overlap="layered", volume=rules)
    path = save(tmp_path / "scan.nii", labels, np.diag([-1.0, 1, 2, 1]))
    folder = predict_volume(path, VolumeModel(Oracle(2), one), tmp_path / "out", VolumeOptions(**FAST))
    with (folder / "objects.csv").open() as file:
        rows = sorted((row["class"], int(row["voxels"])) for row in csv.DictReader(file))
    assert rows == [("lesion", 27), ("lesion", 32), ("lesion", 32), ("liver", 14 * 16 * 8)], (
        "the liver holds its lesions"
    )
    assert nibabel.load(folder / "objects.nii.gz").shape == (20, 22, 12, 2), "overlaps lie in layers"
    assert np.array_equal(np.asanyarray(nibabel.load(folder / "labels.nii.gz").dataobj), labels)


def test_pieces_of_one_object_become_objects() -> None:
    dense = np.zeros((2, 6, 7, 8), bool)
    dense[0, 1:3, 1:3, 1:3] = dense[0, 4:6, 4:6, 4:6] = dense[1, 0:3, 0:3, 0:3] = True
    found = apart(MaskSet.from_dense(dense, [0, 1], [0.5, 0.75]))
    assert found.labels.tolist() == [0, 0, 1] and found.scores.tolist() == [0.5, 0.5, 0.75]
    assert found.areas.tolist() == [8, 8, 27]


def test_dicom_gets_a_segmentation_and_names_stay_inside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    labels = truth((6, 20, 24))
    stack(tmp_path / CANARY, labels.astype(np.uint16), RescaleIntercept=0)
    one = VolumeModel(Oracle(2), adapter(2), digest="1")
    batch = predict_studies(
        [tmp_path / CANARY, tmp_path / f"{CANARY} gone"], one, tmp_path / "out", VolumeOptions(**FAST)
    )
    assert [row.status for row in batch.rows] == ["done", "failed"] and batch.exit_code == 3
    folder = tmp_path / "out" / batch.rows[0].folder
    assert (folder / "segmentation.dcm").is_file()
    assert np.array_equal(np.asanyarray(nibabel.load(folder / "labels.nii.gz").dataobj), labels)
    for path in (tmp_path / "out").rglob("*"):
        assert CANARY not in str(path.relative_to(tmp_path / "out"))
        if path.is_file() and path.suffix != ".dcm":
            assert CANARY.encode() not in path.read_bytes(), path
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("pipelines")]
    assert ours and not any(CANARY in line for line in ours) and CANARY not in batch.table()


def test_a_bad_study_does_not_stop_a_batch_and_a_rerun_does_what_is_missing(tmp_path: Path) -> None:
    good = save(tmp_path / "good.nii.gz", truth())
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(good.read_bytes()[:200])
    predictor = VolumePredictor(model(), VolumeOptions(**FAST))
    first = predict_studies([bad, good], predictor, tmp_path / "out")
    assert [row.status for row in first.rows] == ["failed", "done"] and first.exit_code == 3
    assert first.rows[0].reason and "bad" not in first.rows[0].reason
    assert "failed" in (tmp_path / "out" / "summary.csv").read_text()
    bad.write_bytes(save(tmp_path / "mended.nii.gz", truth()[:, :, :9]).read_bytes())
    second = predict_studies([bad, good], predictor, tmp_path / "out")
    assert [row.status for row in second.rows] == ["done", "there"] and second.exit_code == 0
    assert second.rows[1].folder == first.rows[1].folder and second.rows[1].objects == first.rows[1].objects
    other = VolumePredictor(model(), VolumeOptions(**FAST, min_volume_mm3=5))
    assert predict_studies([good], other, tmp_path / "out").rows[0].status == "done"


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", truth())
    folders = [predict_volume(path, model(), tmp_path / name, VolumeOptions(**FAST)) for name in "ab"]
    for name in ("labels.nii.gz", "labels.json", "objects.nii.gz", "objects.json", "objects.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_memory_does_not_grow_with_classes_times_volume(tmp_path: Path) -> None:
    classes, peaks = 120, []
    predictor = VolumePredictor(model(classes), VolumeOptions(**FAST, batch=1, smooth=True, task="semantic"))
    for depth in (16, 64):
        labels = np.random.default_rng(0).integers(0, classes + 1, (4, 4, depth // 8)).astype(np.int16)
        labels = labels.repeat(8, 0).repeat(8, 1).repeat(8, 2)
        path = save(tmp_path / f"{depth}.nii", labels, np.diag([1.0, 1, 2, 1]))
        with open_volume(path) as source:
            tracemalloc.start()
            result = predictor(source)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert len(np.unique(result.labels)) > 25
    more = (64 - 16) * 32 * 32  # voxels; float16 probabilities of all classes would be 240 bytes each
    assert peaks[1] - peaks[0] < 24 * more, f"{peaks} bytes"


@pytest.mark.parametrize(
    ("modality", "least", "words"),
    [("CT", 0, "no value is below 0"), ("CT", -800, ""), ("MR", -1024, "look like a CT"), ("MR", 0, ""), (None, 0, "")],
)
def test_a_file_that_looks_like_another_modality_is_told(
    tmp_path: Path, modality: str | None, least: int, words: str
) -> None:
    """A NIfTI does not say what it is, and a model of CT finds something in an MR too."""
    picture = truth()
    picture[0, 0, 0] = least
    one = adapter(2, volume=VolumeRules(series=SeriesRule(modality)))
    folder = predict_volume(save(tmp_path / "scan.nii", picture), VolumeModel(Oracle(2), one), tmp_path / "out",
                            VolumeOptions(**FAST))  # fmt: skip
    said = [note for note in json.loads((folder / "run.json").read_text())["warnings"] if "the model is for" in note]
    assert bool(said) == bool(words) and all(words in note for note in said)
