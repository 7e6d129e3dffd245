"""The masked-attention decoder against transformers' one, and the algebra it rests on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer.config import ModelConfig
from maskformer.masked_decoder import MaskedDecoder, attention_mask, shrink
from maskformer.model import MaskFormer
from maskformer.pixel_decoders import PixelFeatures
from maskformer.prediction import LayerPrediction, dot_product_masks

CONFIG = ModelConfig.from_preset(
    "mask2former-swin-tiny",
    num_classes=5,
    num_queries=7,
    mask_dim=16,
    hidden_dim=32,
    num_heads=4,
    decoder_layers=4,
    feedforward_dim=48,
)


def pixels(height: int = 12, width: int = 20, batch: int = 2, channels: int = 32) -> PixelFeatures:
    """What a pixel decoder gives for a picture of 4 height x 4 width pixels."""
    memory = tuple(torch.randn(batch, channels, -(-height // 2**i), -(-width // 2**i)) for i in (3, 2, 1))
    return PixelFeatures(torch.randn(batch, 16, height, width), memory)


def decoder(seed: int = 0, channels: int = 32, **changes) -> MaskedDecoder:
    torch.manual_seed(seed)
    return MaskedDecoder((channels,) * 3, CONFIG.replace(**changes)).eval()


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    names = {
        "queries_embedder": "query_embed",
        "queries_features": "query_feat",
        "input_projections": "input_proj",
        "decoder.layernorm": "decoder_norm",
        "decoder.layers": "layers",
        "cross_attn_layer_norm": "norm1",
        "self_attn_layer_norm": "norm2",
        "final_layer_norm": "norm3",
        "cross_attn.in_proj_": "cross_attention.in_proj.",
        "cross_attn.": "cross_attention.",
        "self_attn.q_proj": "self_attention.in_proj",
        "self_attn.": "self_attention.",
        "fc1": "feedforward.linear1",
        "fc2": "feedforward.linear2",
    }
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
        for old, new in names.items():
            name = name.replace(old, new)
        if "mask_embedder" in name:
            _, _, _, index, _, kind = name.split(".")
            name = f"mask_embed.layers.{index}.{kind}"
        ours[name] = tensor
    return ours


def theirs_and_ours(channels: int = 32):
    reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    from transformers import Mask2FormerConfig

    torch.manual_seed(0)
    config = Mask2FormerConfig(
        hidden_dim=32,
        mask_feature_size=16,
        num_attention_heads=4,
        dim_feedforward=48,
        decoder_layers=5,  # the raw queries count as one
        num_queries=7,
        dropout=0.0,
    )
    theirs = reference.Mask2FormerTransformerModule(in_features=channels, config=config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours = decoder(channels=channels)
    left = ours.load_state_dict(renamed(theirs.state_dict()), strict=False)
    assert not left.unexpected_keys
    assert left.missing_keys == ["class_embed.weight", "class_embed.bias"]
    return theirs, ours


# Stride 4 of 512 x 512, 250 x 333 and 224 x 224, halved to stay quick; the last has one-pixel memory.
@pytest.mark.parametrize("size", [(64, 64), (32, 42), (28, 28), (3, 5)])
@pytest.mark.parametrize("channels", [32, 24])
def test_equals_transformers_at_every_layer(size: tuple[int, int], channels: int) -> None:
    theirs, ours = theirs_and_ours(channels)
    given = pixels(*size, channels=channels)
    with torch.no_grad():
        wanted = theirs(list(given.memory), given.mask_features)
        got = ours.train()(given)
    layers = (*got.auxiliary, got)
    assert len(layers) == len(wanted.masks_queries_logits) == 5
    for layer, masks, state in zip(layers, wanted.masks_queries_logits, wanted.intermediate_hidden_states, strict=True):
        torch.testing.assert_close(layer.mask_logits, masks, atol=1e-4, rtol=0)
        classes = F.linear(state.transpose(0, 1), ours.class_embed.weight, ours.class_embed.bias)
        torch.testing.assert_close(layer.class_logits, classes, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(128, 128), (63, 84), (7, 9)])
def test_shrinking_commutes_with_the_mask_product(size: tuple[int, int]) -> None:
    """Masks of shrunk features are the shrunk masks; signs differ in none but the rarest logit, which rounding made."""
    torch.manual_seed(0)
    embed, features = torch.randn(2, 50, 16), torch.randn(2, 16, *size)
    full = dot_product_masks(embed, features)
    for i in (1, 2, 3):
        small = tuple(-(-side // 2**i) for side in size)
        wanted = F.interpolate(full, size=small, mode="bilinear", align_corners=False)
        got = dot_product_masks(embed, shrink(features, small))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        assert ((got >= 0) != (wanted >= 0)).sum() <= 2e-5 * wanted.numel()


def test_attention_mask() -> None:
    """One looks where the logit is not negative; a query whose mask is empty looks everywhere, the others not."""
    features = torch.tensor([[[1.0, -1.0, 0.0]], [[-1.0, -1.0, -2.0]]])  # (2, 1, 3)
    embed = torch.tensor([[[1.0], [-1.0]], [[2.0], [-1.0]]], requires_grad=True)
    mask = attention_mask(embed, features)
    assert mask.shape == (2, 1, 2, 3)
    assert not mask.requires_grad
    assert mask[0, 0].tolist() == [[True, False, True], [False, True, True]]
    assert mask[1, 0].tolist() == [[True, True, True], [True, True, True]]


def test_a_query_sees_nothing_outside_its_mask() -> None:
    """Memory outside every query's mask can be anything; inside it matters."""
    ours = decoder(decoder_layers=1)
    inside = torch.zeros(1, 1, 32, 32)
    inside[..., 8:24, :16] = 1
    given = pixels(32, 32, batch=1)._replace(mask_features=(2 * inside - 1).expand(1, 16, 32, 32))
    memory = given.memory[0]
    here = F.avg_pool2d(inside, 8)  # (1, 1, 4, 4)
    with torch.no_grad():
        ours.mask_embed.layers[-1].bias.fill_(1.0)  # so that every query says the same: inside
        assert (ours.mask_embed(ours.decoder_norm(ours.query_feat.weight)).sum(1) > 0).all()
        before = ours(given)
        hidden = ours(given._replace(memory=(torch.where(here == 0, 1e3, memory), *given.memory[1:])))
        seen = ours(given._replace(memory=(torch.where(here == 0, memory, 1e3), *given.memory[1:])))
    torch.testing.assert_close(hidden.mask_logits, before.mask_logits, atol=1e-5, rtol=0)
    assert (seen.mask_logits - before.mask_logits).abs().max() > 0.1


