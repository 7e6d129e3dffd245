import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskformer.fast_linear import _fits, cast_weights, fast_linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("activation", "function"), [("none", nn.Identity()), ("relu", F.relu), ("gelu", F.gelu)])
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 5, 12), (1, 12)])
def test_same_as_the_layer(shape: tuple[int, ...], activation: str, function, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 20, bias=bias), 3 * torch.randn(shape)
    with torch.no_grad():
        assert _fits(layer, x, torch.float32)
        torch.testing.assert_close(fast_linear(layer, x, activation), function(layer(x)), atol=1e-5, rtol=1e-5)
        strided = 3 * torch.randn(*shape[:-1], 24)[..., ::2]
        torch.testing.assert_close(fast_linear(layer, strided), layer(strided), atol=1e-5, rtol=1e-5)
    fast_linear(layer, x, activation).sum().backward()
    assert layer.weight.grad is not None


def test_what_goes_the_ordinary_way() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert not _fits(layer, x, x.dtype)  # gradients
    with torch.no_grad():
        assert _fits(layer, x, x.dtype) and not _fits(layer, x[:0], x.dtype)
        assert not _fits(layer.to("meta"), x.to("meta"), x.dtype)
        hooked = nn.Linear(4, 4)
        hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        torch.testing.assert_close(fast_linear(hooked, x), hooked(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert fast_linear(nn.Linear(4, 4), x).dtype == torch.bfloat16
        assert fast_linear(nn.Linear(4, 4).double(), x.double()).dtype == torch.float64


def test_weights_cast_once_give_the_numbers_of_autocast() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm(5), nn.Linear(5, 64))
    x = torch.randn(2, 3, 4, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted, gelu = layers(x), F.gelu(layers(x))
        exact = F.gelu(layers[:2](x).float() @ layers[2].weight.T + layers[2].bias)
        cast_weights(layers)
        assert layers[1].weight.dtype == torch.float32 and layers[2].weight.dtype == torch.bfloat16
        assert torch.equal(layers(x), wanted)
        hidden = layers[:2](x)
        torch.testing.assert_close(fast_linear(layers[2], hidden), wanted, atol=0.01, rtol=0.01)
        fused = fast_linear(layers[2], hidden, "gelu")
    assert fused.dtype == torch.bfloat16
    # One rounding less than a layer and its activation apart.
    assert (fused - exact).square().mean() <= 1.1 * (gelu - exact).square().mean()
