"""Losses at the input's size in passes: the definition's values and gradients, in a fraction of the memory."""

import pytest
import torch
import torch.nn.functional as F

from maskformer import mask_losses
from maskformer.mask_losses import MaskLosses
from maskformer.targets import Target


def case(objects: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Target]:
    torch.manual_seed(objects)
    masks = torch.rand(objects, *size) < 0.4
    valid = torch.rand(size) < 0.8
    small = (-(-size[0] // 4), -(-size[1] // 4))
    return torch.randn(objects, *small, dtype=dtype), Target.from_masks(torch.zeros(objects), masks, valid)


def plain(logits: torch.Tensor, target: Target, focal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Straight from the definitions, every mask at full size."""
    x = F.interpolate(logits[:, None], scale_factor=4, mode="bilinear", align_corners=False)[:, 0]
    height, width = target.valid.shape
    x, t, v = x[:, :height, :width], target.masks.to(logits.dtype), target.valid.to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p = x.sigmoid()
    if focal:
        right = p * t + (1 - p) * (1 - t)
        loss = torch.where(t > 0, 0.25, 0.75) * loss * (1 - right) ** 2
    dice = 1 - (2 * (p * t * v).sum((1, 2)) + 1) / ((p * v).sum((1, 2)) + (t * v).sum((1, 2)) + 1)
    return (loss * v).sum((1, 2)) / v.sum(), dice


@pytest.mark.parametrize("focal", [True, False])
@pytest.mark.parametrize("size", [(16, 24), (13, 22)])  # what upsampling adds beyond the picture is cut
@pytest.mark.parametrize("everything_valid", [True, False])
def test_values_and_gradients_are_the_definitions(
    focal: bool, size: tuple[int, int], everything_valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_losses, "CHUNK_PIXELS", 2 * size[0] * size[1])  # five masks in three passes
    logits, target = case(5, size)
    if everything_valid:
        target.valid[:] = True
    weights = torch.randn(2, 5, dtype=torch.float64)
    results = []
    for function in (
        lambda x: MaskLosses.apply(x, torch.arange(5), target.layers, target.valid, focal),
        lambda x: plain(x, target, focal),
    ):
        x = logits.clone().requires_grad_()
        pixel, dice = function(x)
        ((pixel * weights[0]).sum() + (dice * weights[1]).sum()).backward()
        results.append((pixel.detach(), dice.detach(), x.grad))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-10, rtol=1e-8)


def test_gradients_are_those_of_finite_differences() -> None:
    logits, target = case(2, (8, 12))
    function = lambda x: MaskLosses.apply(x, torch.arange(2), target.layers, target.valid, True)  # noqa: E731
    assert torch.autograd.gradcheck(function, (logits.requires_grad_(),), atol=1e-6)


def test_no_mask_and_nothing_valid() -> None:
    logits, target = case(3, (8, 8), torch.float32)
    target.valid[:] = False
    x = torch.cat((logits, 1e4 * logits)).requires_grad_()
    pixel, dice = MaskLosses.apply(x, torch.arange(3).repeat(2), target.layers, target.valid, True)
    (pixel.sum() + dice.sum()).backward()
    assert pixel.sum() == dice.sum() == 0 and not x.grad.any()
    none = torch.zeros(0, 2, 2, requires_grad=True)
    pixel, dice = MaskLosses.apply(none, torch.zeros(0, dtype=torch.int64), target.layers, target.valid, True)
    (pixel.sum() + dice.sum()).backward()
    assert none.grad.shape == (0, 2, 2)
