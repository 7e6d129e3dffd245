"""STDC: shapes, parameter counts, and the block against the paper's description spelled out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskformer.backbones import build_backbone
from maskformer.config import ModelConfig
from maskformer.stdc import STDC, ConvNorm, DenseConcatenation


@pytest.mark.parametrize("size", [(64, 96), (50, 71), (33, 33)])
def test_strides_round_up(size: tuple[int, int]) -> None:
    network = STDC("stdc1", layers=(1, 1, 1), width=16).eval()
    maps = network(torch.randn(1, 3, *size))
    assert network.channels == (16, 64, 128, 256)
    assert [x.shape[1] for x in maps] == list(network.channels)
    for x, stride in zip(maps, (4, 8, 16, 32), strict=True):
        assert x.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))


def test_published_widths_and_depths() -> None:
    with torch.device("meta"):
        one, two = STDC("stdc1"), STDC("stdc2")
    assert one.channels == two.channels == (64, 256, 512, 1024)
    blocks = {name: [m.skip.__class__.__name__ for m in net.features[2:]] for name, net in (("1", one), ("2", two))}
    pool, same = "AvgPool2d", "Identity"
    assert blocks["1"] == [pool, same] * 3
    assert blocks["2"] == [pool, same, same, same, pool, same, same, same, same, pool, same, same]
    assert one(torch.empty(1, 3, 64, 64, device="meta"))[-1].shape == (1, 1024, 2, 2)


def test_the_channels_of_a_block_halve_and_join() -> None:
    block = DenseConcatenation(24, 64, stride=1)
    shapes = [tuple(conv.conv.weight.shape) for conv in block.conv_list]
    assert shapes == [(32, 24, 1, 1), (16, 32, 3, 3), (8, 16, 3, 3), (8, 8, 3, 3)]


def _conv_norm(x: torch.Tensor, part: ConvNorm) -> torch.Tensor:
    norm = part.bn
    y = F.conv2d(x, part.conv.weight, padding=part.conv.kernel_size[0] // 2)
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).clamp(min=0)


def test_a_strided_block_pools_the_first_part_and_strides_the_others() -> None:
    torch.manual_seed(0)
    block = DenseConcatenation(8, 16, stride=2).eval()
    for norm in (m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean, -1, 1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(norm.bias, -1, 1)
    x = torch.randn(2, 8, 7, 10)
    convs, (depthwise, norm) = block.conv_list, block.avd_layer
    first = _conv_norm(x, convs[0])
    strided = F.conv2d(first, depthwise.weight, stride=2, padding=1, groups=8)
    strided = F.batch_norm(strided, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    second = _conv_norm(strided, convs[1])
    third = _conv_norm(second, convs[2])
    # The mean of nine, zeros of the padding among them.
    pooled = F.conv2d(first, torch.full((8, 1, 3, 3), 1 / 9), stride=2, padding=1, groups=8)
    expected = torch.cat((pooled, second, third, _conv_norm(third, convs[3])), dim=1)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_all_parameters_get_gradients() -> None:
    network = STDC("stdc1", in_channels=5, width=16).train()
    sum(x.square().sum() for x in network(torch.randn(2, 5, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


def test_as_the_backbone_of_a_config() -> None:
    options = {"width": 16, "layers": [1, 1, 1]}
    config = ModelConfig(backbone="stdc2", backbone_options=options, in_channels=4, freeze_batch_norm=True)
    backbone = build_backbone(config).train()
    assert backbone.channels == (16, 64, 128, 256)
    before = backbone.network.features[0].bn.running_mean.clone()
    backbone(torch.randn(2, 4, 32, 32))
    assert torch.equal(before, backbone.network.features[0].bn.running_mean)


@pytest.mark.parametrize("options", [{"width": 15}, {"width": 0}, {"layers": (1, 2)}, {"layers": (1, 0, 1)}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="STDC's"):
        STDC("stdc1", **options)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'stdc3' is not one of stdc1, stdc2"):
        STDC("stdc3")
