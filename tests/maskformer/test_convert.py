"""transformers' MaskFormer, Mask2Former and EoMT converted: the same numbers, and an account of every tensor."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from maskformer import convert
from maskformer.model import MaskFormer
from maskformer.prediction import Prediction
from tests.maskformer import published

MODELS: dict[str, Callable[[], nn.Module]] = {
    "maskformer-swin": lambda: published.maskformer(published.swin()),
    "maskformer-resnet": lambda: published.maskformer(published.resnet()),
    "mask2former-swin": lambda: published.mask2former(published.swin()),
    "mask2former-resnet": lambda: published.mask2former(published.resnet()),
    "eomt": lambda: published.eomt(64),
}
# Divisible by window and stride; by neither; by the stride but not by the window, which only Swin has.
SIZES = [(224, 224), (250, 333), (512, 512)]
PARITY = [
    (name, size) for name in MODELS for size in SIZES if name != "eomt" and ("swin" in name or size != (512, 512))
]


class Pair:
    """A model of transformers and the folder `save_pretrained` made of it."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.model, self.folder = model, folder
        model.save_pretrained(folder)

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return functools.cache(lambda name: Pair(MODELS[name](), tmp_path_factory.mktemp(name)))


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder that a test may spoil."""
    return Pair(published.eomt(32), tmp_path / "folder").folder


def same_logits(theirs: nn.Module, ours: MaskFormer, height: int, width: int) -> None:
    picture = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(pixel_values=picture), ours(picture)
    assert isinstance(found, Prediction)
    assert expected.masks_queries_logits.std() > 1, "logits this small would prove nothing"
    torch.testing.assert_close(found.class_logits, expected.class_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "size"), PARITY, ids=str)
def test_logits_are_those_of_transformers(name: str, size: tuple[int, int], pairs: Callable[[str], Pair]) -> None:
    pair = pairs(name)
    same_logits(pair.model, convert.from_transformers(pair.folder), *size)


@pytest.mark.parametrize(("side", "masked"), [(224, 0.0), (512, 0.0), (224, 1.0)])
def test_eomt_has_the_logits_of_transformers(side: int, masked: float) -> None:
    theirs = published.eomt(side, masked)
    same_logits(theirs, convert.from_transformers(theirs), side, side)


def test_a_query_decoder_wider_than_the_pixel_decoder_has_its_projections() -> None:
    theirs = published.mask2former(published.swin(), hidden=64)
    ours = convert.from_transformers(theirs)
    assert "query_decoder.input_proj.2.weight" in ours.conversion.loaded
    same_logits(theirs, ours, 96, 128)


def test_names_in_memory_and_in_files_give_the_same_model(pair: Pair) -> None:
    in_memory, in_file = convert.from_transformers(pair.model), convert.from_transformers(pair.folder)
    assert in_memory.config == in_file.config
    expected = in_file.state_dict()
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", ["maskformer-swin", "mask2former-swin"])
def test_the_two_eras_of_names_do_differ(name: str, pairs: Callable[[str], Pair]) -> None:
    """transformers 5 renames as it loads and back as it saves: if it stops, one of the two is no longer tested."""
    pair = pairs(name)
    in_memory, in_file = set(pair.model.state_dict()), set(load_file(pair.weights))
    assert in_memory - in_file and in_file - in_memory


def test_converting_needs_no_transformers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert convert.from_transformers(pair.folder).conversion.loaded


def test_a_live_model_and_its_copy_share_no_memory() -> None:
    theirs = published.eomt(32)
    ours = convert.from_transformers(theirs)
    before = ours.state_dict()["query_decoder.query_embed.weight"].clone()
    with torch.no_grad():
        theirs.get_parameter("query.weight").zero_()
    assert torch.equal(ours.state_dict()["query_decoder.query_embed.weight"], before)


def test_every_tensor_is_accounted_for(pair: Pair) -> None:
    model = convert.from_transformers(pair.folder)
    account, theirs = model.conversion, load_file(pair.weights)
    assert set(account.loaded) | set(account.fresh) == set(model.state_dict())
    named = {name for names in account.renamed.values() for name in names.split(", ")}
    assert named | set(account.left_over) | set(account.loaded) - set(account.renamed) == set(theirs)
    assert not account.fresh and not account.adapted
    assert all(account.left_over.values())
    assert "criterion.empty_weight" in account.left_over
    assert f"{len(account.loaded)} tensors loaded" in account.describe()


def test_a_converted_model_trains_like_a_fresh_one(pair: Pair) -> None:
    model = convert.from_transformers(pair.folder)
    fresh = MaskFormer(model.config)
    assert not model.training
    wanted = {name: p.requires_grad for name, p in fresh.named_parameters()}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    side = 64
    model.train()(torch.randn(1, 3, side, side)).mask_logits.sum().backward()


def test_architecture_comes_from_config_json() -> None:
    config = convert.from_transformers(published.mask2former(published.swin(window=4))).config
    assert config.backbone_options["window"] == 4 and tuple(config.backbone_options["depths"]) == (1, 1, 2, 1)
    assert (config.pixel_decoder, config.query_decoder) == ("deformable", "masked")
    assert (config.decoder_layers, config.encoder_layers, config.encoder_feedforward_dim) == (4, 2, 48)
    assert (config.num_queries, config.num_classes) == (published.QUERIES, published.CLASSES)
    assert (config.class_weight, config.mask_weight, config.dice_weight) == (2.0, 5.0, 5.0)
    assert config.loss_resolution == "points" and config.mask_loss == "bce"


def test_a_config_that_states_only_what_differs_means_the_published_defaults() -> None:
    """Hub folders written by version 4 leave defaults out."""
    from maskformer.conversion.transformers_config import model_config

    labels = {str(i): str(i) for i in range(150)}
    tiny = model_config({"model_type": "mask2former", "backbone_config": {"model_type": "swin"}, "id2label": labels})
    assert tiny.backbone == "swin-tiny" and tiny.num_classes == 150
    assert (tiny.decoder_layers, tiny.encoder_layers, tiny.num_queries) == (9, 6, 100)
    base = model_config({"model_type": "maskformer", "id2label": labels})
    assert base.backbone == "swin-base" and base.backbone_options == {"drop_path": 0.3}
    assert (base.decoder_layers, base.mask_weight, base.dropout) == (6, 20.0, 0.1)
    large = model_config({"model_type": "eomt", "id2label": labels})
    assert large.backbone == "vit_large_patch14_reg4_dinov2" and large.decoder_layers == 4


def test_shards_and_pickled_weights_give_the_same_model(tmp_path: Path) -> None:
    theirs = MODELS["mask2former-swin"]()
    expected = convert.from_transformers(theirs).state_dict()
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    whole = tmp_path / "pickled"
    theirs.save_pretrained(whole)
    torch.save(load_file(whole / "model.safetensors"), whole / "pytorch_model.bin")
    (whole / "model.safetensors").unlink()
    for place in (tmp_path / "shards", whole):
        found = convert.from_transformers(place).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_half_precision_files_become_float32(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors")
    model = convert.from_transformers(folder)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_classes_channels_and_size_come_over(folder: Path) -> None:
    from transformers import Mask2FormerImageProcessor

    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.25], "ignore_index": 255}
    Mask2FormerImageProcessor(**settings, size={"shortest_edge": 640, "longest_edge": 2048}).save_pretrained(folder)
    account = convert.from_transformers(folder).conversion
    assert account.classes == tuple(published.NAMES.values())
    assert account.mean == pytest.approx((127.5, 102.0, 76.5))
    assert account.std == pytest.approx((51.0, 51.0, 63.75))
    assert account.facts.size == 640 and account.facts.ignore_index == 255
    assert account.things is None  # five classes: nothing says which are things


def test_thresholds_come_over_where_a_folder_states_them(folder: Path) -> None:
    stated = {"object_mask_threshold": 0.8, "overlap_mask_area_threshold": 0.75}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    assert convert.from_transformers(folder).conversion.thresholds == {"score": 0.8, "overlap": 0.75}


def test_coco_panoptic_is_80_things_and_53_stuff() -> None:
    from maskformer.conversion.transformers_facts import facts_of

    labels = {str(i): f"class {i}" for i in range(133)} | {"0": "person"}
    things = facts_of({"id2label": labels}, {}).things
    assert things == (True,) * 80 + (False,) * 53


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_an_unexpected_tensor_is_an_error(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"model.adapter.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"1 tensors of the checkpoint have no place here: model\.adapter\.weight"):
        convert.from_transformers(folder)


def test_a_layer_too_many_is_an_error(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2, num_blocks=1)
    with pytest.raises(ValueError, match=r"have no place here: .*layers\.2\."):
        convert.from_transformers(folder)


@pytest.mark.parametrize("name", ["layernorm.weight", "layers.0.attention.k_proj.bias"])
def test_a_missing_tensor_is_an_error(folder: Path, name: str) -> None:
    change_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match="1 tensors of the model are missing in the checkpoint"):
        convert.from_transformers(folder)


def test_another_shape_is_an_error(folder: Path) -> None:
    change_config(folder, num_queries=9)
    with pytest.raises(ValueError, match=r"1 tensors of another shape: query_decoder.query_embed.weight is \(7, 32\)"):
        convert.from_transformers(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "oneformer"}, "supported are maskformer, mask2former, eomt"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' cannot be converted"),
        ({"num_upscale_blocks": 3}, "do not end at stride 4"),
        ({"id2label": {"0": "a", "7": "b"}}, "id2label"),
        ({"model_type": "mask2former", "backbone_config": {"model_type": "dinat"}}, "supported are swin and resnet"),
    ],
)
def test_what_cannot_be_converted_is_named(folder: Path, changes: dict[str, object], complaint: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=complaint):
        convert.from_transformers(folder)


def test_damaged_folders_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read, or cut off"):
        convert.from_transformers(folder)
    weights.unlink()
    with pytest.raises(ValueError, match="no weights in it"):
        convert.from_transformers(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(ValueError, match="not a safetensors file of this folder"):
        convert.from_transformers(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read as JSON"):
        convert.from_transformers(folder)
    with pytest.raises(ValueError, match="no such folder"):
        convert.from_transformers(folder / "nothing")
    with pytest.raises(ValueError, match="no model of transformers"):
        convert.from_transformers(nn.Linear(1, 1))
