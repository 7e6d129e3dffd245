"""Scores of whole volumes: by class and patient, in mm, equal to MONAI's, without names."""

import json
import math

import numpy as np
import pytest
import torch

from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.config import ScoringOptions
from pipelines.volumes.evaluation import CaseScores, hashed, score_case, summary
from pipelines.volumes.labels import VolumeLabels, components
from pipelines.volumes.prediction import VolumeResult
from tests.pipelines.volumes.make_cases import adapter, balls

SPACING = (1.0, 0.8, 2.5)


def labelled(values: np.ndarray, ignore: np.ndarray | None = None) -> VolumeLabels:
    """Class 1 as its components (a thing), class 2 as one object (stuff)."""
    stuff = values == 2
    parts = [components(values == 1, 0), MaskSet.from_dense(stuff[None], [1]) if stuff.any() else None]
    objects = MaskSet.concatenate([p for p in parts if p is not None])
    return VolumeLabels(objects, ("class0", "class1"), ignore)


def predicted(values: np.ndarray) -> VolumeResult:
    return VolumeResult(values, labelled(values).objects, 0)


def test_a_perfect_prediction() -> None:
    scores = score_case(predicted(balls()), labelled(balls()), adapter(), SPACING)
    for name in ("class0", "class1"):
        row = scores[name]
        assert (row["dice"], row["iou"], row["nsd"], row["lesion_f1"], row["hd95"]) == (1, 1, 1, 1, 0)
        assert row["volume_error_mm3"] == row["relative_volume_error"] == 0


def test_monai_says_the_same() -> None:
    metrics = pytest.importorskip("monai.metrics")
    mine, theirs = balls(seed=1), balls(seed=2)
    scores = score_case(predicted(mine), labelled(theirs), adapter(), SPACING, tolerance_mm=1.3)
    a, b = (torch.from_numpy(np.stack([v == 1, v == 2]))[None] for v in (mine, theirs))
    expected = {
        "dice": metrics.compute_dice(a, b),
        "iou": metrics.compute_iou(a, b),
        "hd95": metrics.compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=SPACING),
        "nsd": metrics.compute_surface_dice(a, b, [1.3, 1.3], include_background=True, spacing=SPACING),
    }
    for key, values in expected.items():
        for name, value in zip(("class0", "class1"), values[0].tolist()):
            assert 0 < value < 40 and scores[name][key] == pytest.approx(value, abs=1e-6), key
    volume = float(np.prod(SPACING)) * (int((mine == 2).sum()) - int((theirs == 2).sum()))
    assert scores["class1"]["volume_error_mm3"] == pytest.approx(volume)


def test_an_outer_class_holds_what_lies_in_it() -> None:
    rules = VolumeRules(planes=("axial",), inside={"class1": "class0"})
    one = adapter(("stuff", "stuff"), volume=rules, overlap="layered")
    values = np.zeros((6, 8, 8), np.uint8)
    values[1:5, 1:7, 1:7] = 1
    values[2:4, 3:5, 3:5] = 2
    masks = np.stack([values > 0, values == 2])
    truth = VolumeLabels(MaskSet.from_dense(masks, [0, 1]), ("class0", "class1"))
    result = VolumeResult(values, MaskSet.from_dense(masks, [0, 1]), 0)
    scores = score_case(result, truth, one, SPACING)
    assert scores["class0"]["dice"] == scores["class1"]["dice"] == 1
    flat = score_case(result, truth, adapter(("stuff", "stuff")), SPACING)
    assert flat["class0"]["dice"] < 1, "without the nesting the hole counts"


def test_ignored_voxels_count_nowhere() -> None:
    truth, ignore = balls(), np.zeros(balls().shape, bool)
    wrong = truth.copy()
    wrong[23:] = 1
    ignore[23:] = True
    assert score_case(predicted(wrong), labelled(truth), adapter(), SPACING)["class0"]["dice"] < 0.9
    row = score_case(predicted(wrong), labelled(truth, ignore), adapter(), SPACING)["class0"]
    assert row["dice"] == row["lesion_f1"] == 1 and row["hd95"] == 0


def test_lesions_are_objects_not_components() -> None:
    """Two touching lesions that the model tells apart are two; as components of the class map they would be one."""
    values = np.zeros((4, 12, 12), np.uint8)
    values[:, 2:10, 2:6] = values[:, 2:10, 6:10] = 1
    masks = np.zeros((2, *values.shape), bool)
    masks[0, :, 2:10, 2:6] = masks[1, :, 2:10, 6:10] = True
    truth = VolumeLabels(MaskSet.from_dense(masks, [0, 0]), ("class0", "class1"))
    apart = score_case(VolumeResult(values, truth.objects, 0), truth, adapter(), SPACING)
    merged = score_case(predicted(values), truth, adapter(), SPACING)
    assert apart["class0"]["lesion_f1"] == 1 and merged["class0"]["lesion_f1"] == pytest.approx(2 / 3)


def test_the_summary_averages_patients_and_names_none() -> None:
    def case(number: int, patient: str, dice: float) -> CaseScores:
        row = {"dice": dice, "hd95": math.nan}
        return CaseScores(f"c{number}", hashed(patient), {"class0": row, "class1": {"dice": 1.0}})

    cases = [case(0, "Doe^Jane", 0.2), case(1, "Doe^Jane", 0.4), case(2, "Roe", 0.9)]
    found = summary(cases, ScoringOptions(samples=200))
    assert found["counts"] == {"cases": 3, "patients": 2}
    assert found["per_class"]["class0"]["dice"]["mean"] == pytest.approx((0.3 + 0.9) / 2)
    assert found["dice"] == pytest.approx(((0.3 + 1) / 2 + (0.9 + 1) / 2) / 2)
    low, high = found["intervals"]["dice"]
    assert low == pytest.approx(0.65) and high == pytest.approx(0.95)
    assert found["hd95"] is None and found["per_class"]["class0"]["hd95"]["patients"] == 0
    text = json.dumps(found, allow_nan=False)
    assert "Doe" not in text and "Roe" not in text
    again = [CaseScores.from_dict(row) for row in json.loads(text)["per_case"]]
    assert summary(again, ScoringOptions(samples=200)) == found
