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
        assert _fits(layer, x)
        torch.testing.assert_close(fast_linear(layer, x, activation), function(layer(x)), atol=1e-5, rtol=1e-5)
        strided = 3 * torch.randn(*shape[:-1], 24)[..., ::2]
        torch.testing.assert_close(fast_linear(layer, strided), layer(strided), atol=1e-5, rtol=1e-5)
    fast_linear(layer, x, activation).sum().backward()
    assert layer.weight.grad is not None


def test_what_goes_the_ordinary_way() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert not _fits(layer, x)  # gradients
    with torch.no_grad():
        assert _fits(layer, x) and not _fits(layer, x[:0]) and not _fits(layer.to("meta"), x.to("meta"))
        hooked = nn.Linear(4, 4)
        hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        torch.testing.assert_close(fast_linear(hooked, x), hooked(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert fast_linear(nn.Linear(4, 4), x).dtype == torch.bfloat16
        assert fast_linear(nn.Linear(4, 4).double(), x.double()).dtype == torch.float64
