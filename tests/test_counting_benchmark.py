"""What the counting benchmark is made of; the benchmark itself trains for half an hour."""

import numpy as np
import pytest
import torch

from benchmarks import counting, density_unet
from maskformer.masks import MaskSet
from maskformer.targets import Target


def test_the_density_sums_to_the_objects_in_view() -> None:
    masks = np.zeros((3, 64, 64), bool)
    masks[0, 20:30, 20:30] = masks[1, 24:40, 24:40] = masks[2, 0:3, 60:64] = True  # two overlap, one at the edge
    target = Target.from_mask_set(MaskSet.from_dense(masks, [0, 0, 0]), np.ones((64, 64), bool))
    heat = density_unet.density_of(target)
    assert float(heat.sum()) == pytest.approx(3, abs=1e-4)
    assert heat[25, 25] > heat[10, 50] and torch.isfinite(heat).all()
    empty = Target.from_mask_set(MaskSet.empty((64, 64)), np.ones((64, 64), bool))
    assert float(density_unet.density_of(empty).sum()) == 0


def test_means_over_the_seeds() -> None:
    mask = dict.fromkeys(counting.KEYS, 2.0)
    rows = [
        {"mask_model": {**mask, "mae": mae, "mean_count": 20.0}, "soft_count": {"mae": mae}, "density_unet": {"mae": 1}}
        for mae in (1.0, 3.0)
    ]
    means = counting.means(rows)
    assert means["mask_model"]["mae"] == 2 and means["mask_model"]["mae_over_mean_count"] == 0.1
    assert means["soft_count"]["mae"] == 2 and means["density_unet"]["mae"] == 1
