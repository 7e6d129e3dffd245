"""Every preset: its size, a training step at small widths, and one at full width (slow)."""

import re
from pathlib import Path

import pytest
import torch

from maskformer.annealing import set_progress
from maskformer.config import PRESETS, ModelConfig
from maskformer.losses import build_criterion
from maskformer.model import build_model
from maskformer.prediction import Prediction
from maskformer.targets import Target
from tests.maskformer.families import FAMILIES, learner

GUIDE = Path(__file__).parents[2] / "docs" / "models.md"
# Published counts, M (papers, and transformers' classes); PEM's are rounded there to whole millions for STDC.
PUBLISHED = {
    "maskformer-resnet50": (41.3, 0.1),
    "maskformer-swin-tiny": (41.8, 0.1),
    "maskformer-swin-small": (63.1, 0.1),
    "maskformer-swin-base": (101.8, 0.1),
    "maskformer-swin-large": (211.6, 0.1),
    "mask2former-resnet50": (44.0, 0.1),
    "mask2former-swin-tiny": (47.4, 0.1),
    "mask2former-swin-small": (68.8, 0.1),
    "mask2former-swin-base": (106.9, 0.1),
    "mask2former-swin-large": (215.5, 0.1),
    "pem-resnet50": (35.6, 0.1),
    "pem-stdc1": (17, 0.5),
    "pem-stdc2": (21, 0.5),
}
FORWARD_ONLY = {"maskformer-swin-large", "mask2former-swin-large", "eomt-large"}  # a step takes 4 GB and more
SIDE = 64


def documented() -> dict[str, float]:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([0-9.]+) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: float(count) for name, count in rows}


def test_the_guide_lists_every_preset() -> None:
    assert set(documented()) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts_are_those_published_and_documented(preset: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig.from_preset(preset))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(documented()[preset], abs=0.006)
    if preset in PUBLISHED:
        wanted, tolerance = PUBLISHED[preset]
        assert millions == pytest.approx(wanted, abs=tolerance)


def step(config: ModelConfig, side: int) -> None:
    """One training step on noise: every output finite, and every trainable parameter with a finite gradient."""
    torch.manual_seed(0)
    model, criterion = build_model(config).train(), build_criterion(config)
    set_progress(model, 0.0)
    masks = torch.zeros(3, side, side, dtype=torch.bool)
    masks[0, :20, :30], masks[1, 15:40, 20:50], masks[2, 40:] = True, True, True  # the first two overlap
    target = Target.from_masks(torch.arange(3) % config.num_classes, masks, torch.ones(side, side, dtype=torch.bool))
    losses = criterion(model(torch.randn(2, config.in_channels, side, side)), [target, target])
    losses["total"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_model_of_every_family_trains_a_step(family: str) -> None:
    step(learner(family, in_channels=4), SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_at_full_width(preset: str) -> None:
    config = ModelConfig.from_preset(preset)
    if preset not in FORWARD_ONLY:
        return step(config, 2 * SIDE)
    with torch.inference_mode():
        found = build_model(config).eval()(torch.randn(1, 3, 2 * SIDE, 2 * SIDE))
    assert isinstance(found, Prediction)
    assert found.mask_logits.shape == (1, config.num_queries, SIDE // 2, SIDE // 2)
    assert torch.isfinite(found.mask_logits).all() and torch.isfinite(found.class_logits).all()