def test_a_query_with_an_empty_mask_is_finite_and_learns() -> None:
    ours = decoder().train()
    given = pixels()
    given = given._replace(mask_features=torch.full_like(given.mask_features, -1.0).requires_grad_())
    with torch.no_grad():
        ours.mask_embed.layers[-1].weight.zero_()
        ours.mask_embed.layers[-1].bias.fill_(1.0)  # every logit is -16
    out = ours(given)
    assert (out.mask_logits < 0).all()
    (out.class_logits.square().sum() + out.mask_logits.square().sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    assert ours.query_feat.weight.grad.abs().max() > 0


def test_auxiliary_layers() -> None:
    ours, given = decoder(), pixels()
    with torch.no_grad():
        quiet = ours(given)
        assert quiet.auxiliary == () and quiet.mask_features is None  # what only the loss reads
        loud = ours.train()(given)
        assert decoder(auxiliary=False).train()(given).auxiliary == ()
    assert torch.equal(quiet.mask_logits, loud.mask_logits)
    assert len(loud.auxiliary) == 4  # the raw queries and three of four layers
    first = loud.auxiliary[0]
    assert isinstance(first, LayerPrediction)
    embed = ours.mask_embed(ours.decoder_norm(ours.query_feat.weight)).expand(2, -1, -1)
    torch.testing.assert_close(first.mask_embed, embed)
    torch.testing.assert_close(loud.mask_logits, dot_product_masks(loud.mask_embed, loud.mask_features))


def test_same_alone_and_in_a_batch() -> None:
    ours, given = decoder(), pixels(batch=3)
    with torch.no_grad():
        together = ours(given)
        for i in range(3):
            part = PixelFeatures(given.mask_features[i : i + 1], tuple(x[i : i + 1] for x in given.memory))
            alone = ours(part)
            torch.testing.assert_close(alone.mask_logits[0], together.mask_logits[i], atol=1e-5, rtol=0)
            torch.testing.assert_close(alone.class_logits[0], together.class_logits[i], atol=1e-5, rtol=0)


def test_order_of_queries_does_not_matter() -> None:
    ours, given, order = decoder(), pixels(), torch.randperm(7)
    with torch.no_grad():
        before = ours(given)
        for table in (ours.query_feat, ours.query_embed):
            table.weight.copy_(table.weight[order].clone())
        after = ours(given)
    torch.testing.assert_close(after.mask_logits, before.mask_logits[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(after.class_logits, before.class_logits[:, order], atol=1e-5, rtol=0)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        ours = decoder().train()
        ours.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        out = ours(pixels())
        sum(
            layer.mask_logits.square().mean() + layer.class_logits.square().mean() for layer in (out, *out.auxiliary)
        ).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
        gradients.append([p.grad for p in ours.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_compiles_to_one_graph() -> None:
    ours, given = decoder(), pixels()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(given).mask_logits, ours(given).mask_logits, atol=1e-5, rtol=0)


# Spec: parameters of the published models, in millions. ADE20K's 150 classes; R50 from PEM's table.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet50", 44.0), ("swin-tiny", 47.4), ("swin-small", 68.8), ("swin-base", 106.9), ("swin-large", 215.5)],
)
def test_parameter_count(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = MaskFormer.from_preset(f"mask2former-{name}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
