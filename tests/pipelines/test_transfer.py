"""A model carried to other channels and classes answers as before wherever nothing new is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.medical import ct
from adapters.remote_sensing import panchromatic, rgb_aerial, rgbn, sentinel2
from maskformer.model import freeze, param_groups
from pipelines.bundle import load_bundle, save_bundle
from pipelines.config import ModelOptions
from pipelines.starting import build
from pipelines.transfer import match_channels, match_classes, wavelength
from tests.models import tiny_bundle

HOUSES = ClassSet((Class("house"), Class("tree"), Class("car")))


@pytest.fixture(scope="module")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("rgb") / "bundle", rgb_aerial(HOUSES))


def carried(source: Path, adapter: DomainAdapter, **options):
    _, model = build(ModelOptions(init_from=str(source), **options), adapter)
    return model.eval()


@torch.no_grad()
def logits(model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    said = model(x)
    return said.class_logits, said.mask_logits


def pictures(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def same(a, b) -> None:
    for one, other in zip(a, b):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_near_infrared_at_its_mean_changes_nothing(rgb: Path) -> None:
    model = carried(rgb, rgbn(HOUSES))
    x = pictures()
    same(logits(model, torch.cat((x, torch.zeros(2, 1, 64, 64)), 1)), logits(load_bundle(rgb).build(), x))
    assert model.transferred.channels["nir"] == "as red, nearest in wavelength"
    assert set(model.transferred.channels) == {"red", "green", "blue", "nir"}
    stem = [name for name in model.transferred.tensors.mapped if "conv_stem" in name]
    assert len(stem) == 1 and not model.transferred.tensors.fresh


def test_channels_are_found_by_name_in_another_order(rgb: Path) -> None:
    turned = ChannelSet(tuple(rgb_aerial(HOUSES).channels)[::-1])
    model = carried(rgb, rgb_aerial(HOUSES).with_channels(turned))
    x = pictures()
    same(logits(model, x.flip(1)), logits(load_bundle(rgb).build(), x))


def test_three_to_one_to_three_channels_keep_a_grey_picture(rgb: Path, tmp_path: Path) -> None:
    grey = carried(rgb, panchromatic(HOUSES))
    x = pictures(1)
    before = logits(load_bundle(rgb).build(), x.expand(-1, 3, -1, -1))
    same(logits(grey, x), before)
    save_bundle(tmp_path / "grey", grey, panchromatic(HOUSES))
    back = carried(tmp_path / "grey", rgb_aerial(HOUSES))
    same(logits(back, x.expand(-1, 3, -1, -1)), before)


def test_the_same_classes_in_another_order_have_the_same_scores(rgb: Path) -> None:
    model = carried(rgb, rgb_aerial(ClassSet((Class("car"), Class("house"), Class("tree")))))
    x = pictures()
    old, new = logits(load_bundle(rgb).build(), x)[0].softmax(-1), logits(model, x)[0].softmax(-1)
    torch.testing.assert_close(new, old[..., [2, 0, 1, 3]], atol=1e-6, rtol=1e-5)


def test_a_fresh_class_leaves_the_others_their_scores(rgb: Path) -> None:
    model = carried(rgb, rgb_aerial(ClassSet((*HOUSES, Class("boat")))))
    x = pictures()
    old, new = logits(load_bundle(rgb).build(), x)[0].softmax(-1), logits(model, x)[0].softmax(-1)
    torch.testing.assert_close(new[..., [0, 1, 2, 4]], old, atol=1e-3, rtol=0)
    assert model.transferred.classes["boat"] == "fresh"


def test_merged_and_split_classes_are_mapped_as_declared(rgb: Path) -> None:
    wanted = ClassSet((Class("thing"), Class("oak"), Class("pine")))
    table, words = match_classes(HOUSES, wanted, {"thing": ["house", "car"], "oak": ["tree"], "pine": ["tree"]})
    assert table.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0, 1, 0]]
    assert words == {"thing": "made of house, car", "oak": "made of tree", "pine": "made of tree"}
    model = carried(rgb, rgb_aerial(wanted), class_map={"thing": ("house", "car"), "oak": ("tree",), "pine": ("tree",)})
    said = logits(model, pictures())[0]
    torch.testing.assert_close(said[..., 1], said[..., 2])
    with pytest.raises(InputError, match="no class 'tee'; did you mean 'tree'"):
        match_classes(HOUSES, wanted, {"oak": ["tee"]})
    assert match_classes(HOUSES, ClassSet((Class("house"),)), {})[1] == {
        "house": "kept",
        "(tree)": "unused",
        "(car)": "unused",
    }


def test_query_counts_change_freely(rgb: Path) -> None:
    assert logits(carried(rgb, rgb_aerial(HOUSES), overrides={"num_queries": 5}), pictures())[0].shape[1] == 5
    more = carried(rgb, rgb_aerial(HOUSES), overrides={"num_queries": 20})
    assert logits(more, pictures())[0].shape[1] == 20


def test_satellite_to_ct_with_context_slices(rgb: Path) -> None:
    scanner = ct(ClassSet((Class("tumour"),)), context_slices=1)
    model = carried(rgb, scanner)
    slices = len(scanner.channels) * 3
    assert logits(model, pictures(slices))[0].shape[-1] == 2
    account = model.transferred
    assert account.channels["(slices)"] == "1 slices became 3" and account.classes["tumour"] == "fresh"
    kept, total = len(account.tensors.kept), len(model.state_dict())
    assert kept > 0.95 * total
    x = pictures(slices)
    quiet = x.clone()
    outer = [*range(len(scanner.channels)), *range(2 * len(scanner.channels), slices)]
    quiet[:, outer] = 0
    same(logits(model, x), logits(model, quiet))  # new slices say nothing yet


def test_dropped_slices_are_folded_into_the_outermost(rgb: Path, tmp_path: Path) -> None:
    """Where neighbouring slices show the same, three slices of five answer as the five did."""
    organs = ClassSet((Class("tumour"),))
    wide = carried(rgb, ct(organs, context_slices=2))
    with torch.no_grad():
        for weight in (p for name, p in wide.named_parameters() if "conv_stem" in name):
            weight.normal_()  # so that every slice says something
    deep = save_bundle(tmp_path / "deep", wide, ct(organs, context_slices=2))
    model = carried(deep, ct(organs, context_slices=1))
    count = len(ct(organs).channels)
    x = torch.randn(1, 3 * count, 64, 64, generator=torch.Generator().manual_seed(0))
    low, middle, high = x.split(count, 1)
    same(logits(model, x), logits(load_bundle(deep).build(), torch.cat((low, low, middle, high, high), 1)))
    assert model.transferred.channels["(slices)"] == "5 slices became 3"


def test_wavelengths_match_sensors_of_other_names() -> None:
    old, new = rgbn(HOUSES), sentinel2(HOUSES, bands=("B02", "B03", "B04", "B08", "B11"))
    table, words = match_channels(old, new)
    assert [wavelength(c) for c in new.channels] == [490, 560, 665, 842, 1610]
    assert table[:4].argmax(1).tolist() == [2, 1, 0, 3] and torch.equal(table[:4].sum(0), torch.ones(4))
    assert words["B02"] == "made of what was folded into it" and words["(blue)"] == "folded into B02"
    assert words["B11"] == "the mean of all channels", "1610 nm is near none of them"


def test_another_architecture_is_refused_and_settings_are_checked(rgb: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out `preset`"):
        ModelOptions(init_from="x", preset="maskformer-resnet50")
    with pytest.raises(ValueError, match="goes with `init_from`"):
        ModelOptions(class_map={"a": ("b",)})
    with pytest.raises(InputError):
        carried(tmp_path / "nothing", rgb_aerial(HOUSES))


def test_frozen_parts_do_not_learn_and_stages_learn_by_their_depth(rgb: Path) -> None:
    model = carried(rgb, rgb_aerial(HOUSES)).train()
    rates = [group["lr"] for group in param_groups(model, 1.0, 0.5, 0.0, layer_decay=0.5)]
    assert max(rates) == 1.0 and min(rates) == pytest.approx(0.5 * 0.5**7), "seven stages behind the stem"
    freeze(model, ["backbone"])
    left = {id(p) for group in param_groups(model, 1.0) for p in group["params"]}
    assert not left & {id(p) for p in model.backbone.parameters()}
    assert not any(module.training for module in model.backbone.modules())
    with pytest.raises(ValueError, match="no decoder"):
        freeze(model, ["decoder"])


def affine(norm: torch.nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope and the offset of a batch norm that is not trained."""
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    return slope, norm.bias - slope * norm.running_mean


