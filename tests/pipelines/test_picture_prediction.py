"""Photos in, COCO results out: what a run leaves, and that it can be read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from adapters.base import DomainAdapter
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.imagery import pictures
from maskformer.masks import MaskSet
from pipelines import cli
from pipelines.annotations import read_annotations
from pipelines.config import PredictOptions
from pipelines.picture_prediction import predict_pictures
from pipelines.sinks.pictures import category_id, overlay, panoptic_colours, results
from pipelines.sources import open_for
from tests.models import tiny_bundle

CLASSES = ClassSet((Class("road", "stuff", (7,)), Class("car", "thing", (26,)), Class("tree", "stuff", (21,))))
OPTIONS = PredictOptions(score=0.0, min_area=1, device="cpu", precision="fp32", task="semantic")


def adapter() -> DomainAdapter:
    return pictures(CLASSES, tile=64, tile_overlap=16, overlap="exclusive", covers=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", adapter())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for number, shape in ((7, (80, 100)), (12, (40, 60))):
        values = np.random.default_rng(number).integers(0, 255, (*shape, 3)).astype(np.uint8)
        Image.fromarray(values).save(place / f"{number:06d}.png")
    (place / "broken.jpg").write_bytes(b"no picture")
    return place


def test_a_folder_becomes_coco_panoptic_as_our_reader_reads_it(bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = predict_pictures(bundle, folder, out, OPTIONS)
    assert run.fresh == 2 and list(run.failed) == ["broken.jpg"]
    held = json.loads((out / "panoptic.json").read_text())
    assert [one["id"] for one in held["images"]] == [7, 12]
    assert {c["name"]: c["id"] for c in held["categories"]} == {"road": 7, "car": 26, "tree": 21}
    instances = json.loads((out / "instances.json").read_text())
    assert len(instances) == sum(record["objects"] for record in run.records) > 0
    for record in run.records:
        listed = json.loads((out / record["folder"] / "objects.json").read_text())
        with open_for(folder / record["image"], adapter()) as source:
            back = read_annotations(out / "panoptic.json", source, adapter())
        masks = [coco_mask.decode(one["segmentation"]).astype(bool) for one in listed]
        labels = [[7, 26, 21].index(one["category_id"]) for one in listed]
        assert MaskSet.from_dense(np.array(masks), labels).same_set(back.objects)
        semantic = Image.open(out / record["folder"] / "semantic.png")
        assert semantic.size == (record["shape"][1], record["shape"][0]) and set(np.unique(semantic)) <= {0, 1, 2, 3}
        assert (out / record["folder"] / "overlay.jpg").stat().st_size > 500


def test_a_second_run_does_only_what_is_new(bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_pictures(bundle, folder, out, OPTIONS)
    before = (out / "panoptic.json").read_bytes()
    again = predict_pictures(bundle, folder, out, OPTIONS)
    assert again.fresh == 0 and (out / "panoptic.json").read_bytes() == before
    with pytest.raises(InputError, match="other options"):
        predict_pictures(bundle, folder, out, OPTIONS.model_copy(update={"score": 0.9}))


def two() -> MaskSet:
    masks = np.zeros((2, 300, 40), bool)
    masks[0, 10:290, 5:20], masks[1, 0:2, 30:40] = True, True
    return MaskSet.from_dense(masks, [1, 0], [0.75, 0.5])


def test_results_are_cocos() -> None:
    first, second = results(two(), CLASSES)
    assert (first["category_id"], first["bbox"], first["area"], first["score"]) == (26, [5, 10, 15, 280], 4200, 0.75)
    assert second["bbox"] == [30, 0, 10, 2]
    assert coco_mask.area(first["segmentation"]) == 4200


def test_classes_without_numbers_are_counted_from_1() -> None:
    named = ClassSet((Class("a"), Class("b", "thing", (5,))))
    assert [category_id(named, i) for i in range(2)] == [1, 2]


def test_panoptic_colours_count_beyond_a_byte() -> None:
    line = np.arange(1, 1001).reshape(1, 1000)
    many = MaskSet.from_label_map(line, dict.fromkeys(range(1, 1001), 0))
    colours = panoptic_colours(many).astype(int)
    assert (colours @ [1, 256, 65536] == line).all()


@pytest.mark.parametrize("scale", [1, 3])
def test_an_overlay_tints_classes_and_outlines_objects(scale: int) -> None:
    ids = np.zeros((300, 40), np.uint8)
    ids[10:290, 5:20] = 2
    picture = np.full((-(-300 // scale), -(-40 // scale), 3), 100, np.uint8)
    drawn = overlay(picture, scale, two(), ids, CLASSES)
    assert (drawn[150 // scale, 12 // scale] != 100).any() and (drawn[150 // scale, 30 // scale] == 100).all()
    assert (drawn[150 // scale] == 255).all(axis=1).sum() == 2, "left and right edge of the tall object"


def test_the_command_predicts_a_folder_of_photos(bundle: Path, folder: Path, tmp_path: Path, capsys) -> None:
    given = ["--task", "semantic", "--score", "0", "--device", "cpu"]
    assert cli.run(["predict", str(bundle), str(folder), "--out", str(tmp_path / "out"), *given]) == 3
    said = capsys.readouterr()
    assert "broken.jpg" in said.err and "in 2 pictures" in said.err
    assert (tmp_path / "out" / "panoptic.json").exists()
    assert cli.run(["predict", str(bundle), str(folder), "--out", str(tmp_path / "o"), "--stac"]) == 2
    assert "only for scenes" in capsys.readouterr().err
