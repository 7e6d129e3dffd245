"""PEM: parity with a plain-loop reference written from the specification alone, and each published quirk by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.deform_conv import deform_conv
from maskformer.model import MaskFormer
from maskformer.pem import ContextGate, DeformLayer, PEMPixelDecoder, bilinear_kernel
from maskformer.prototypes import PrototypeAttention, PrototypeDecoder, allowed_pixels
from tests.maskformer import pem_reference as reference

CHANNELS = (8, 12, 16, 20)
SIZES: dict[str, Any] = {
    "pixel_dim": 16,
    "hidden_dim": 32,
    "mask_dim": 24,
    "feedforward_dim": 40,
    "num_heads": 4,
    "num_queries": 5,
    "num_classes": 3,
}
TINY_BACKBONE = {"backbone_options": {"width": 16, "layers": [1, 1, 1]}}


def _config(**changes: Any) -> ModelConfig:
    return ModelConfig.from_preset("pem-stdc1", **{**TINY_BACKBONE, **SIZES, **changes})


# ---------------------------------------------------------------- parity


NORM = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _pixel_names() -> dict[str, str]:
    """Module names of PEMPixelDecoder → names of the reference."""
    names = {"context.0": "pixel.context.conv", "context.1": "pixel.context.norm"}
    names |= {"out.0": "pixel.out.conv", "out.1": "pixel.out.norm"}
    for i, stride in enumerate((32, 16, 8, 4)):
        names |= {f"lateral.{i}.0": f"pixel.lateral{stride}.conv", f"lateral.{i}.1": f"pixel.lateral{stride}.norm"}
        names |= {
            f"gate.{i}.squeeze.0": f"pixel.gate{stride}.squeeze",
            f"gate.{i}.squeeze.1": f"pixel.gate{stride}.norm",
        }
        names[f"gate.{i}.excite"] = f"pixel.gate{stride}.excite"
    for i, stride in enumerate((32, 16, 8)):
        parts = ("offset", "conv", "norm", "up", "up_norm")
        names |= {f"deform.{i}.{part}": f"pixel.deform{stride}.{part}" for part in parts}
    return names


def _query_names(layers: int) -> dict[str, str]:
    """Module names of PrototypeDecoder → names of the reference; self-attention's fused projection apart."""
    names = {"query_feat": "query.content", "query_embed": "query.position", "level_embed": "level_embed"}
    names |= {"decoder_norm": "norm", "class_embed": "classes"}
    names |= {f"mask_embed.layers.{i}": f"mask.{i}" for i in range(3)}
    names |= {f"input_proj.{i}": f"project{i}" for i in range(3)}
    cross = {"memory_norm": "memory_norm", "memory_conv": "local", "norm": "query_norm", "key": "key"}
    cross |= {"query": "query", "proj": "interact", "final": "final"}
    for i in range(layers):
        names |= {f"layers.{i}.cross_attention.{ours}": f"layer{i}.cross.{its}" for ours, its in cross.items()}
        names |= {f"layers.{i}.norm1": f"layer{i}.self.norm", f"layers.{i}.norm2": f"layer{i}.ffn.norm"}
        names |= {f"layers.{i}.feedforward.linear{j + 1}": f"layer{i}.ffn.{j}" for j in range(2)}
        names[f"layers.{i}.self_attention.out_proj"] = f"layer{i}.self.out"
    return names


def _load(module: nn.Module, names: dict[str, str], weights: reference.Weights) -> set[str]:
    """Fill every parameter and statistic from the reference's weights; the names used."""
    used: set[str] = set()

    def take(name: str) -> Tensor:
        used.add(name)
        return weights[name]

    state = {}
    for key, value in module.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        if leaf == "num_batches_tracked":
            state[key] = value
        elif leaf == "alpha":
            state[key] = take(f"layer{key.split('.')[1]}.cross.alpha").view_as(value)
        elif owner.endswith("in_proj"):
            state[key] = torch.cat([take(f"layer{key.split('.')[1]}.self.{part}.{leaf}") for part in "qkv"])
        elif isinstance(module.get_submodule(owner), nn.Embedding):
            state[key] = take(names[owner])
        else:
            state[key] = take(f"{names[owner]}.{NORM[leaf]}")
    module.load_state_dict(state)
    return used


