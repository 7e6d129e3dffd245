"""`maskbridge convert`: a checkpoint becomes a bundle that predict takes, or one line says why not."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.errors import InputError
from pipelines import cli
from pipelines.bundle import load_bundle
from pipelines.converting import adapter_of, thing_flags
from tests.maskformer import published

CLASSES = list(published.NAMES.values())


def write_folder(folder: Path, family: str) -> Path:
    """A small random model as transformers saves it, processor included."""
    from transformers import Mask2FormerImageProcessor

    build = published.mask2former if family == "mask2former" else published.maskformer
    build(published.swin()).save_pretrained(folder)
    processor = Mask2FormerImageProcessor(
        image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.25], size={"height": 100, "width": 100}, ignore_index=255
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("published") / "mask2former", "mask2former")


@pytest.mark.parametrize("family", ["maskformer", "mask2former"])
def test_a_converted_folder_predicts_a_scene(
    family: str, tmp_path: Path, make_geotiff: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from affine import Affine

    source, bundle = write_folder(tmp_path / family, family), tmp_path / "bundle"
    assert cli.run(["convert", str(source), "--out", str(bundle), "--things", "tree,house,car"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(bundle)
    assert "tensors loaded" in shown.err and "a constant of the loss: criterion.empty_weight" in shown.err

    picture = np.random.default_rng(0).integers(0, 255, (3, 150, 170), dtype=np.uint8)
    scene = make_geotiff(picture, crs="EPSG:32617", transform=Affine(0.5, 0, 500000, 0, -0.5, 4000000))
    words = ["predict", str(bundle), str(scene), "--out", str(tmp_path / "out"), "--score", "0.1", "--device", "cpu"]
    assert cli.run(words) == 0, capsys.readouterr().err
    run = json.loads((tmp_path / "out" / "scene" / "run.json").read_text())
    assert run["parameters"]["task"] == "panoptic" and run["parameters"]["tile"] == 128
    assert (tmp_path / "out" / "scene" / "semantic.tif").is_file()


def test_the_bundle_computes_what_the_checkpoint_computes(folder: Path, tmp_path: Path) -> None:
    """From 8-bit pixels to logits: the adapter's scaling is the processor's."""
    from transformers import Mask2FormerForUniversalSegmentation

    assert cli.run(["convert", str(folder), "--out", str(tmp_path / "bundle")]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 96, 128), dtype=np.uint8)
    scaled = bundle.adapter.inputs(pixels, np.ones((96, 128), bool))
    by_hand = (pixels / 255 - np.array([0.5, 0.4, 0.3])[:, None, None]) / np.array([0.2, 0.2, 0.25])[:, None, None]
    np.testing.assert_allclose(scaled, by_hand, atol=1e-5)
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(pixel_values=torch.from_numpy(by_hand[None]).float())
        found = bundle.build()(torch.from_numpy(scaled[None]))
    torch.testing.assert_close(found.class_logits, expected.class_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)


def test_what_the_checkpoint_knows_is_in_the_bundle(folder: Path, tmp_path: Path) -> None:
    assert cli.run(["convert", str(folder), "--out", str(tmp_path / "bundle"), "--things", "2"]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.adapter.classes.names == tuple(CLASSES)
    assert bundle.adapter.classes.is_thing == (True, True, False, False, False)
    assert bundle.adapter.classes.ignore_values == (255,)
    assert (bundle.adapter.tile, bundle.adapter.overlap) == (128, "exclusive")
    assert bundle.provenance["converted_from"] == "mask2former (transformers)"
    assert bundle.provenance["conversion"]["loaded"] > 100
    assert str(tmp_path) not in (tmp_path / "bundle" / "bundle.json").read_text()


def test_thresholds_of_the_checkpoint_are_the_bundles(tmp_path: Path) -> None:
    published.eomt(64).save_pretrained(tmp_path / "eomt")
    (tmp_path / "eomt" / "preprocessor_config.json").write_text('{"object_mask_threshold": 0.8}')
    assert cli.run(["convert", str(tmp_path / "eomt"), "--out", str(tmp_path / "bundle")]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.thresholds == {"score": 0.8}
    assert all(bundle.adapter.classes.is_thing) and bundle.adapter.overlap == "free"
    assert bundle.adapter.tile == 64  # EoMT's own size
    assert [channel.offset for channel in bundle.adapter.channels] == [123.675, 116.28, 103.53]  # it states none


def test_a_detectron2_file_becomes_a_bundle(tmp_path: Path) -> None:
    weights = published.to_detectron2(published.maskformer(published.resnet()))
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {name: tensor.numpy() for name, tensor in weights.items()}}))
    words = ["convert", str(path), "--out", str(tmp_path / "bundle")]
    assert cli.run(words) == 0
    assert load_bundle(tmp_path / "bundle").adapter.classes.names == tuple(f"class {n}" for n in range(1, 6))
    assert cli.run([*words, "--classes", "a, b,c,d,e", "--things", "none"]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.adapter.classes.names == tuple("abcde") and not any(bundle.adapter.classes.is_thing)
    assert bundle.provenance["conversion"]["adapted"] == {}


def test_other_classes_start_fresh_and_say_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["convert", str(folder), "--out", str(tmp_path / "bundle"), "--classes", "car,bridge"]) == 0
    assert '"no object" and 1 classes kept by name (car), 1 fresh' in capsys.readouterr().err
    assert load_bundle(tmp_path / "bundle").adapter.classes.names == ("car", "bridge")


def spoil(folder: Path, kind: str, tmp_path: Path) -> Path:
    """A checkpoint with one thing wrong."""
    place = tmp_path / "spoiled"
    if kind == "nothing there":
        return place
    place.mkdir()
    if kind == "hostile":
        path = place / "model.pkl"
        path.write_bytes(pickle.dumps({"model": {"a": Evil(tmp_path / "was_here")}}))
        return path
    if kind == "a picture":
        path = place / "scene.tif"
        path.write_bytes(b"II*\0")
        return path
    if kind == "an empty folder":
        return place
    for name in ("config.json", "model.safetensors"):
        (place / name).write_bytes((folder / name).read_bytes())
    if kind == "cut off":
        (place / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    if kind == "another model":
        (place / "config.json").write_text('{"model_type": "segformer"}')
    if kind == "one file of a folder":
        return place / "model.safetensors"
    return place


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("nothing there", "no such file or folder"),
        ("a picture", "not a checkpoint"),
        ("an empty folder", "no config.json in it"),
        ("one file of a folder", "give the folder"),
        ("hostile", "refused: it asks for"),
        ("cut off", "cannot be read, or cut off"),
        ("another model", "supported are maskformer, mask2former, eomt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    kind: str, complaint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = spoil(folder, kind, tmp_path)
    assert cli.run(["convert", str(checkpoint), "--out", str(tmp_path / "bundle")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert complaint in shown.err and str(checkpoint) in shown.err
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "was_here").exists()


def test_a_folder_that_is_no_bundle_is_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.run(["convert", str(folder), "--out", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_things_are_named_counted_or_all_or_none() -> None:
    names = ["road", "Tree", "car"]
    assert thing_flags("all", names) == (True, True, True)
    assert thing_flags("none", names) == (False, False, False)
    assert thing_flags("1", names) == (True, False, False)
    assert thing_flags("car, tree", names) == (False, True, True)
    with pytest.raises(InputError, match="no class 'trees'; did you mean 'Tree'"):
        thing_flags("trees", names)
    with pytest.raises(InputError, match="there are 3 classes"):
        thing_flags("4", names)


def test_adapters_of_odd_checkpoints() -> None:
    from maskformer.config import ModelConfig
    from maskformer.conversion.account import Facts

    twice = adapter_of("ade", ModelConfig(num_classes=3), Facts(classes=("screen", "Screen", "255"), ignore_index=255))
    assert twice.classes.names == ("screen", "Screen (2)", "255") and twice.classes.ignore_values == ()
    four = Facts(mean=(1.0, 2.0, 3.0, 4.0), std=(1.0,) * 4)
    bands = adapter_of("bands", ModelConfig(num_classes=1, in_channels=4), four).channels
    assert bands.names == ("band 1", "band 2", "band 3", "band 4") and bands[3].offset == 4.0
    with pytest.raises(InputError, match="takes 4 channels and does not say their mean"):
        adapter_of("bands", ModelConfig(num_classes=1, in_channels=4), Facts())
    panoptic = adapter_of("coco", ModelConfig(num_classes=2), Facts(things=(True, False)))
    assert panoptic.classes.is_thing == (True, False) and panoptic.overlap == "exclusive"


def test_things_whose_names_hold_commas() -> None:
    names = ("wall", "windowpane, window", "sky", "window")
    assert thing_flags("windowpane, window", names) == (False, True, False, False)
    assert thing_flags("wall, windowpane, window,sky", names) == (True, True, True, False)
    assert thing_flags("window,wall", names) == (True, False, False, True)
    with pytest.raises(InputError, match="expected names of classes"):
        thing_flags("", names)
    with pytest.raises(InputError, match="no class 'windowpane'"):
        thing_flags("windowpane", names)
