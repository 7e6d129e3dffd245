import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskformer.fast_linear import _fits, fast_linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("activation", "function"), [("none", nn.Identity()), ("relu", F.relu), ("gelu", F.gelu)])
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 5, 12), (1, 12)])
def test_same_as_the_layer(shape: tuple[int, ...], activation: str, function, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 20, bias=bias), 3 * torch.randn(shape)
    with torch.no_grad():
        assert _fits(layer.weight, x, torch.float32)
        torch.testing.assert_close(fast_linear(layer, x, activation), function(layer(x)), atol=1e-5, rtol=1e-5)
        strided = 3 * torch.randn(*shape[:-1], 24)[..., ::2]
        torch.testing.assert_close(fast_linear(layer, strided), layer(strided), atol=1e-5, rtol=1e-5)
    fast_linear(layer, x, activation).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_the_layers(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskformer.fast_linear.MIN_TRAINED", 1)
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 20, bias=bias), torch.randn(2, 3, 12)
    weights, results = torch.randn(2, 3, 20), []
    for function in (lambda x: fast_linear(layer, x, "relu"), lambda x: torch.relu(layer(x))):
        layer.zero_grad()
        given = x.clone().requires_grad_()
        y = function(given)
        (y * weights).sum().backward()
        results.append((y.detach(), given.grad, *(p.grad.clone() for p in layer.parameters())))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_what_goes_the_ordinary_way() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert not _fits(layer.weight, x, x.dtype)  # too small a product to train this way
    assert _fits(layer.weight, torch.randn(1 << 18, 4), torch.float32)
    with torch.no_grad():
        assert _fits(layer.weight, x, x.dtype) and not _fits(layer.weight, x[:0], x.dtype)
        assert not _fits(layer.weight.to("meta"), x.to("meta"), x.dtype)
        assert not _fits(layer.weight.half(), x, torch.float32)
        hooked = nn.Linear(4, 4)
        hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        torch.testing.assert_close(fast_linear(hooked, x), hooked(x))
        assert fast_linear(nn.Linear(4, 4).double(), x.double()).dtype == torch.float64


def test_half_precision_is_rounded_once_with_the_activation() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 256), torch.randn(300, 64)
    with torch.no_grad():
        exact = F.gelu(x.bfloat16().float() @ layer.weight.bfloat16().float().T + layer.bias)
        with torch.autocast("cpu", torch.bfloat16):
            wanted, apart = layer(x), F.gelu(layer(x))
            torch.testing.assert_close(fast_linear(layer, x), wanted, atol=0.01, rtol=0.01)
            fused = fast_linear(layer, x, "gelu")
    assert fused.dtype == torch.bfloat16
    assert (fused - exact).square().mean() <= 1.1 * (apart - exact).square().mean()


def test_backward_hooks_are_heard() -> None:
    layer, heard = nn.Linear(4, 4), []
    layer.register_full_backward_hook(lambda *_: heard.append(1))
    fast_linear(layer, torch.randn(3, 4, requires_grad=True)).sum().backward()
    assert heard
