"""Golden parity of pixel decoder, query decoder and position encoding with the transformers library."""

import pytest
import torch

from maskformer.config import ModelConfig
from maskformer.pixel_decoders import FPN, PixelFeatures, TransformerFPN
from maskformer.position import sine_position
from maskformer.query_decoders import DETRDecoder

reference = pytest.importorskip("transformers.models.maskformer.modeling_maskformer")
CHANNELS = (8, 16, 24, 48)
CONFIG = ModelConfig(
    num_classes=5,
    num_queries=6,
    pixel_dim=32,
    mask_dim=16,
    hidden_dim=64,
    num_heads=4,
    decoder_layers=3,
    feedforward_dim=48,
    dropout=0.0,
)


def features() -> list[torch.Tensor]:
    return [torch.randn(2, c, 32 // 2**i, 48 // 2**i) for i, c in enumerate(CHANNELS)]


def test_position_encoding() -> None:
    theirs = reference.MaskFormerSinePositionEmbedding(num_position_features=32, normalize=True)
    wanted = theirs(torch.Size((1, 64, 5, 9)), torch.device("cpu"), torch.float32)
    got = sine_position(5, 9, 64, torch.device("cpu"))
    torch.testing.assert_close(got, wanted.reshape(got.shape), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_position(5, 9, 6, torch.device("cpu"))


def test_fpn() -> None:
    theirs = reference.MaskFormerPixelDecoder(
        in_features=48, lateral_widths=[8, 16, 24], feature_size=32, mask_feature_size=16
    ).eval()
    # transformers builds GroupNorm(32, …), as we do at these widths.
    ours = FPN(CHANNELS, CONFIG).eval()
    for module, name in ((ours.top, "stem"), (ours.mask_features, None)):
        source = getattr(theirs.fpn, name) if name else theirs.mask_projection
        module.load_state_dict(source.state_dict())
    for i, layer in enumerate(theirs.fpn.layers):
        ours.lateral[i].load_state_dict(layer.proj.state_dict())
        ours.output[i].load_state_dict(layer.block.state_dict())
    x = features()
    with torch.no_grad():
        got, wanted = ours(x), theirs(x)
    torch.testing.assert_close(got.mask_features, wanted.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.memory[0], x[-1])


def reference_decoder():
    transformers = pytest.importorskip("transformers")
    decoder = {
        "model_type": "detr",
        "d_model": 64,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "num_queries": 6,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }
    config = transformers.MaskFormerConfig(decoder_config=decoder)
    return reference.MaskFormerTransformerModule(in_features=48, config=config).eval()


def test_detr_decoder() -> None:
    torch.manual_seed(0)
    theirs, ours = reference_decoder(), DETRDecoder((48, 32, 32), CONFIG).train()
    state = theirs.state_dict()
    own = {
        "query_embed.weight": state["queries_embedder.weight"],
        "input_proj.weight": state["input_projection.weight"],
        "input_proj.bias": state["input_projection.bias"],
        "norm.weight": state["decoder.layernorm.weight"],
        "norm.bias": state["decoder.layernorm.bias"],
    }
    for i in range(3):
        there, here = f"decoder.layers.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            for block, name in (("self_attn", "self_attention"), ("encoder_attn", "cross_attention")):
                parts = [state[f"{there}.{block}.{p}_proj.{kind}"] for p in "qkv"]
                own[f"{here}.{name}.in_proj.{kind}"] = torch.cat(parts)
                own[f"{here}.{name}.out_proj.{kind}"] = state[f"{there}.{block}.o_proj.{kind}"]
            for n in (1, 2):
                own[f"{here}.feedforward.linear{n}.{kind}"] = state[f"{there}.mlp.fc{n}.{kind}"]
            for n, norm in enumerate(("self_attn", "encoder_attn", "final"), start=1):
                own[f"{here}.norm{n}.{kind}"] = state[f"{there}.{norm}_layer_norm.{kind}"]
    left = ours.load_state_dict(own, strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith(("class_embed", "mask_embed")) for name in left.missing_keys)

    res5, mask_features = torch.randn(2, 48, 4, 6), torch.randn(2, 16, 8, 12)
    with torch.no_grad():
        states = theirs(res5, output_hidden_states=True).hidden_states
        got = ours(PixelFeatures(mask_features, (res5,)))
        # Theirs leaves the earlier states un-normed and supervises the all-zero start; ours norms each and does not.
        assert states[0].abs().max() == 0
        for i, layer in enumerate((*got.auxiliary, got)):
            state_i = states[i + 1] if i == 2 else theirs.decoder.layernorm(states[i + 1])
            torch.testing.assert_close(layer.class_logits, ours.class_embed(state_i), atol=1e-4, rtol=1e-4)
            masks = torch.einsum("bqc,bchw->bqhw", ours.mask_embed(state_i), mask_features)
            torch.testing.assert_close(layer.mask_logits, masks, atol=1e-4, rtol=1e-4)


def test_transformer_fpn_is_an_fpn_over_its_encoder() -> None:
    config = CONFIG.replace(pixel_decoder="transformer_fpn", encoder_layers=2, encoder_feedforward_dim=48)
    decoder = TransformerFPN(CHANNELS, config).eval()
    x = features()
    with torch.no_grad():
        out = decoder(x)
        projected = decoder.input_proj(x[-1])
    assert out.memory[0].shape == projected.shape
    assert not torch.allclose(out.memory[0], projected)
    assert decoder.memory_channels[0] == 32
    # The reference of a layer: PyTorch's own, with the same weights (it takes positions inside src only, so at zero).
    layer = decoder.encoder[0]
    theirs = torch.nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True).eval()
    theirs.load_state_dict(
        {
            k.replace("self_attention.in_proj.", "self_attn.in_proj_")
            .replace("self_attention.", "self_attn.")
            .replace("feedforward.", ""): v
            for k, v in layer.state_dict().items()
        }
    )
    tokens = torch.randn(2, 10, 32)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens, torch.zeros(1, 10, 32)), theirs(tokens), atol=1e-5, rtol=1e-4)
