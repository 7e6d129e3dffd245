"""Swin against transformers' (a test dependency), and against itself."""

import re

import pytest
import timm
import torch
import transformers
from torch import nn

from maskformer.model import MaskFormer
from maskformer.swin import Swin, window_plan
from maskformer.weights import load_backbone_weights

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


def test_same_gradients_as_transformers() -> None:
    """The bias tables above all: PyTorch's fused attention gives its mask no gradient."""
    network = small_swin()
    theirs = transformers_backbone(network, SMALL["embed_dim"], SMALL["window"])
    x = torch.randn(2, 3, 90, 61)
    sum(f.square().mean() for f in network(x)).backward()
    sum(f.square().mean() for f in theirs(x).feature_maps).backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in network.named_parameters():
        if ".qkv." in name:
            names = [their_name(name.replace("attn.qkv", f"attention.{part}_proj")) for part in "qkv"]
            expected = torch.cat([wanted[other] for other in names])
        else:
            expected = wanted[their_name(name)]
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-3, msg=name)


def test_timm_rolls_before_it_pads() -> None:
    """Same weights in timm's Swin: equal at 224 px, where each map is a multiple of the window, and only there.

    Why this file exists: ADE20K checkpoints see 512 px, where each map has padding.
    """
    network = small_swin()
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        embed_dim=SMALL["embed_dim"],
        depths=SMALL["depths"],
        num_heads=SMALL["heads"],
        strict_img_size=False,
        always_partition=True,
    ).eval()
    renamed = {}
    for name, tensor in network.state_dict().items():  # a merging belongs to the stage after it
        later = ".downsample." in name
        renamed[re.sub(r"^layers\.(\d)", lambda m, add=later: f"layers_{int(m[1]) + add}", name)] = tensor
    assert not theirs.load_state_dict(renamed, strict=False).missing_keys
    difference = {}
    for size in (224, 256):
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            ours = network(x)
            normed = [
                getattr(network, f"norm{i}")(f).permute(0, 3, 1, 2) for i, f in enumerate(theirs(x))
            ]  # timm's maps are channels-last and have no output norm
        difference[size] = max((a - b).abs().max().item() for a, b in zip(ours, normed, strict=True))
    assert difference[224] < 1e-4
    assert difference[256] > 0.1


def test_image_alone_and_in_a_batch() -> None:
    network = small_swin()
    x = torch.randn(3, 3, 72, 100)
    with torch.no_grad():
        together = network(x)
        for i in range(3):
            for a, b in zip(network(x[i : i + 1]), together, strict=True):
                torch.testing.assert_close(a[0], b[i], atol=1e-5, rtol=1e-5)


def test_memory_format_does_not_matter() -> None:
    network = small_swin()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(network(x.contiguous(memory_format=torch.channels_last)), network(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
            assert b.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (33, 64), (64, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    height, width = size
    with torch.no_grad():
        maps = small_swin()(torch.randn(1, 3, *size))
    for stride, features in zip((4, 8, 16, 32), maps, strict=True):
        assert features.shape[-2:] == (-(-height // stride), -(-width // stride))
        assert features.isfinite().all()


def test_bfloat16_is_as_close_as_transformers() -> None:
    network = small_swin()
    theirs = transformers_backbone(network, SMALL["embed_dim"], SMALL["window"])
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        wanted = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            ours, others = network(x), theirs(x).feature_maps
    for a, b, exact in zip(ours, others, wanted, strict=True):
        error, allowed = ((f.float() - exact).square().mean().sqrt() for f in (a, b))
        assert 0 < error <= 1.2 * allowed


def test_after_inference_mode_it_still_trains() -> None:
    """Plans are kept for a shape: one made in inference mode must serve a training step."""
    network, x = small_swin(), torch.randn(1, 3, 44, 76)
    with torch.inference_mode():
        network(x)
    network.train()(x)[-1].sum().backward()
    assert network.layers[0].blocks[1].attn.relative_position_bias_table.grad.abs().sum() > 0


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [(14, 21), (13, 16), (3, 5)])
def test_plan_against_the_definition(size: tuple[int, int], shift: int) -> None:
    height, width = size
    window, rows, columns = 7, -(-height // 7) * 7, -(-width // 7) * 7
    plan = window_plan(height, width, window, shift, torch.device("cpu"))
    token = plan.gather.clone()
    token[plan.padded] = -1
    wanted = []
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            for y in range(top, top + window):
                for x in range(left, left + window):
                    from_y, from_x = (y + shift) % rows, (x + shift) % columns
                    wanted.append(from_y * width + from_x if from_y < height and from_x < width else -1)
    assert token.tolist() == wanted
    assert token[plan.scatter].tolist() == list(range(height * width))


def published(network: Swin) -> dict[str, torch.Tensor]:
    """As the Swin repository's ImageNet files have it: no output norms, a classifier, derived tables."""
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("norm")}
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    width = network.channels[-1]
    return {**state, "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width), "head.bias": torch.zeros(9)}


@pytest.mark.parametrize("timm_names", [False, True])
def test_classification_checkpoints(timm_names: bool) -> None:
    source, network = small_swin(1), small_swin(2, in_channels=5)
    state = published(source)
    if timm_names:
        state = {
            name.replace(f"layers.{i}.", f"layers.{i + 1}.") if ".downsample." in name else name: tensor
            for name, tensor in state.items()
            for i in [int(name.split(".")[1]) if name.startswith("layers.") else 0]
        }
    account = load_backbone_weights(network, state)
    assert account.inflated == ("patch_embed.proj.weight",)
    assert set(account.missing) == {f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert set(account.unexpected) == {"norm.weight", "norm.bias", "head.bias"}
    for name, tensor in network.state_dict().items():
        if name in account.loaded:
            torch.testing.assert_close(tensor, source.state_dict()[name])


def test_tables_of_another_window_are_refused() -> None:
    with pytest.raises(ValueError, match="windows of 7, expected 4"):
        load_backbone_weights(small_swin(window=4), published(small_swin()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin-huge", {}, "swin-tiny"),
        ("swin-tiny", {"windows": 7}, "windows"),
        ("swin-tiny", {"depths": (2, 2)}, "four"),
        ("swin-tiny", {"embed_dim": 100}, "heads"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Swin(name, **options)


# The published table; the models' other parts are MaskFormer's and Mask2Former's at 150 classes.
MILLIONS = {
    "maskformer-swin-tiny": 41.8,
    "maskformer-swin-small": 63.1,
    "maskformer-swin-base": 101.8,
    "maskformer-swin-large": 211.6,
    "mask2former-swin-tiny": 47.4,
    "mask2former-swin-small": 68.8,
    "mask2former-swin-base": 106.9,
    "mask2former-swin-large": 215.5,
}


@pytest.mark.parametrize("preset", MILLIONS)
def test_parameters_of_published_models(preset: str) -> None:
    with torch.device("meta"):
        model = MaskFormer.from_preset(preset)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[preset], abs=0.1)
