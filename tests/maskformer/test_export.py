"""Exported graphs compute what the model computes, at sizes they were not made at where that is promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskformer.config import ModelConfig
from maskformer.export import takes_any_size, to_onnx, to_program
from maskformer.model import build_model
from tests.maskformer.families import ANY_SIZE, FAMILIES, build, pictures

QUICK = "maskformer-resnet"
SIZES = [(64, 64), (96, 160), (128, 64)]


@pytest.mark.slow  # the exporter takes some ten seconds a model
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_file_computes_the_same(family: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, dynamic = build(family), family in ANY_SIZE
    assert takes_any_size(model) is dynamic
    to_onnx(model, tmp_path / "model.onnx", SIZES[1] if dynamic else SIZES[0], dynamic)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["image"]
    names = [one.name for one in session.get_outputs()]
    assert names == (["logits"] if family == "unet" else ["class_logits", "mask_logits"])
    for size in SIZES if dynamic else SIZES[:1]:
        image = pictures(1, *size)
        with torch.no_grad():
            wanted = model(image)
        for name, got in zip(names, session.run(None, {"image": image.numpy()}), strict=True):
            np.testing.assert_allclose(got, getattr(wanted, name).numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_program_computes_the_same(family: str) -> None:
    model, dynamic = build(family).train(), family in ANY_SIZE
    program = to_program(model, SIZES[1] if dynamic else SIZES[0], dynamic).module()
    assert model.training  # left as it was
    for size in SIZES if dynamic else SIZES[:1]:
        image = pictures(1, *size)
        with torch.no_grad():
            wanted = model.eval()(image)
        for got, eager in zip(program(image), wanted[:2], strict=False):
            torch.testing.assert_close(got, eager, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_exported_says_why() -> None:
    with pytest.raises(ValueError, match="belongs to one size"):
        to_program(build("maskformer-swin"), (64, 64))
    with pytest.raises(ValueError, match="multiples of 32"):
        to_program(build("maskformer-resnet"), (64, 50))
    with pytest.raises(ValueError, match="from 64"):
        to_program(build("maskformer-resnet"), (64, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_says_whether_any_size_will_do(family: str) -> None:
    assert takes_any_size(build(family)) is (family in ANY_SIZE)


@pytest.mark.parametrize(
    ("backbone", "any_size"),
    [("swin_tiny_patch4_window7_224", False), ("maxvit_rmlp_pico_rw_256", False), ("pvt_v2_b0", True)],
)
def test_networks_of_timm_say_it_too(backbone: str, any_size: bool) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=backbone))
    assert takes_any_size(model) is any_size
