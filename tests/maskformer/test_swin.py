"""Swin against transformers' (a test dependency), and against itself."""

import pytest
import torch
import transformers
from torch import nn

from maskformer.swin import Swin

SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4), "window": 7}


def small_swin(seed: int = 0, **changes) -> Swin:
    """Random in everything, tables and norms included: a freshly initialised network hides differences."""
    torch.manual_seed(seed)
    network = Swin("swin-tiny", **{**SMALL, **changes}).eval()
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "table" in name else 0.1)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return network


def transformers_backbone(network: Swin, width: int, window: int) -> nn.Module:
    """transformers' SwinBackbone with the weights of ours."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.SwinConfig(
        embed_dim=width,
        depths=SMALL["depths"],
        num_heads=SMALL["heads"],
        window_size=window,
        out_features=stages,
        attn_implementation="eager",
    )
    theirs = transformers.SwinBackbone(config).eval()
    state = {}
    for name, tensor in network.state_dict().items():
        if ".qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[their_name(name.replace("attn.qkv", f"attention.{part}_proj"))] = rows
        else:
            state[their_name(name)] = tensor
    wrong = theirs.load_state_dict(state, strict=False)
    # A norm of the last map for classification; the backbone's maps do not pass it.
    assert wrong.missing_keys == ["swin.layernorm.weight", "swin.layernorm.bias"] and not wrong.unexpected_keys
    return theirs


def their_name(name: str) -> str:
    for i in range(4):
        if name.startswith(f"norm{i}."):
            return name.replace(f"norm{i}", f"hidden_states_norms.stage{i + 1}")
    for ours, other in (
        ("patch_embed.proj", "swin.embeddings.patch_embeddings.projection"),
        ("patch_embed.norm", "swin.embeddings.norm"),
        ("attn.proj", "attention.o_proj"),
        ("attn.relative", "attention.relative_position_bias.relative"),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
    ):
        name = name.replace(ours, other)
    return f"swin.encoder.{name}" if name.startswith("layers") else name


@pytest.mark.parametrize("window", [7, 4])
@pytest.mark.parametrize("size", [(224, 224), (250, 333), (512, 512)])
def test_same_features_as_transformers(size: tuple[int, int], window: int) -> None:
    network = small_swin(window=window)
    theirs = transformers_backbone(network, SMALL["embed_dim"], window)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for a, b in zip(network(x), theirs(x).feature_maps, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
