"""Our side of the comparisons with transformers: the same models, forward and training step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from maskformer.masks import MaskSet
from maskformer.model import MaskFormer
from maskformer.precision import prepare
from maskformer.targets import Target


def build(name: str, auxiliary: bool = True) -> MaskFormer:
    """The preset of `theirs.build(name)`, fresh: for memory, where the values of the weights do not matter."""
    torch.manual_seed(0)
    return MaskFormer(ModelConfig.from_preset(f"{name}-swin-tiny", auxiliary=auxiliary))


def channels_last(x: Tensor) -> Tensor:
    """How the pipelines lay a batch out."""
    return x.to(memory_format=torch.channels_last)


def forward(model: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Pixels (B, 3, H, W) → class logits and mask logits, as `pipelines.predictor` runs a model at `dtype`."""
    model = prepare(model.to(memory_format=torch.channels_last).eval(), dtype)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            prediction = model(channels_last(x))
        return prediction.class_logits, prediction.mask_logits

    return run


def training_step(
    model: MaskFormer, x: Tensor, labels: list[Tensor], maps: list[Tensor], dtype: torch.dtype
) -> Callable[[], float]:
    """One forward, matching, loss and backward. `maps` (H, W) int: 0 nothing, n + 1 object n of `labels`."""
    criterion = build_criterion(model.config)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    targets = [target(one, drawn) for one, drawn in zip(labels, maps, strict=True)]
    x = channels_last(x)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            prediction = model(x)
        loss = criterion(prediction, targets)["total"]
        loss.backward()
        return float(loss.detach())

    return step


def target(labels: Tensor, drawn: Tensor) -> Target:
    """The Target of a label map (H, W) whose value n + 1 is the object of labels[n]."""
    dense = np.stack([(drawn == n + 1).numpy() for n in range(len(labels))])
    objects = MaskSet.from_dense(dense, labels.numpy(), np.ones(len(labels), np.float32))
    return Target.from_mask_set(objects, np.ones(drawn.shape, bool))