def test_training_from_a_model_prints_and_stores_the_account(
    tmp_path: Path, make_geotiff, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import cli

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MASKBRIDGE_SPOOL", str(tmp_path / "spool"))
    random = np.random.default_rng(0)
    source = tiny_bundle(tmp_path / "old", DomainAdapter("one", ChannelSet((Channel("grey", (1,)),)), HOUSES))
    for number in range(3):
        labels = np.zeros((64, 96), np.uint8)
        labels[10:30, 10:30], labels[40:60, 50:80] = 1, 2
        bands = np.stack([labels * 50.0, random.random((64, 96))]).astype(np.float32)
        make_geotiff(bands, name=f"s{number}.tif", descriptions=("grey", "height"))
        make_geotiff(labels, name=f"l{number}.tif")
    adapter = DomainAdapter(
        "two",
        ChannelSet((Channel("grey", (1,)), Channel("height", (2,)))),
        ClassSet((Class("house", values=(1,)), Class("shed", values=(2,)))),
        tile=64,
        tile_overlap=16,
    )
    config = {
        "adapter": adapter.to_dict(),
        "data": [{"source": f"s{n}.tif", "labels": f"l{n}.tif"} for n in range(3)],
        "train": {"steps": 2, "batch": 2, "crop": 64, "workers": 0, "freeze": ["backbone"]},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    words = ["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"), "--from", str(source)]
    assert cli.run(words) == 0
    said = capsys.readouterr().err
    assert "channel grey: kept" in said and "channel height: the mean of all channels" in said
    assert "class house: kept" in said and "class shed: fresh" in said
    held = load_bundle(tmp_path / "out" / "bundle").provenance["transfer"]
    assert_mlflow_has(uri, held, tmp_path)
    assert held["classes"]["(tree)"] == "unused" and held["kept"] > 100 and str(tmp_path) not in json.dumps(held)
    old, new = load_bundle(source).build().backbone, load_bundle(tmp_path / "out" / "bundle").build().backbone
    norms = {name for name, module in old.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    # Frozen norms take the new data's statistics, and still compute what they did.
    for norm in norms:
        for before, after in zip(*(affine(model.get_submodule(norm)) for model in (old, new)), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    before, after = old.state_dict(), new.state_dict()
    others = [name for name in before if name.rsplit(".", 1)[0] not in norms and "conv_stem" not in name]
    assert norms and others and all(torch.equal(before[name], after[name]) for name in others)


def assert_mlflow_has(uri: str, account: dict, tmp_path: Path) -> None:
    """The training's run holds the whole account as a file, its counts, and what it came from."""
    from pipelines.tracking_store import connect

    client = connect(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("maskbridge").experiment_id])
    got = tmp_path / "got"
    got.mkdir()
    stored = json.loads(Path(client.download_artifacts(run.info.run_id, "transfer.json", str(got))).read_text())
    assert stored == account and {"kept", "mapped", "fresh", "unused", "channels", "classes"} <= set(stored)
    counts = {kind: stored[kind] if kind == "kept" else len(stored[kind]) for kind in ("kept", "mapped", "fresh")}
    assert {kind: run.data.metrics[f"transfer.{kind}"] for kind in counts} == counts
    assert run.data.metrics["transfer.unused"] == len(stored["unused"])
    assert run.data.tags["transfer.from"] == account["from"]
    assert stored["mapped"] and stored["kept"] > 100
