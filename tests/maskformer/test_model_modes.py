"""The ways a model is run: checkpointed, channels last, under autocast. All families. (DDP: test_distributed.py.)"""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from maskformer.losses import build_criterion
from maskformer.targets import Target
from tests.maskformer.families import FAMILIES, SIDE, build, pictures

QUICK = ["maskformer-swin", "mask2former-swin", "eomt", "maskformer-resnet-panoptic"]
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
CHECKPOINTED = [
    name if name in QUICK[:3] else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
    if name not in ("pem-stdc", "unet")
]


def targets() -> list[Target]:
    """Two objects in the first picture, none in the second."""
    valid = torch.ones(SIDE, SIDE, dtype=torch.bool)
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    masks[0, 5:40, 8:30], masks[1, 20:60, 25:60] = True, True
    return [Target.from_masks(torch.tensor([0, 2]), masks, valid), Target.from_masks(*_nothing(), valid)]


def _nothing() -> tuple[Tensor, Tensor]:
    return torch.zeros(0, dtype=torch.int64), torch.zeros(0, SIDE, SIDE, dtype=torch.bool)


def step(model: nn.Module, images: Tensor, wanted: list[Target]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step; the loss' random points are the same every time."""
    model.zero_grad()
    torch.manual_seed(3)
    loss = build_criterion(model.config)(model(images), wanted)["total"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", CHECKPOINTED)
def test_checkpointing_changes_no_gradient(family: str) -> None:
    model = build(family).train()
    loss, gradients = step(model, pictures(2), targets())
    model.set_grad_checkpointing()
    again, recomputed = step(model, pictures(2), targets())
    torch.testing.assert_close(again, loss)
    assert recomputed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_a_backbone_without_checkpointing_says_so() -> None:
    with pytest.raises(ValueError, match="STDC has none"):
        build("pem-stdc").set_grad_checkpointing()


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_layout_and_precision_change_little(family: str) -> None:
    """channels_last to 5e-5 of the largest logit; bfloat16 to a tenth of the logits' spread; float16 finite.

    Most families keep 1e-5 in the other layout; the group norms of Mask2Former, here over 2 x 2 cells, add to it.
    """
    model, image = build(family), pictures(2)
    wanted = model(image)[:2]
    for got, eager in zip(model(image.to(memory_format=torch.channels_last))[:2], wanted, strict=True):
        assert (got - eager).abs().max() < 5e-5 * eager.abs().max().clamp(min=1)
    turned = build(family).to(memory_format=torch.channels_last)
    for got, eager in zip(turned(image.to(memory_format=torch.channels_last))[:2], wanted, strict=True):
        assert (got - eager).abs().max() < 5e-5 * eager.abs().max().clamp(min=1)
    with torch.autocast("cpu", torch.bfloat16):
        for got, eager in zip(model(image)[:2], wanted, strict=True):
            assert (got.float() - eager).abs().mean() < 0.1 * eager.std()
    with torch.autocast("cpu", torch.float16):
        assert all(torch.isfinite(got).all() for got in model(image)[:2])
