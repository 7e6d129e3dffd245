"""The deformable pixel decoder against transformers' one, and its sampling against grid_sample."""

import math

import pytest
import torch
from torch import Tensor

from maskformer.config import ModelConfig
from maskformer.deformable import DeformablePixelDecoder
from maskformer.deformable_attention import POINTS, DeformableAttention
from maskformer.deformable_sampling import Sizes, sample, sample_bags, sample_grid

CHANNELS = (8, 16, 24, 48)
CONFIG = ModelConfig.from_preset(
    "mask2former-swin-tiny", pixel_dim=32, mask_dim=16, num_heads=4, encoder_layers=2, encoder_feedforward_dim=48
)
# transformers' names → ours
NAMES = {
    "input_projections": "input_proj",
    "encoder.layers": "encoder",
    "fc1": "linear1",
    "fc2": "linear2",
    "self_attn_layer_norm": "norm1",
    "final_layer_norm": "norm2",
    "mask_projection": "mask_features",
}
# 512 x 512, 250 x 333 (every map odd somewhere) and 224 x 224, each side an eighth; and one-pixel maps
PICTURES = ((64, 64), (32, 42), (28, 28), (4, 3))


def pyramid(height: int, width: int, batch: int = 2) -> list[Tensor]:
    """Features of a picture of 4 height x 4 width pixels."""
    return [torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i)) for i, c in enumerate(CHANNELS)]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in state.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        ours[name] = tensor
    return ours


