"""Label formats of published picture sets, each generated in its layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from adapters.base import DomainAdapter
from adapters.errors import InputError
from adapters.imagery import cityscapes, coco_instances, coco_panoptic, voc
from pipelines.annotations import read_annotations
from pipelines.annotations.base import Annotations
from pipelines.sources import open_for
from tests import picture_sets
from tests.picture_sets import SIZE, photo

EVERYTHING = (slice(0, SIZE[0]), slice(0, SIZE[1]))


def read(labels: Path, picture: Path, adapter: DomainAdapter) -> Annotations:
    with open_for(picture, adapter) as source:
        return read_annotations(labels, source, adapter)


def areas(found: Annotations, adapter: DomainAdapter) -> list[tuple[str, int]]:
    objects = found.objects
    return sorted((adapter.classes.names[c], int(a)) for c, a in zip(objects.labels, objects.areas))


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    picture_sets.cityscapes(root)
    picture_sets.coco_panoptic(root)
    return root


CITY = [("car", 150), ("person", 80), ("person", 80), ("road", 20 * 64 - 150 - 2 * 6 * 4)]


@pytest.mark.parametrize("kind", ["instanceIds.png", "polygons.json"])
def test_cityscapes_by_ids_and_by_polygons_is_the_same(town: Path, kind: str) -> None:
    name = "frankfurt_000000_000019"
    found = read(
        town / "cityscapes/gtFine/val/frankfurt" / f"{name}_gtFine_{kind}",
        town / "cityscapes/leftImg8bit/val/frankfurt" / f"{name}_leftImg8bit.png",
        cityscapes(),
    )
    assert areas(found, cityscapes()) == CITY
    ignored = found.read(EVERYTHING).ignore
    assert ignored is not None and ignored[44:].all() and ignored[5:10, 50:60].all(), "ego vehicle and group of cars"
    assert ignored[0, 0], "unlabelled ground says nothing"
    assert ignored.sum() == 4 * 64 + 50 + (24 * 64 - 2 * 14 * 4 - 50)


def test_coco_panoptic_numbers_its_segments_by_colour(town: Path) -> None:
    labels = town / "coco/annotations/panoptic_val2017.json"
    found = read(labels, town / "coco/val2017/000000000002.jpg", coco_panoptic())
    assert areas(found, coco_panoptic()) == [("person", 160), ("person", 200), ("sky-other-merged", 1280)]
    ignored = found.read(EVERYTHING).ignore
    assert ignored is not None and ignored[20:40, 40:].all(), "the crowd"
    assert ignored[40:].all(), "void"
    assert found.report["crowds"] == 1


def test_coco_panoptic_errors_name_what_is_wrong(town: Path, tmp_path: Path) -> None:
    labels = town / "coco/annotations/panoptic_val2017.json"
    with pytest.raises(InputError, match=r"no labels of stranger.jpg"):
        read(labels, photo(tmp_path / "stranger.jpg"), coco_panoptic())
    held = json.loads(labels.read_text())
    held["annotations"][0]["segments_info"].pop(1)
    damaged = tmp_path / "panoptic_val2017.json"
    damaged.write_text(json.dumps(held))
    (tmp_path / "panoptic_val2017").symlink_to(labels.with_suffix(""))
    with pytest.raises(InputError, match="segments 70000 are not listed"):
        read(damaged, town / "coco/val2017/000000000001.jpg", coco_panoptic())
    del held["annotations"][0]["file_name"]
    damaged.write_text(json.dumps(held))
    with pytest.raises(InputError, match="not laid out as COCO panoptic"):
        read(damaged, town / "coco/val2017/000000000001.jpg", coco_panoptic())


def test_a_window_of_a_numbered_picture_is_a_window_of_its_objects(town: Path) -> None:
    labels, adapter = town / "coco/annotations/panoptic_val2017.json", coco_panoptic()
    window = (slice(15, 30), slice(5, 50))
    with open_for(town / "coco/val2017/000000000001.jpg", adapter) as source:
        whole = read_annotations(labels, source, adapter)
        part = read_annotations(labels, source.view(window), adapter)
    assert part.objects.same_set(whole.objects.crop(window))


def test_voc_objects_get_their_class_from_the_other_picture(tmp_path: Path) -> None:
    picture = picture_sets.voc(tmp_path)
    labels = tmp_path / "SegmentationObject" / "2007_000032.png"
    found = read(labels, picture, voc())
    assert areas(found, voc()) == [("dog", 150), ("person", 150), ("person", 150)]
    ignored = found.read(EVERYTHING).ignore
    assert ignored is not None and ignored.sum() == 15, "the border, and not the background"


def coco_instances_file(path: Path, annotations: list[dict]) -> Path:
    classes = [{"id": int(c.values[0]), "name": c.name} for c in coco_instances().classes]
    images = [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": classes}))
    return path


def test_run_lengths_and_crowds_of_coco(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    speckled, crowd = random.random(SIZE) > 0.7, np.zeros(SIZE, bool)
    crowd[30:, 30:] = True
    packed = coco_mask.encode(np.asfortranarray(speckled.astype(np.uint8)))
    flat = np.concatenate([[False], crowd.T.ravel(), [False]])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), crowd.size)
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    annotations = [
        {"image_id": 1, "category_id": 18, "segmentation": {"size": SIZE, "counts": packed["counts"].decode()}},
        {"image_id": 1, "category_id": 1, "segmentation": {"size": SIZE, "counts": counts}, "iscrowd": 1},
    ]
    found = read(coco_instances_file(tmp_path / "i.json", annotations), photo(tmp_path / "a.jpg"), coco_instances())
    assert [coco_instances().classes.names[c] for c in found.objects.labels] == ["dog"]
    assert (found.objects.to_dense()[0] == speckled).all()
    ignored = found.read(EVERYTHING).ignore
    assert ignored is not None and (ignored == crowd).all()


@pytest.mark.parametrize("counts", ["zz", [5, 5], "\x7f", -3])
def test_broken_run_lengths_are_one_line(tmp_path: Path, counts) -> None:
    annotations = [{"image_id": 1, "category_id": 18, "segmentation": {"size": SIZE, "counts": counts}}]
    with pytest.raises(InputError, match="annotation 1"):
        read(coco_instances_file(tmp_path / "i.json", annotations), photo(tmp_path / "a.jpg"), coco_instances())
