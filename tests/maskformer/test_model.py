import json
import subprocess
import sys

import pytest
import torch

from maskformer.baseline import UNet
from maskformer.config import PRESETS, ModelConfig
from maskformer.model import MaskFormer, build_model, param_groups
from maskformer.prediction import DensePrediction, Prediction

TINY = {
    "backbone": "resnet18",
    "num_queries": 7,
    "hidden_dim": 32,
    "pixel_dim": 32,
    "mask_dim": 16,
    "num_heads": 4,
    "decoder_layers": 3,
    "encoder_layers": 1,
    "feedforward_dim": 48,
    "num_classes": 2,
}


def tiny(**changes) -> MaskFormer:
    torch.manual_seed(0)
    return MaskFormer(ModelConfig.from_dict({**TINY, **changes}))


def test_config_does_not_import_torch() -> None:
    code = "import sys, maskformer.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = ModelConfig.from_preset(name, num_classes=3)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.num_classes == 3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_with_any_channels(name: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig.from_preset(name, num_classes=4, in_channels=6))
    assert sum(p.numel() for p in model.parameters()) > 5e5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig.from_preset("maskformer-resnet5"), "did you mean 'maskformer-resnet50'"),
        (lambda: ModelConfig.from_preset("maskformer-resnet50", num_querys=3), "did you mean 'num_queries'"),
        (lambda: ModelConfig(pixel_decoder="fpm"), "did you mean"),
        (lambda: ModelConfig(num_classes=0), "num_classes: 0"),
        (lambda: ModelConfig(num_queries=2.5), "num_queries: 2.5"),
        (lambda: ModelConfig(oversample_ratio=0.5), "oversample_ratio: 0.5"),
        (lambda: ModelConfig(importance_ratio=1.5), "importance_ratio: 1.5"),
        (lambda: ModelConfig(dropout=-1), "dropout: -1"),
        (lambda: ModelConfig(mask_weight=float("nan")), "mask_weight: nan"),
        (lambda: ModelConfig(hidden_dim=100), "hidden_dim: 100"),
        (lambda: MaskFormer.from_preset("unet-efficientnet-lite0"), "is a unet"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("name", "millions"), [("maskformer-resnet50", 41.3), ("maskformer-resnet101", 60.3)])
def test_published_parameter_counts(name: str, millions: float) -> None:
    """41.3 M (ADE20K, R50) and 60.2 M (Cityscapes' 19 classes, R101) as re-measured in the PEM paper."""
    with torch.device("meta"):
        model = MaskFormer.from_preset(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("pixel_decoder", ["fpn", "transformer_fpn"])
def test_shapes_and_auxiliary(pixel_decoder: str) -> None:
    model = tiny(pixel_decoder=pixel_decoder, in_channels=4)
    x = torch.randn(2, 4, 64, 96)
    trained = model.train()(x)
    assert isinstance(trained, Prediction)
    assert len(trained.auxiliary) == 2
    for layer in (trained, *trained.auxiliary):
        assert layer.class_logits.shape == (2, 7, 3)
        assert layer.mask_logits.shape == (2, 7, 16, 24)
    assert model.eval()(x).auxiliary == ()
    assert tiny(auxiliary=False).train()(x[:, :3]).auxiliary == ()


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(pixel_decoder="transformer_fpn", freeze_batch_norm=False).train()
    out = model(torch.randn(1, 3, 64, 64))
    sum(p.class_logits.sum() + p.mask_logits.square().sum() for p in (out, *out.auxiliary)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_config_survives_json_and_shares_nothing() -> None:
    config = ModelConfig.from_preset("maskformer-swin-tiny", backbone_options={"depths": (1, 1, 2, 1), "window": 4})
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    ModelConfig.from_preset("maskformer-swin-tiny").backbone_options["window"] = 12
    assert "window" not in ModelConfig.from_preset("mask2former-swin-large").backbone_options


def test_a_transformer_fpn_from_before_its_own_width() -> None:
    old = {"pixel_decoder": "transformer_fpn", "feedforward_dim": 96}
    assert ModelConfig.from_dict(old).encoder_feedforward_dim == 96
    assert ModelConfig.from_dict({**old, "encoder_feedforward_dim": 64}).encoder_feedforward_dim == 64


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty batch"):
        tiny()(torch.zeros(0, 3, 64, 64))


def test_sizes_off_the_grid_are_rounded_up() -> None:
    with torch.no_grad():
        assert tiny().eval()(torch.zeros(1, 3, 50, 65)).mask_logits.shape[-2:] == (13, 17)


def test_a_picture_is_the_same_alone_and_in_a_batch() -> None:
    model = tiny(pixel_decoder="transformer_fpn").eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(x), model(x[1:2])
    torch.testing.assert_close(together.mask_logits[1:2], alone.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.class_logits[1:2], alone.class_logits, atol=1e-4, rtol=1e-4)


def test_permuted_queries_give_permuted_masks() -> None:
    model = tiny().eval()
    x, order = torch.randn(1, 3, 64, 64), torch.randperm(7)
    with torch.no_grad():
        before = model(x)
        model.query_decoder.query_embed.weight.copy_(model.query_decoder.query_embed.weight[order])
        after = model(x)
    torch.testing.assert_close(after.mask_logits, before.mask_logits[:, order], atol=1e-4, rtol=1e-4)


def test_training_after_inference_mode() -> None:
    """The cached position encoding must not be an inference tensor."""
    model = tiny(pixel_decoder="transformer_fpn")
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 96, 160))
    model.train()(torch.zeros(1, 3, 96, 160)).mask_logits.sum().backward()


def test_autocast_bf16_is_close() -> None:
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(x).class_logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x).class_logits
    assert (exact - rough).abs().max() < 0.2


def test_unet_gives_dense_logits() -> None:
    model = build_model(ModelConfig.from_preset("unet-efficientnet-lite0", num_classes=3, in_channels=4)).eval()
    assert isinstance(model, UNet)
    with torch.no_grad():
        out = model(torch.randn(2, 4, 64, 96))
    assert isinstance(out, DensePrediction)
    assert out.logits.shape == (2, 4, 64, 96)


def test_param_groups() -> None:
    model = tiny(freeze_batch_norm=True)
    groups = param_groups(model, 1e-3, backbone_multiplier=0.1, weight_decay=0.05)
    rate, decay = {}, {}
    for group in groups:
        for parameter in group["params"]:
            rate[id(parameter)], decay[id(parameter)] = group["lr"], group["weight_decay"]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert set(rate) == trained
    assert sum(len(group["params"]) for group in groups) == len(trained)
    decoder = model.query_decoder
    assert rate[id(model.backbone.network.conv1.weight)] == pytest.approx(1e-4)
    assert rate[id(decoder.class_embed.weight)] == pytest.approx(1e-3)
    assert decay[id(decoder.class_embed.weight)] == 0.05
    assert decay[id(decoder.query_embed.weight)] == decay[id(decoder.norm.weight)] == 0.0
    assert decay[id(model.pixel_decoder.top[1].weight)] == 0.0
    assert id(model.backbone.network.bn1.weight) not in rate
