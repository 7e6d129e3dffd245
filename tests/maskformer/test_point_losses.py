"""Losses at points in one pass: the values and gradients of the definitions, and little kept."""

import pytest
import torch

from maskformer import points
from maskformer.losses import dice_loss, pixel_loss
from maskformer.point_losses import PointLosses

Case = dict[str, torch.Tensor]


def case(masks: int = 3, dtype: torch.dtype = torch.float64) -> Case:
    """Masks of 5 x 6 cells; 20 of 50 places each, some of them at the very border."""
    torch.manual_seed(masks)
    places = torch.rand(50, 2, dtype=dtype)
    places[:4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.0]])
    return {
        "logits": torch.randn(masks, 5, 6, dtype=dtype),
        "places": places,
        "chosen": torch.rand(masks, 50).argsort(1)[:, :20],
        "t": torch.rand(masks, 20, dtype=dtype),
        "v": (torch.rand(masks, 20) < 0.7).to(dtype),
    }


def ours(logits: torch.Tensor, c: Case, focal: bool, everywhere: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = points.sample_own(logits.detach(), c["places"][c["chosen"]])
    return PointLosses.apply(logits, c["places"], c["chosen"], x, c["t"], None if everywhere else c["v"], focal)


def plain(logits: torch.Tensor, c: Case, focal: bool, everywhere: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x, v = points.sample_own(logits, c["places"][c["chosen"]]), torch.ones_like(c["v"]) if everywhere else c["v"]
    return pixel_loss(x, c["t"], v, focal), dice_loss(x, c["t"], v)


@pytest.mark.parametrize("focal", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_values_and_gradients_are_the_definitions(focal: bool, everywhere: bool) -> None:
    c, weights = case(), torch.randn(2, 3, dtype=torch.float64)
    results = []
    for function in (ours, plain):
        logits = c["logits"].clone().requires_grad_()
        pixel, dice = function(logits, c, focal, everywhere)
        ((pixel * weights[0]).sum() + (dice * weights[1]).sum()).backward()
        assert logits.grad is not None and logits.grad.any()
        results.append((pixel.detach(), dice.detach(), logits.grad))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


def test_no_mask_and_nothing_valid_and_huge_logits() -> None:
    c = case(dtype=torch.float32)
    none = case(0, torch.float32)
    logits = none["logits"].requires_grad_()
    sum(ours(logits, none, False, True)).sum().backward()  # type: ignore[union-attr]
    assert logits.grad is not None and logits.grad.shape == (0, 5, 6)
    c["v"][:] = 0
    logits = (1e4 * c["logits"]).requires_grad_()
    pixel, dice = ours(logits, c, True, False)
    (pixel.sum() + dice.sum()).backward()
    assert not pixel.any() and not dice.any() and logits.grad is not None and not logits.grad.any()
    logits = (1e4 * c["logits"]).requires_grad_()
    pixel, dice = ours(logits, c, True, True)
    (pixel.sum() + dice.sum()).backward()
    assert torch.isfinite(pixel).all() and torch.isfinite(dice).all()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_little_is_kept_for_the_backward_pass() -> None:
    """Per point two slopes and a number: 12 bytes (autograd keeps over 60)."""
    c = case(dtype=torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: (kept.append(one.nbytes), one)[1], lambda one: one):
        ours(c["logits"].requires_grad_(), c, True, True)
    assert sum(kept) == 12 * c["chosen"].numel() + c["places"].nbytes
