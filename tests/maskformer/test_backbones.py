import pytest
import timm
import torch

from maskformer.backbones import Backbone, build_backbone, inflate_stem, load_backbone_weights
from maskformer.config import ModelConfig
from maskformer.model import build_model
from maskformer.weights import backbone_network

NAME = "tf_efficientnet_lite0"


def make(name: str, in_channels: int = 3, freeze_batch_norm: bool = False, **options) -> Backbone:
    return build_backbone(
        ModelConfig(
            backbone=name,
            in_channels=in_channels,
            freeze_batch_norm=freeze_batch_norm,
            backbone_options=options,
        )
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(NAME, pretrained=False).state_dict()


def features(channels: int, weights: dict, x: torch.Tensor, rgb=None) -> list[torch.Tensor]:
    """In double precision: another order of summation alone moves float32 features by 1e-5."""
    backbone = make(NAME, channels).eval()
    load_backbone_weights(backbone, weights, rgb)
    with torch.no_grad():
        return backbone.double()(x.double())


@pytest.mark.parametrize("name", [NAME, "resnet18", "convnext_atto"])
def test_strides_4_to_32(name: str) -> None:
    backbone = make(name, in_channels=2).eval()
    with torch.no_grad():
        out = backbone(torch.randn(1, 2, 64, 96))
    assert [tuple(f.shape[-2:]) for f in out] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(f.shape[1] for f in out) == backbone.channels


def test_timms_networks_with_channels_behind_give_them_in_front() -> None:
    """timm's own Swin hands out (B, H, W, C)."""
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "img_size": 64}
    backbone = make("swin_tiny_patch4_window7_224", **small).eval()
    with torch.no_grad():
        out, raw = backbone(torch.ones(1, 3, 64, 64)), backbone.network(torch.ones(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in out] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]
    assert tuple(f.shape[1] for f in out) == backbone.channels
    assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(out, raw, strict=True))


