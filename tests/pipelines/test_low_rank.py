"""Low-rank adapters: only they learn in the backbone, and what is left is a plain model."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from adapters.errors import InputError
from maskformer.config import ModelConfig
from maskformer.model import build_model
from pipelines import low_rank
from pipelines.bundle import load_bundle
from pipelines.config import TrainOptions
from pipelines.experiments import train
from tests.models import TINY, squares_config

PRESETS = {"mfenet-efficientnet-lite0": {}, "maskformer-swin-tiny": {"backbone_options": {"drop_path": 0.0}}}


def build(preset: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig.from_preset(preset, num_classes=1, **TINY, **PRESETS[preset]))


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"maskbridge\[low-rank\]"):
        low_rank.attach(build("mfenet-efficientnet-lite0"), 2)


def test_a_frozen_backbone_has_no_adapters() -> None:
    with pytest.raises(ValidationError, match="leave it out of `freeze`"):
        TrainOptions(steps=1, low_rank=2, freeze=("backbone",))


@pytest.mark.parametrize("preset", PRESETS)
def test_adapters_learn_and_are_merged(preset: str) -> None:
    pytest.importorskip("peft")
    model = build(preset)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    picture = torch.randn(2, 3, 64, 64)
    plain = model.eval()(picture).mask_logits
    count = low_rank.attach(model, 2)
    assert count > 10 and torch.allclose(model(picture).mask_logits, plain, atol=1e-4), "at first nothing changes"
    learn = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert learn and all("lora_" in name for name in learn)
    assert all(p.requires_grad for p in model.query_decoder.parameters())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # the second thin matrix starts at zero: only from the second step on does the first move
        optimizer.zero_grad()
        model(picture).mask_logits.square().mean().backward()
        optimizer.step()
    without = [n for n, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "every adapter is on the way of the picture"
    trained = model(picture).mask_logits
    low_rank.merge(model)
    assert list(model.state_dict()) == list(before), "a plain model again"
    assert torch.allclose(model(picture).mask_logits, trained, atol=1e-4)
    changed = 0
    for name, value in model.backbone.state_dict().items():
        change = (value - before[f"backbone.{name}"]).flatten(1) if value.ndim > 1 else torch.zeros(1, 1)
        if change.any():
            changed += 1
            assert torch.linalg.matrix_rank(change, atol=1e-2 * float(torch.linalg.matrix_norm(change, 2))) <= 2
    assert changed > 10


def test_a_config_trains_through_them(make_geotiff, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = squares_config(make_geotiff, tmp_path)
    config = config.model_copy(update={"train": config.train.model_copy(update={"low_rank": 2}), "baseline": None})
    bundle = load_bundle(train(config, tmp_path / "run").bundle)
    assert not any("lora" in name for name in bundle.build().state_dict())
