"""A model's forward as a graph that runs without this package: torch.export programs and ONNX files.

The graph is the forward in evaluation mode: one input `image` (1, C, H, W), normalised; outputs `class_logits`
(1, Q, K+1) and `mask_logits` (1, Q, H/4, W/4), or `logits` (1, K+1, H, W) of a per-pixel model. docs/export.md says
which model goes where. Source of the formats: PyTorch's torch.export and torch.onnx (its graph exporter).
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from maskformer import backbones
from maskformer.config import ModelConfig
from maskformer.prediction import DensePrediction
from maskformer.weights import backbone_network

MULTIPLE = 32  # of the sides of a picture of any size: the coarsest map's stride
SMALLEST = 2 * MULTIPLE  # with one coarsest cell, graphs are simplified in ways that hold for it alone
LARGEST = 256 * MULTIPLE  # of a graph of any size


def takes_any_size(model: nn.Module) -> bool:
    """Whether one graph serves every size: its backbone says so. A Swin's windows belong to one size."""
    return backbones.takes_any_size(backbone_network(model))


def to_program(model: nn.Module, size: tuple[int, int], dynamic: bool = True) -> ExportedProgram:
    """The forward as a torch.export program: inference only, one picture a time, in float32 on the model's device.

    size (height, width) of a picture, multiples of 32 from 64 to 8192. `dynamic`: the program takes every other such
    size as well. ValueError where the model cannot, or the size is none of these. The model is left as it was.
    """
    config = _checked(model, size, dynamic)
    training = model.training
    try:
        with torch.no_grad():
            return torch.export.export(
                _graph_of(model),
                (_picture(model, config, size),),
                dynamic_shapes=_dynamic_shapes(dynamic),
            )
    finally:
        model.train(training)


def to_onnx(model: nn.Module, path: str | Path, size: tuple[int, int], dynamic: bool = True) -> None:
    """Write the forward as an ONNX file; `size` and `dynamic` as in `to_program`, ImportError without onnxscript.

    Files of more than 2 GB get a second one, `<name>.data`, beside them.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ImportError("an ONNX file is written by onnx and onnxscript: pip install onnx onnxscript")
    config = _checked(model, size, dynamic)
    training = model.training
    names = ["logits"] if config.architecture == "unet" else ["class_logits", "mask_logits"]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own insides
            program = torch.onnx.export(
                _graph_of(model),
                (_picture(model, config, size),),
                dynamo=True,
                dynamic_shapes=_dynamic_shapes(dynamic),
                input_names=["image"],
                output_names=names,
                verbose=False,
            )
    finally:
        model.train(training)
    assert program is not None  # with dynamo=True it never is
    program.save(str(path))


class _Outputs(nn.Module):
    """The tensors alone, without the parts of a prediction that only training has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        prediction = self.model(image)
        if isinstance(prediction, DensePrediction):
            return (prediction.logits,)
        return prediction.class_logits, prediction.mask_logits


def _graph_of(model: nn.Module) -> nn.Module:
    return _Outputs(_with_constant_padding(model)).eval()


def _with_constant_padding(model: nn.Module) -> nn.Module:
    """A copy of the model whose strided convolutions no longer work out their padding from the picture's size.

    EfficientNets of TensorFlow pad so that the output is input / stride, rounded up. Where sides are multiples of 32,
    every stride divides its input, and that is a constant; as a formula it grows with each stage, and torch.export did
    not come to an end with it in three minutes.
    """
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _padded(child))
    return model


def _padded(convolution: nn.Conv2d) -> nn.Sequential:
    c = convolution
    sides: list[int] = []  # left, right, top, bottom
    for kernel, stride, dilation in zip(c.kernel_size[::-1], c.stride[::-1], c.dilation[::-1], strict=True):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        sides += [total // 2, total - total // 2]
    size = (c.in_channels, c.out_channels, c.kernel_size, c.stride, 0, c.dilation, c.groups)
    plain = nn.Conv2d(*size, bias=c.bias is not None, device="meta")  # type: ignore[arg-type]
    plain.weight, plain.bias = c.weight, c.bias
    return nn.Sequential(nn.ZeroPad2d((sides[0], sides[1], sides[2], sides[3])), plain)


def _checked(model: nn.Module, size: tuple[int, int], dynamic: bool) -> ModelConfig:
    config = model.config
    assert isinstance(config, ModelConfig)
    if any(side < SMALLEST or side > LARGEST or side % MULTIPLE for side in size):
        raise ValueError(f"size: {size}, expected multiples of {MULTIPLE} from {SMALLEST} to {LARGEST}")
    if dynamic and not takes_any_size(model):
        raise ValueError(f"{config.backbone} belongs to one size: export it with dynamic=False, one file a size")
    return config


def _picture(model: nn.Module, config: ModelConfig, size: tuple[int, int]) -> Tensor:
    return torch.zeros(1, config.in_channels, *size, device=next(model.parameters()).device)


def _dynamic_shapes(dynamic: bool) -> Any:
    if not dynamic:
        return None
    least, most = SMALLEST // MULTIPLE, LARGEST // MULTIPLE
    sides = {axis: MULTIPLE * Dim(name, min=least, max=most) for axis, name in ((2, "rows"), (3, "columns"))}
    return (sides,)