@pytest.mark.parametrize(("name", "word"), [("no_such_net", "no model"), ("mixer_s16_224", "strides")])
def test_unusable_network_is_named(name: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make(name)


def test_extra_channels_at_zero_keep_the_rgb_features(weights: dict) -> None:
    rgb = torch.randn(1, 3, 64, 64)
    wanted = features(3, weights, rgb)
    five = torch.zeros(1, 5, 64, 64)
    five[:, :3] = rgb
    shuffled = torch.zeros(1, 5, 64, 64)
    shuffled[:, [3, 1, 0]] = rgb
    for got in (features(5, weights, five), features(5, weights, shuffled, rgb=(3, 1, 0))):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_bgr_order_of_three_channels(weights: dict) -> None:
    rgb = torch.randn(1, 3, 64, 64)
    for a, b in zip(features(3, weights, rgb.flip(1), rgb=(2, 1, 0)), features(3, weights, rgb), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_one_channel_is_grey(weights: dict) -> None:
    grey = torch.randn(1, 1, 64, 64)
    wanted = features(3, weights, grey.expand(1, 3, 64, 64))
    for a, b in zip(features(1, weights, grey), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_an_extra_channel_can_be_seen(weights: dict) -> None:
    x = torch.zeros(1, 4, 64, 64)
    y = x.clone()
    y[:, 3] = torch.randn(1, 64, 64)
    assert not torch.allclose(features(4, weights, x)[0], features(4, weights, y)[0])


def test_wrong_rgb_places() -> None:
    with pytest.raises(ValueError, match="three different channels"):
        inflate_stem(torch.zeros(4, 3, 3, 3), 4, (0, 0, 1))


@pytest.mark.parametrize("preset", ["mfenet-efficientnet-lite0", "unet-efficientnet-lite0"])
def test_account_of_loaded_weights(preset: str, weights: dict) -> None:
    model = build_model(ModelConfig.from_preset(preset, in_channels=4))
    account = load_backbone_weights(model, weights)
    assert account.inflated == ("conv_stem.weight",)
    assert not account.missing
    assert set(account.unexpected) == {n for n in weights if n.startswith(("conv_head", "bn2", "classifier"))}
    own = model.backbone.state_dict()
    name = next(n for n in own if n.endswith("blocks.3.1.conv_pw.weight"))
    torch.testing.assert_close(own[name], weights["blocks.3.1.conv_pw.weight"])


def test_both_architectures_get_the_same_encoder(weights: dict) -> None:
    x, out = torch.randn(1, 3, 64, 64), []
    for preset in ("mfenet-efficientnet-lite0", "unet-efficientnet-lite0"):
        model = build_model(ModelConfig.from_preset(preset)).eval()
        load_backbone_weights(model, weights)
        with torch.no_grad():
            out.append(model.backbone(x)[-4:])
    for a, b in zip(*out, strict=True):
        torch.testing.assert_close(a, b)


def test_flattened_names_of_timm_are_found() -> None:
    full = timm.create_model("convnext_atto", pretrained=False).state_dict()
    account = load_backbone_weights(make("convnext_atto"), full)
    assert not account.missing
    assert all(name.startswith(("head", "norm_pre")) for name in account.unexpected)


def test_foreign_weights_are_refused(weights: dict) -> None:
    with pytest.raises(ValueError, match="no tensor of the file"):
        load_backbone_weights(make("resnet18"), {"something.else": torch.zeros(1)})
    broken = {**weights, "blocks.3.1.conv_pw.weight": torch.zeros(1, 2, 3, 4)}
    with pytest.raises(ValueError, match=r"blocks\.3\.1\.conv_pw\.weight has shape"):
        load_backbone_weights(make(NAME), broken)


def test_frozen_batch_norm_stays(weights: dict) -> None:
    frozen, free = make(NAME, freeze_batch_norm=True).train(), make(NAME).train()
    for backbone, changes in ((frozen, False), (free, True)):
        before = backbone.network.bn1.running_mean.clone()
        backbone(torch.randn(2, 3, 64, 64) + 1)[-1].sum().backward()
        assert (not torch.equal(before, backbone.network.bn1.running_mean)) is changes
        assert (backbone.network.bn1.weight.grad is not None) is changes
        assert backbone.network.conv_stem.weight.grad is not None


# One of each kind: timm's CNNs (plain, weight-standardised with and without gain), ViT, Swin; as (name, options).
KINDS = [
    ("resnet18", {}),
    ("convnext_atto", {}),
    ("resnetv2_50", {"layers": (1, 1, 1, 1)}),
    ("nfnet_l0", {"depths": (1, 1, 1, 1)}),
    ("vit_tiny_patch16_224", {"depth": 2}),
    ("swin-tiny", {"embed_dim": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1)}),
    ("stdc1", {}),
]


@pytest.mark.parametrize(("name", "options"), KINDS, ids=[name for name, _ in KINDS])
def test_every_kind_of_stem_is_inflated(name: str, options: dict) -> None:
    """RGB at any places, other channels at 0: the features of the RGB network."""
    torch.manual_seed(0)
    plain = make(name, **options).eval().double()
    state = {key: tensor.float() for key, tensor in backbone_network(plain).state_dict().items()}
    rgb = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    for channels, places in ((5, (3, 1, 0)), (3, (2, 1, 0)), (4, None)):
        backbone = make(name, channels, **options).eval()
        if name == "vit_tiny_patch16_224":  # all but the ViT itself is ours and fresh
            backbone.levels.load_state_dict(plain.levels.state_dict())
        account = load_backbone_weights(backbone, state, places)
        assert len(account.inflated) == (channels != 3)
        assert not account.missing and not account.unexpected
        x = torch.zeros(1, channels, 64, 96, dtype=torch.float64)
        x[:, list(places or range(3))] = rgb
        with torch.no_grad():
            for a, b in zip(backbone.double()(x), plain(rgb), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    x = torch.randn(2, 3, 64, 64)
    for name, options in (("resnet18", {}), KINDS[4], KINDS[5]):
        gradients = []
        for enable in (False, True):
            torch.manual_seed(0)
            backbone = make(name, **options).train()
            backbone.set_grad_checkpointing(enable)
            sum(f.square().sum() for f in backbone(x)).backward()
            gradients.append([p.grad for p in backbone.parameters()])
        assert all(g is not None for g in gradients[0])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_drop_path_reaches_every_kind() -> None:
    """The family's word, whatever timm calls it: in training two passes differ."""
    for name, options in (("convnext_atto", {}), KINDS[4], KINDS[5]):
        backbone = make(name, drop_path=0.9, **options).train()
        x = torch.randn(4, 3, 64, 64)
        with torch.no_grad():
            assert not torch.allclose(backbone(x)[-1], backbone(x)[-1])


def test_unknown_options_are_named() -> None:
    for name in ("resnet18", "swin-tiny", "vit_tiny_patch16_224"):
        with pytest.raises(ValueError, match="no_such"):
            make(name, no_such=1)


def test_networks_without_checkpointing_say_so() -> None:
    with pytest.raises(ValueError, match="STDC has none"):
        make("stdc1").set_grad_checkpointing()
