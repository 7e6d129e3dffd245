"""The gate over a model that was really trained: mask queries, real crowns, boxes for labels, a minute and a half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.bundle import Bundle, load_bundle, save_bundle
from pipelines.config import load_config
from pipelines.experiments import train
from pipelines.promotion.frozen import FrozenData
from pipelines.promotion.gate import Gate
from pipelines.promotion.policy import Policy
from tests.conftest import REPOSITORY
from tests.pipelines.test_samples import fetch_or_skip


def noisy(bundle: Bundle, folder: Path) -> Bundle:
    """The same network after an accident to its weights: each moved by a third of its tensor's spread."""
    torch.manual_seed(0)
    network = bundle.build()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter += 0.33 * parameter.std() * torch.randn_like(parameter)
    save_bundle(folder, network, bundle.adapter, thresholds=bundle.thresholds, provenance=bundle.provenance)
    return load_bundle(folder)


@pytest.mark.slow
def test_a_trained_mask_model_passes_and_a_spoilt_one_does_not(tmp_path: Path) -> None:
    for sample in ("crowns", "efficientnet_lite0"):
        fetch_or_skip(sample)
    config = load_config(REPOSITORY / "flows" / "demos" / "crowns.yaml").model_copy(update={"baseline": None})
    outcome = train(config, tmp_path / "run", minutes=1.5, seed=0)
    trained = load_bundle(outcome.bundle)
    assert trained.config.architecture != "unet"
    with FrozenData([config], trained.adapter) as data:
        assert all(part.box_labels for part in data.parts)
        gate = Gate(data, Policy(slower=2))  # other tests may run beside it
        first = gate.judge(trained)
        assert first.passed, first.refusal
        floors = {verdict.rule: verdict for verdict in first.verdicts}["baseline"].numbers
        for score in ("foreground IoU", "PQ of objects"):
            best = max(value for value in floors[score]["trivial"].values() if value is not None)
            assert floors[score]["candidate"] > 1.1 * best > 0, "a wide margin"
        assert floors["PQ of objects"]["candidate"] == pytest.approx(outcome.metrics["pq"], abs=0.05)
        spoilt = gate.judge(noisy(trained, tmp_path / "spoilt"), trained)
        assert "quality" in spoilt.refused_by and not spoilt.passed, spoilt.refusal