def _pair(layers: int = 6) -> tuple[PEMPixelDecoder, PrototypeDecoder, reference.Weights]:
    """Both halves with the reference's random weights, in evaluation mode."""
    config = _config(decoder_layers=layers)
    sizes = {"queries": config.num_queries, "classes": config.num_classes, "layers": layers}
    for name in ("pixel_dim", "hidden_dim", "mask_dim", "feedforward_dim"):
        sizes[name] = getattr(config, name)
    weights = reference.random_weights(CHANNELS, **sizes)
    pixel, query = PEMPixelDecoder(CHANNELS, config), PrototypeDecoder((config.pixel_dim,) * 3, config)
    used = _load(pixel, _pixel_names(), weights) | _load(query, _query_names(layers), weights)
    assert used == set(weights)  # nothing of the reference was left out
    return pixel.eval(), query.eval(), weights


def _features(size: tuple[int, int], batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(batch, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_both_halves_equal_the_plain_loop_reference(size: tuple[int, int]) -> None:
    pixel, query, weights = _pair()
    features = _features(size)
    mask_features, maps = reference.pixel_decoder(features, weights)
    layers = reference.transformer(mask_features, maps, weights, layers=6, heads=4)
    with torch.no_grad():
        pixels = pixel(features)
        prediction = query(pixels)
        torch.testing.assert_close(pixels.mask_features, mask_features, atol=1e-4, rtol=0)
        for ours, its in zip(pixels.memory, maps, strict=True):
            torch.testing.assert_close(ours, its, atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.class_logits, layers[-1][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.mask_logits, layers[-1][1], atol=1e-4, rtol=0)
        # Every layer, as training supervises them, with the batch norms still on their statistics.
        query.training = True
        auxiliary = query(pixels).auxiliary
    assert len(auxiliary) == 6  # the raw queries and five layers; the sixth is the prediction itself
    for ours, (classes, masks) in zip(auxiliary, layers[:-1], strict=True):
        torch.testing.assert_close(ours.class_logits, classes, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.mask_logits, masks, atol=1e-4, rtol=0)


def test_deform_conv_is_torchvisions_with_its_gradients() -> None:
    torch.manual_seed(0)
    shapes = ((2, 6, 7, 11), (2, 18, 7, 11), (2, 9, 7, 11), (5, 6, 3, 3))
    x, offset, modulation, weight = (torch.randn(shape, requires_grad=True) for shape in shapes)
    ours = deform_conv(x, offset * 4, modulation, weight)  # many places outside the map
    theirs = torchvision.ops.deform_conv2d(x, offset * 4, weight, padding=1, mask=modulation)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    inputs = (x, offset, modulation, weight)
    for a, b in zip(torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(theirs.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


def test_deform_conv_without_offsets_is_a_convolution() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 5, 4), torch.randn(3, 6, 3, 3)
    ours = deform_conv(x, torch.zeros(2, 18, 5, 4), torch.ones(2, 9, 5, 4), weight)
    torch.testing.assert_close(ours, F.conv2d(x, weight, padding=1), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- the published quirks, one by one


@pytest.mark.parametrize(("logit", "gate"), [(-1e4, 0.5), (0.0, 0.62245933), (1e4, 0.73105858)])
def test_quirk_gates_pass_two_sigmoids(logit: float, gate: float) -> None:
    module = ContextGate(4).eval()
    nn.init.zeros_(module.excite.weight)
    nn.init.constant_(module.excite.bias, logit)
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(module(x), x * (1 + gate))  # one sigmoid would give 1, 1.5 and 2 times x


def test_quirk_offsets_are_pairs_not_halves() -> None:
    layer = DeformLayer(2).eval()
    nn.init.zeros_(layer.conv.weight)
    with torch.no_grad():
        layer.conv.weight[0, 0, 1, 1] = 2.0  # the central kernel point alone, number 4; modulated by sigmoid(0) = 0.5
        layer.offset.bias[8] = 1.0  # its y where channels are pairs; the x of point 8 if they were two halves
    x = torch.rand(1, 2, 4, 4)
    expected = F.pad(x[:, 0, 1:], (0, 0, 0, 1)) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(layer(x)[0][:, 0], expected)  # the picture moved one row up


def test_quirk_bilinear_start_in_channel_0_only() -> None:
    torch.manual_seed(0)
    layer = DeformLayer(3)
    assert bilinear_kernel().sum() == 4.0
    assert torch.equal(layer.up.weight[:, 0], bilinear_kernel().expand(3, 4, 4))
    assert not any(torch.equal(layer.up.weight[c, c], bilinear_kernel()) for c in (1, 2))
    inside = layer.up(torch.ones(1, 3, 5, 5))[0, :, 2:-2, 2:-2]
    torch.testing.assert_close(inside[0], torch.full((6, 6), 3.0))  # a sum over input channels
    assert not torch.allclose(inside[1], torch.full((6, 6), 3.0), atol=0.5)


def _attention() -> PrototypeAttention:
    """Two channels, one head, every linear the identity and the depthwise convolution nothing but its centre."""
    attention = PrototypeAttention(2, 1).eval()
    for linear in (attention.key, attention.query, attention.proj, attention.final):
        nn.init.eye_(linear.weight)
    nn.init.dirac_(attention.memory_conv.weight, groups=2)
    nn.init.zeros_(attention.memory_conv.bias)
    return attention


def test_a_prototype_is_one_pixel_and_never_a_mean() -> None:
    attention = _attention()
    memory = torch.tensor([[[[1.0, 0.0, -3.0]], [[0.0, 1.0, 3.0]]]])  # three pixels (1, 0), (0, 1), (-3, 3)
    query = torch.tensor([[[-5.0, 5.0]]])  # LayerNorm leaves its direction: most like the third
    with torch.no_grad():
        attention.alpha.zero_()
        out = attention(query, torch.zeros_like(query), memory, torch.ones(1, 1, 3, dtype=torch.bool))
        shut = attention(query, torch.zeros_like(query), memory, torch.tensor([[[True, True, False]]]))
    half = 0.5**0.5
    torch.testing.assert_close(out, query + torch.tensor([-half, half]))
    torch.testing.assert_close(shut, query + torch.tensor([0.0, 1.0]))


def test_quirk_normalisation_runs_over_the_queries() -> None:
    attention = _attention()
    memory = torch.tensor([[[[1.0]], [[1.0]]]])  # one pixel: every query has the same prototype, (1, 1) / sqrt 2
    query = torch.tensor([[[4.0, -4.0], [4.0, -4.0], [4.0, -4.0]]])
    allowed = torch.ones(1, 3, 1, dtype=torch.bool)
    with torch.no_grad():
        out = attention(query, torch.zeros_like(query), memory, allowed) - query - 0.5**0.5
    third = 3**-0.5  # over the channels it would be 2 ** -0.5, however many queries there are
    torch.testing.assert_close(out, torch.tensor([third, -third]).expand(1, 3, 2))
    with torch.no_grad():
        alone = attention(query[:, :1], torch.zeros(1, 1, 2), memory, allowed[:, :1]) - query[:, :1] - 0.5**0.5
    torch.testing.assert_close(alone, torch.tensor([[[1.0, -1.0]]]))


def test_quirk_one_empty_query_takes_pixel_0() -> None:
    features = torch.tensor([[[-1.0, 1.0, 1.0]]])  # one channel, three pixels
    allowed = allowed_pixels(torch.tensor([[[1.0], [0.5]]]), features)
    assert allowed.tolist() == [[[False, True, True]] * 2]
    features = -torch.ones(1, 1, 3)
    allowed = allowed_pixels(torch.tensor([[[1.0], [-1.0]]]), features)
    assert allowed.tolist() == [[[False] * 3, [True] * 3]]  # Mask2Former would open the first query's row
    attention = _attention()
    memory = torch.tensor([[[[1.0, 0.0, -3.0]], [[0.0, 1.0, 3.0]]]])
    query = torch.tensor([[[-5.0, 5.0], [-5.0, 5.0]]])
    with torch.no_grad():
        attention.alpha.zero_()
        out = attention(query, torch.zeros_like(query), memory, allowed) - query
    torch.testing.assert_close(out[0, 0], torch.tensor([1.0, 0.0]))  # the corner, the least like it of all
    torch.testing.assert_close(out[0, 1], torch.tensor([-(0.5**0.5), 0.5**0.5]))


def test_quirk_everything_opens_where_every_query_is_empty() -> None:
    embed, features = torch.ones(2, 4, 1), torch.stack((-torch.ones(1, 3), torch.tensor([[1.0, -1.0, -1.0]])))
    allowed = allowed_pixels(embed, features)
    assert allowed[0].all()  # of this picture; the other keeps its masks
    assert allowed[1].tolist() == [[True, False, False]] * 4


def test_quirk_a_layer_never_normalises_its_residual() -> None:
    """Pre-norm: with every branch silent the queries pass through as they are; post-norm would standardise them."""
    layer = PrototypeDecoder((16, 16, 16), _config()).eval().layers[0]
    for branch in (layer.cross_attention.final, layer.self_attention.out_proj, layer.feedforward.linear2):
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)
    query = torch.randn(1, 5, 32) * 7 + 3
    allowed = torch.ones(1, 5, 6, dtype=torch.bool)
    assert torch.equal(layer(query, torch.randn(1, 5, 32), torch.randn(1, 32, 2, 3), allowed), query)


def test_quirk_memory_of_the_right_width_is_projected_too() -> None:
    decoder = PrototypeDecoder((32, 32, 32), _config())
    assert all(isinstance(project, nn.Conv2d) for project in decoder.input_proj)


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("name", "millions", "tolerance"), [("resnet50", 35.6, 0.1), ("stdc1", 17, 0.3), ("stdc2", 21, 0.3)]
)
def test_parameter_counts_are_the_published_ones(name: str, millions: float, tolerance: float) -> None:
    # R50: 35.53 M, and 35.59 M with the batch norms' statistics of the backbone, which are buffers.
    with torch.device("meta"):
        model = MaskFormer.from_preset(f"pem-{name}", num_classes=19)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=tolerance)


def test_a_training_step_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = MaskFormer(_config()).train()
    prediction = model(torch.randn(2, 3, 64, 96))
    assert len(prediction.auxiliary) == 6
    layers = (*prediction.auxiliary, prediction)
    loss = sum(x.class_logits.square().mean() + x.mask_logits.square().mean() for x in layers)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    silent = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert silent == []


def test_one_picture_cannot_train_and_says_why() -> None:
    model = MaskFormer(_config()).train()
    with pytest.raises(ValueError, match="at least 2 pictures"):
        model(torch.randn(1, 3, 64, 64))


def test_sizes_that_do_not_double_are_cut() -> None:
    model = MaskFormer(_config()).eval()
    with torch.no_grad():
        for height, width in ((50, 71), (33, 64), (97, 100)):
            prediction = model(torch.randn(1, 3, height, width))
            assert prediction.mask_logits.shape == (1, 5, -(-height // 4), -(-width // 4))


def _settled(**changes: Any) -> MaskFormer:
    """A tiny model whose batch norms have seen data, in evaluation mode."""
    torch.manual_seed(0)
    model = MaskFormer(_config(**changes)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64))
        for layer in model.pixel_decoder.deform:
            nn.init.normal_(layer.offset.weight, std=0.05)
    return model.eval()


def test_a_picture_is_the_same_alone_and_in_a_batch() -> None:
    model, x = _settled(), torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together = model(x)
        alone = model(x[1:2])
    torch.testing.assert_close(together.class_logits[1:2], alone.class_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.mask_logits[1:2], alone.mask_logits, atol=1e-4, rtol=1e-4)


def test_it_runs_under_bf16_autocast() -> None:
    """A prototype is a choice, so one rounding can change a query entirely: the choice itself is made in float32."""
    model, x = _settled(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        full = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
    assert half.mask_logits.isfinite().all()
    assert half.class_logits.isfinite().all()
    error = (half.mask_logits.float() - full.mask_logits).abs().median() / full.mask_logits.std()
    assert error < 0.1, float(error)


def test_the_forward_is_one_graph() -> None:
    model, x = _settled(decoder_layers=1), torch.randn(1, 3, 64, 96)  # one layer has it all, 6 take 4 times as long
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).mask_logits, model(x).mask_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow  # a minute, nearly all of it the exporter's
def test_it_exports_to_onnx_for_any_multiple_of_32(tmp_path: Path) -> None:
    import onnxruntime

    model = _settled()
    height, width = torch.export.Dim("height", max=64), torch.export.Dim("width", max=64)
    program = torch.export.export(
        model, (torch.randn(1, 3, 128, 192),), dynamic_shapes=({2: 32 * height, 3: 32 * width},)
    )
    path = tmp_path / "pem.onnx"
    torch.onnx.export(program, (), str(path), dynamo=True, opset_version=18, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in ((128, 192), (64, 96), (160, 128)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = model(x)
            exported = program.module()(x)
        torch.testing.assert_close(exported.mask_logits, expected.mask_logits, atol=1e-4, rtol=1e-4)
        outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs[0]), expected.class_logits, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(torch.from_numpy(outputs[1]), expected.mask_logits, atol=1e-3, rtol=1e-3)
