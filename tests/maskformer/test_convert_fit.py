"""Other classes, queries and channels than the checkpoint's; and timm's backbones into a fresh model."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskformer import convert
from maskformer.config import ModelConfig
from maskformer.conversion.fit import _class_rows
from maskformer.model import MaskFormer
from tests.maskformer import published

CLASS_ROWS = "query_decoder.class_embed.weight"
QUERY_TABLES = ("query_decoder.query_embed.weight", "query_decoder.query_feat.weight")


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return published.mask2former(published.swin())


@pytest.fixture(scope="module")
def plain(theirs: nn.Module) -> dict[str, Tensor]:
    return convert.from_transformers(theirs).state_dict()


def only_these_differ(model: MaskFormer, plain: dict[str, Tensor], names: set[str]) -> None:
    found = model.state_dict()
    assert set(found) == set(plain)
    differing = {n for n in plain if found[n].shape != plain[n].shape or not torch.equal(found[n], plain[n])}
    assert differing == names == set(model.conversion.adapted)


def test_fewer_queries_are_the_first_ones(theirs: nn.Module, plain: dict[str, Tensor]) -> None:
    model = convert.from_transformers(theirs, num_queries=4)
    only_these_differ(model, plain, set(QUERY_TABLES))
    for name in QUERY_TABLES:
        assert torch.equal(model.state_dict()[name], plain[name][:4])
        assert model.conversion.adapted[name] == "the first 4 of 7 queries"
    assert model(torch.randn(1, 3, 64, 64)).class_logits.shape == (1, 4, published.CLASSES + 1)


def test_more_queries_are_copies_that_can_part(theirs: nn.Module, plain: dict[str, Tensor]) -> None:
    model = convert.from_transformers(theirs, num_queries=17)
    only_these_differ(model, plain, set(QUERY_TABLES))
    for name in QUERY_TABLES:
        table, original = model.state_dict()[name], plain[name]
        assert torch.equal(table[:7], original)
        apart = table[7:14] - original
        assert 0 < apart.abs().max() < 0.1 * original.std()
        assert not torch.equal(table[7:10], table[14:])
    again = convert.from_transformers(theirs, num_queries=17).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_classes_of_the_same_name_are_kept(theirs: nn.Module, plain: dict[str, Tensor]) -> None:
    model = convert.from_transformers(theirs, classes=["car", "bridge", "tree"])
    only_these_differ(model, plain, {CLASS_ROWS, CLASS_ROWS.replace("weight", "bias")})
    rows = model.state_dict()[CLASS_ROWS]
    assert torch.equal(rows[[0, 2, 3]], plain[CLASS_ROWS][[3, 1, 5]])  # car, tree, "no object"
    assert not (rows[1] == plain[CLASS_ROWS]).all(1).any()
    assert model.conversion.adapted[CLASS_ROWS] == '"no object" and 2 classes kept by name (car, tree), 1 fresh'
    assert model.conversion.classes == ("car", "bridge", "tree")


def test_another_number_of_classes_keeps_no_object_alone(theirs: nn.Module, plain: dict[str, Tensor]) -> None:
    model = convert.from_transformers(theirs, num_classes=2)
    rows = model.state_dict()[CLASS_ROWS]
    assert rows.shape[0] == 3 and torch.equal(rows[-1], plain[CLASS_ROWS][-1])
    assert not (rows[0] == plain[CLASS_ROWS]).all(1).any()
    assert model.conversion.adapted[CLASS_ROWS] == '"no object" and 0 classes kept by name, 2 fresh'
    assert model.conversion.classes == ()


def test_the_checkpoints_own_numbers_change_nothing(theirs: nn.Module, plain: dict[str, Tensor]) -> None:
    names = list(published.NAMES.values())
    model = convert.from_transformers(theirs, classes=names, num_queries=7, in_channels=3)
    only_these_differ(model, plain, set())
    assert model.conversion.classes == tuple(names)


def test_names_for_a_checkpoint_without_any_change_nothing(tmp_path: Path) -> None:
    weights = published.to_detectron2(published.maskformer(published.resnet()))
    torch.save(weights, tmp_path / "model.pth")
    model = convert.from_detectron2(tmp_path / "model.pth", classes=["a", "b", "c", "d", "e"])
    assert torch.equal(model.state_dict()[CLASS_ROWS], weights["sem_seg_head.predictor.class_embed.weight"])
    assert model.conversion.classes == ("a", "b", "c", "d", "e") and not model.conversion.adapted
    assert convert.from_detectron2(tmp_path / "model.pth", num_queries=3).config.num_queries == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: published.maskformer(published.swin()),
        lambda: published.maskformer(published.resnet()),
        lambda: published.eomt(64),
    ],
    ids=["swin", "resnet", "eomt"],
)
def test_more_channels_at_their_mean_change_nothing(make) -> None:
    """Red, green and blue stand where `rgb` says; channels at 0, their mean after scaling, add nothing."""
    theirs = make()
    picture = torch.randn(1, 3, 64, 64)
    wide = torch.zeros(1, 5, 64, 64)
    wide[:, [4, 0, 2]] = picture
    model = convert.from_transformers(theirs, in_channels=5, rgb=(4, 0, 2))
    with torch.no_grad():
        expected, found = theirs(pixel_values=picture), model(wide)
    torch.testing.assert_close(found.mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)
    ((name, how),) = model.conversion.adapted.items()
    assert name.startswith("backbone.network.") and "inflated to 5, red, green and blue at 4, 0, 2" in how


def test_impossible_changes_are_named(theirs: nn.Module) -> None:
    with pytest.raises(ValueError, match="num_classes: 3, but 2 classes are named"):
        convert.from_transformers(theirs, num_classes=3, classes=["a", "b"])
    for again in (["a", "b", "a"], ("tree", "tree")):
        with pytest.raises(ValueError, match=f"classes: '{again[0]}' is named twice"):
            convert.from_transformers(theirs, classes=again)
    with pytest.raises(ValueError, match="num_queries: 0 is not a positive whole number"):
        convert.from_transformers(theirs, num_queries=0)
    with pytest.raises(ValueError, match="are not three different channels"):
        convert.from_transformers(theirs, in_channels=4, rgb=(0, 1, 7))


# ------------------------------------------------------------------------------------------------------------ timm

TINY = ModelConfig(
    backbone="resnet10t",
    num_classes=2,
    num_queries=3,
    pixel_dim=32,
    mask_dim=32,
    hidden_dim=32,
    num_heads=4,
    decoder_layers=1,
    feedforward_dim=32,
)


def test_timms_backbone_into_a_fresh_model(tmp_path: Path) -> None:
    weights = timm.create_model("resnet10t", pretrained=False).state_dict()
    save_file(weights, tmp_path / "resnet10t.safetensors")
    for given in (weights, tmp_path / "resnet10t.safetensors"):
        model = convert.from_timm(given, TINY)
        found, account = model.state_dict(), model.conversion
        assert set(account.loaded) == {name for name in found if name.startswith("backbone.")}
        assert set(account.loaded) | set(account.fresh) == set(found)
        assert set(account.left_over) == {"fc.weight", "fc.bias"}
        assert torch.equal(found["backbone.network.layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])
        assert not model.training
    wide = convert.from_timm(weights, TINY.replace(in_channels=4)).conversion
    assert wide.adapted == {"backbone.network.conv1.0.weight": "stem inflated to 4 channels"}


def test_timms_swin_into_ours_leaves_its_norms_fresh() -> None:
    options = {"embed_dim": 16, "depths": (1, 1, 2, 1), "heads": (2, 2, 4, 4)}
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, embed_dim=16, depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 4)
    )
    config = TINY.replace(backbone="swin-tiny", backbone_options=options)
    account = convert.from_timm(theirs.state_dict(), config).conversion
    backbone = {name for name in account.fresh if name.startswith("backbone.")}
    assert backbone == {f"backbone.network.norm{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    assert any(name.startswith("head.") for name in account.left_over)


def test_a_vit_of_timm_fills_both_parts_of_eomt() -> None:
    shape = {"img_size": 64, "patch_size": 16, "depth": 3, "embed_dim": 32, "num_heads": 4}
    changes = {"hidden_dim": 32, "mask_dim": 32, "num_heads": 4, "decoder_layers": 2, "num_queries": 3}
    config = ModelConfig.from_preset("eomt-small", backbone_options=shape, num_classes=2, **changes)
    weights = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, num_classes=0, **shape).state_dict()
    model = convert.from_timm(weights, config)
    assert len(model.conversion.loaded) == len(weights)
    last = model.state_dict()["query_decoder.blocks.1.attn.qkv.weight"]
    assert torch.equal(last, weights["blocks.2.attn.qkv.weight"])
    assert not any(name.startswith("backbone.") for name in model.conversion.fresh)


def test_other_weights_than_the_backbones_are_refused(tmp_path: Path) -> None:
    other = timm.create_model("resnet10t", pretrained=False).state_dict()
    with pytest.raises(ValueError, match=r"1 tensors have no place here: stranger\.weight"):
        convert.from_timm(other | {"stranger.weight": torch.zeros(1)}, TINY)
    del other["layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"1 tensors of the backbone are missing: layer1\.0\.conv1\.weight"):
        convert.from_timm(other, TINY)
    with pytest.raises(ValueError, match="neither a file nor a model of timm"):
        convert.from_timm("resnet10q", TINY)


def test_a_hub_out_of_reach_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> nn.Module:
        raise OSError("offline")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ValueError, match="weights cannot be had: offline; put them into timm's cache"):
        convert.from_timm("resnet10t", TINY)


def test_one_forgotten_name_does_not_throw_the_class_head_away() -> None:
    nameless = ["LABEL_0", "LABEL_1", "LABEL_2"]
    with pytest.raises(ValueError, match="2 names, but the checkpoint has 3 classes without names"):
        _class_rows(torch.zeros(3, 4), torch.zeros(4, 4), ["a", "b"], nameless)
    rows, how = _class_rows(torch.zeros(4, 4), torch.ones(4, 4), ["a", "b", "c"], nameless)
    assert torch.equal(rows, torch.ones(4, 4)) and how == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_backbones_that_are_not_finite_are_refused_by_name(value: float) -> None:
    weights = timm.create_model("resnet10t", pretrained=False).state_dict()
    weights["layer1.0.conv1.weight"][0] = value
    with pytest.raises(ValueError, match=r"1 tensors hold NaN or infinite values: layer1\.0\.conv1\.weight"):
        convert.from_timm(weights, TINY)
