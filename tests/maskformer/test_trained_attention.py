"""Attention with its own gradient against PyTorch's kernel, both judged by float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer.attention import Attention
from maskformer.trained_attention import attend, fits


def inputs(keys: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(keys)
    shapes = ((2, 4, 20, 16), (2, 4, keys, 16), (2, 4, keys, 16))
    return [torch.randn(shape, generator=generator).to(torch.bfloat16).to(dtype).requires_grad_() for shape in shapes]


def run(attention, keys: int, dtype: torch.dtype, mask: Tensor | None) -> list[Tensor]:
    """The result and the gradients of query, key and value, in float64."""
    q, k, v = inputs(keys, dtype)
    result = attention(q, k, v, mask)
    result.backward(torch.linspace(-1, 1, result.numel()).view_as(result).to(dtype))
    return [x.detach().double() for x in (result, *(t.grad for t in (q, k, v)))]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [20, 300])
def test_result_and_gradients_are_near_the_truth(keys: int, masked: bool) -> None:
    mask = torch.rand(2, 1, 20, keys, generator=torch.Generator().manual_seed(1)) > 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True  # nobody looks nowhere

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    truth = run(kernel, keys, torch.float64, mask)
    theirs = run(kernel, keys, torch.bfloat16, mask)
    own = run(attend, keys, torch.bfloat16, mask)
    for exact, published, ours in zip(truth, theirs, own):
        assert (ours - exact).norm() <= 5 * (published - exact).norm() + 1e-12, "scores are rounded once more"
        assert (ours - exact).norm() <= 0.015 * exact.norm()


def test_it_serves_training_in_bfloat16_alone() -> None:
    q, k, _ = inputs(20, torch.bfloat16)
    assert fits(q, k)
    assert not fits(q.float(), k.float())
    with torch.no_grad():
        assert not fits(q, k)
    assert not fits(q.expand(2, 4, 20, 16), torch.zeros(1).expand(2, 4, 1 << 20, 16)), "the probabilities are kept"


def test_a_layer_takes_it_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Attention(32, 4), torch.randn(2, 10, 32)
    taken = []
    monkeypatch.setattr("maskformer.trained_attention.attend", lambda q, *rest: taken.append(q.dtype) or q)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x, x, x)
    assert taken == [torch.bfloat16]
    layer(x, x, x)
    assert len(taken) == 1
