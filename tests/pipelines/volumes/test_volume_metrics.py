"""Scores of volumes: equal to MONAI's, stated where there is nothing to compare."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from maskformer.masks import MaskSet
from pipelines.volumes.metrics import bootstrap, components, lesion_f1, score_labels, score_masks, summarise


def blob(random: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return ndimage.gaussian_filter(random.normal(size=shape), 2) > 0.03


@pytest.mark.parametrize("seed", range(6))
def test_monai_says_the_same(seed: int) -> None:
    metrics = pytest.importorskip("monai.metrics")
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(8, 24, 3).tolist())
    spacing = tuple(random.uniform(0.5, 4, 3).round(2).tolist())
    truth = blob(random, shape)
    prediction = truth ^ (random.random(shape) < 0.02) if seed % 2 else blob(random, shape)
    tolerance = float(random.uniform(0.5, 3))
    found = score_masks(prediction, truth, spacing, tolerance)
    a, b = (torch.from_numpy(m)[None, None] for m in (prediction, truth))
    expected = {
        "dice": metrics.compute_dice(a, b),
        "iou": metrics.compute_iou(a, b),
        "hd95": metrics.compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing),
        "nsd": metrics.compute_surface_dice(a, b, [tolerance], include_background=True, spacing=spacing),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6, rel=1e-6), name


def test_empty_cases() -> None:
    empty = np.zeros((4, 4, 4), bool)
    full = ~empty
    both = score_masks(empty, empty, (1, 1, 1))
    assert math.isnan(both["dice"]) and math.isnan(both["hd95"]) and both["volume_error_mm3"] == 0
    missed = score_masks(empty, full, (1, 1, 2))
    assert missed["dice"] == missed["nsd"] == missed["lesion_f1"] == 0
    assert missed["hd95"] == pytest.approx(math.sqrt(16 + 16 + 64)) and missed["volume_error_mm3"] == -128
    assert missed["relative_volume_error"] == -1
    invented = score_masks(full, empty, (1, 1, 2))
    assert invented["iou"] == 0 and invented["volume_error_mm3"] == 128
    assert math.isnan(invented["relative_volume_error"])
    with pytest.raises(ValueError, match="one shape"):
        score_masks(empty, empty[:3], (1, 1, 1))


def test_a_perfect_prediction() -> None:
    truth = np.zeros((10, 12, 12), np.uint8)
    truth[2:5, 2:5, 2:5], truth[6:9, 6:10, 6:10] = 1, 2
    found = score_labels(truth, truth, {1: "core", 2: "edema"}, (3, 1, 1))
    for scores in found.values():
        assert (scores["dice"], scores["nsd"], scores["lesion_f1"], scores["hd95"]) == (1, 1, 1, 0)


def test_lesions_are_matched_one_to_one() -> None:
    truth = np.zeros((6, 20, 20), bool)
    for column in (1, 8, 15):
        truth[1:5, 2:6, column : column + 4] = True
    prediction = truth.copy()
    prediction[:, :, 15:] = False  # one missed
    prediction[1:5, 14:18, 1:5] = True  # one invented
    assert lesion_f1(components(prediction), components(truth)) == pytest.approx(2 * 2 / 6)
    joined = truth.copy()
    joined[2, 3, :19] = True  # one object over all three finds at most one
    assert lesion_f1(components(joined), components(truth)) == pytest.approx(2 * 1 / 4)
    assert math.isnan(lesion_f1(MaskSet.empty((2, 2, 2)), MaskSet.empty((2, 2, 2))))
    assert len(components(np.eye(4, dtype=bool)[None].repeat(1, 0))) == 1  # corners touch


def test_patients_not_cases_are_drawn() -> None:
    cases = [{"a": {"dice": v}} for v in (0.9, 0.9, 0.9, 0.9, 0.5)]
    found = summarise(cases, ["p", "p", "p", "p", "q"])["a"]["dice"]
    assert found.mean == pytest.approx(0.7) and found.patients == 2
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(0.9)
    random = np.random.default_rng(0).normal(0.8, 0.1, 400)
    interval = bootstrap(random)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert bootstrap(np.array([np.nan])).patients == 0
    assert bootstrap(random) == bootstrap(random)