def theirs_and_ours():
    reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    from transformers import Mask2FormerConfig

    torch.manual_seed(0)
    config = Mask2FormerConfig(
        feature_size=32,
        mask_feature_size=16,
        num_attention_heads=4,
        encoder_layers=2,
        encoder_feedforward_dim=48,
        dropout=0.0,
    )
    theirs = reference.Mask2FormerPixelDecoder(config, list(CHANNELS)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # as initialised, offsets and weights depend on nothing
            parameter.normal_(std=0.3)
    ours = DeformablePixelDecoder(CHANNELS, CONFIG).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("size", PICTURES)
def test_equals_transformers(size: tuple[int, int]) -> None:
    theirs, ours = theirs_and_ours()
    features = pyramid(*size)
    with torch.no_grad():
        got = ours(features)
        wanted = theirs(features, output_attentions=False, output_hidden_states=False, return_dict=True)
    torch.testing.assert_close(got.mask_features, wanted.mask_features, atol=1e-4, rtol=0)
    for one, other in zip(got.memory, wanted.multi_scale_features, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_attention_equals_transformers() -> None:
    theirs, ours = theirs_and_ours()
    sizes: Sizes = ((3, 2), (5, 4), (9, 7))
    tokens, position = torch.randn(2, 89, 32), torch.randn(1, 89, 32)
    places = theirs.encoder.get_reference_points(list(sizes), torch.ones(2, 3, 2), "cpu")
    with torch.no_grad():
        wanted, _ = theirs.encoder.layers[0].self_attn(
            tokens,
            encoder_hidden_states=tokens,
            position_embeddings=position,
            reference_points=places,
            spatial_shapes_list=list(sizes),
        )
        got = ours.encoder[0].self_attn(tokens + position, tokens, sizes)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_gradients_equal_transformers() -> None:
    theirs, ours = theirs_and_ours()
    features = pyramid(12, 20, batch=1)
    wanted = theirs(features, output_attentions=False, output_hidden_states=False, return_dict=True)
    weight = torch.randn_like(wanted.mask_features)
    (wanted.mask_features * weight).sum().backward()
    (ours(features).mask_features * weight).sum().backward()
    gradients = renamed({name: p.grad for name, p in theirs.named_parameters()})
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        # A bias before a GroupNorm of one channel a group has no gradient but rounding noise.
        scale = gradients[name].abs().max().clamp(min=1e-3 * largest)
        torch.testing.assert_close(parameter.grad / scale, gradients[name] / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [((3, 5), (6, 9), (11, 17)), ((1, 1), (1, 2), (2, 3)), ((7, 2), (2, 9), (4, 4))])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_bags_equal_grid_sample(sizes: Sizes, spread: float) -> None:
    """Values and gradients; a spread of 30 pixels throws most places far outside the maps."""
    torch.manual_seed(1)
    tokens, heads = sum(h * w for h, w in sizes), 4
    values = torch.randn(2, tokens, 16, requires_grad=True)
    places = torch.randn(2, tokens, 3, heads * len(sizes) * POINTS)
    places[:, :, :2] *= spread
    if spread == 0:
        places[:, :, :2] += 0.01  # at 0 a place may lie on a cell border, where the two may differ in slope
    places = places.flatten(2).requires_grad_()
    weight = torch.randn(2, tokens, 16)
    results = []
    for function in (sample_bags, sample_grid):
        out = function(values, places, sizes, heads)
        results.append((out, *torch.autograd.grad(out, (values, places), weight)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-4)


def test_bags_against_numerical_gradients() -> None:
    """A loop over every place, written out, gives the value; finite differences of it give the gradients."""
    torch.manual_seed(2)
    sizes: Sizes = ((2, 3), (3, 4))
    heads, points = 2, POINTS
    values, places = torch.randn(1, 18, 4), torch.randn(1, 18, 3 * heads * 2 * points) * 1.5

    def pixel(level: Tensor, y: int, x: int) -> Tensor:
        inside = 0 <= y < level.shape[0] and 0 <= x < level.shape[1]
        return level[y, x] if inside else torch.zeros(level.shape[2:])

    maps = [part.unflatten(0, size) for part, size in zip(values[0].split([6, 12]), sizes, strict=True)]
    own = [((y + 0.5) / h, (x + 0.5) / w) for h, w in sizes for y in range(h) for x in range(w)]
    dx, dy, logits = places[0].view(18, 3, heads, 2, points).unbind(1)
    wanted = torch.zeros(18, heads, 2)
    for n, (v, u) in enumerate(own):
        for head in range(heads):
            shares = logits[n, head].flatten().softmax(0).view(2, points)
            for level, (h, w) in enumerate(sizes):
                for p in range(points):
                    x, y = u * w - 0.5 + dx[n, head, level, p].item(), v * h - 0.5 + dy[n, head, level, p].item()
                    x0, y0 = math.floor(x), math.floor(y)
                    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                        near = (1 - abs(y - y0 - i)) * (1 - abs(x - x0 - j))
                        share = shares[level, p] * near
                        wanted[n, head] += share * pixel(maps[level], y0 + i, x0 + j)[2 * head : 2 * head + 2]
    for function in (sample_bags, sample_grid):
        got = function(values, places, sizes, heads)
        torch.testing.assert_close(got, wanted.view(1, 18, 4), atol=1e-5, rtol=0)


def test_nan_is_seen_and_not_a_crash() -> None:
    sizes: Sizes = ((2, 2),)
    places = torch.full((1, 4, 3 * 2 * POINTS), math.nan)
    assert sample(torch.randn(1, 4, 4), places, sizes, heads=2).isnan().all()
    far = torch.zeros(1, 4, 3, 2 * POINTS)
    far[:, :, 0] = math.inf
    assert (sample(torch.randn(1, 4, 4), far.flatten(2), sizes, heads=2) == 0).all()


def test_starts_as_published() -> None:
    """Head h looks along 2πh/heads, on a square ring, point i at i + 1 pixels; all places count the same."""
    attention = DeformableAttention(32, heads=8, levels=3)
    ring = attention.sampling_offsets.bias.view(8, 3, POINTS, 2)
    assert (ring == ring[:, :1]).all()
    torch.testing.assert_close(ring[0, 0, :, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(ring[1, 0], torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]))
    torch.testing.assert_close(ring[6, 2, 3], torch.tensor([0.0, -4.0]), atol=1e-5, rtol=0)
    for linear in (attention.sampling_offsets, attention.attention_weights):
        assert linear.weight.abs().max() == 0
    assert attention.attention_weights.bias.abs().max() == 0


def test_same_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    decoder = DeformablePixelDecoder(CHANNELS, CONFIG).eval()
    features = pyramid(14, 10, batch=3)
    with torch.no_grad():
        together = decoder(features)
        for i in range(3):
            alone = decoder([x[i : i + 1] for x in features])
            torch.testing.assert_close(alone.mask_features[0], together.mask_features[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trains(checkpointing: bool) -> None:
    torch.manual_seed(0)
    decoder = DeformablePixelDecoder(CHANNELS, CONFIG).train()
    decoder.set_grad_checkpointing(checkpointing)
    for layer in decoder.encoder:  # as it starts, the places depend on nothing, and so on no position either
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
    features = [x.requires_grad_() for x in pyramid(10, 9)]
    out = decoder(features)
    (out.mask_features.square().mean() + sum(x.square().mean() for x in out.memory)).backward()
    for tensor in (*decoder.parameters(), *features):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0


def test_bf16_is_no_further_from_float32_than_transformers() -> None:
    theirs, ours = theirs_and_ours()
    errors = torch.zeros(2)
    for seed in range(4):
        torch.manual_seed(seed)
        features = pyramid(16, 24)
        with torch.no_grad():
            exact = ours(features).mask_features
            with torch.autocast("cpu", torch.bfloat16):
                got = ours(features).mask_features
                wanted = theirs(features, output_attentions=False, output_hidden_states=False, return_dict=True)
        errors += torch.stack(((got - exact).square().mean(), (wanted.mask_features - exact).square().mean()))
    assert errors[0].sqrt() <= 1.2 * errors[1].sqrt()


def test_compiles_to_one_graph() -> None:
    """Traced, not generated: that every shape and branch is static is what is shown here."""
    torch.manual_seed(0)
    decoder = DeformablePixelDecoder(CHANNELS, CONFIG.replace(encoder_layers=1)).eval()
    features = pyramid(16, 16, batch=1)
    compiled = torch.compile(decoder, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(features).mask_features, decoder(features).mask_features, atol=1e-5, rtol=0)
