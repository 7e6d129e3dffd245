"""Published class lists, and adapters of photos."""

import numpy as np
import pytest
from PIL import Image

from adapters.base import DomainAdapter
from adapters.class_lists import CLASS_MAPS, class_map
from adapters.errors import InputError
from adapters.imagery import ade20k, cityscapes, coco_instances, coco_panoptic, pictures, voc
from pipelines.sources import open_for

COUNTS = {
    "ade20k": (150, 100),
    "cityscapes": (19, 8),
    "coco-instances": (80, 80),
    "coco-panoptic": (133, 80),
    "voc": (20, 20),
}
ADAPTERS = [ade20k(), cityscapes(), coco_instances(), coco_panoptic(), voc()]


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_a_published_list_has_as_many_classes_as_its_paper_says(name: str) -> None:
    found = class_map(name)
    assert (len(found), sum(found.is_thing)) == COUNTS[name]


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("coco-panoptic", 90, "toothbrush"),
        ("coco-panoptic", 200, "rug-merged"),
        ("coco-instances", 13, "stop sign"),
        ("cityscapes", 33, "bicycle"),
        ("cityscapes", 7, "road"),
        ("ade20k", 1, "wall"),
        ("ade20k", 150, "flag"),
        ("voc", 20, "tvmonitor"),
    ],
)
def test_values_are_those_of_the_label_files(name: str, value: int, wanted: str) -> None:
    assert class_map(name).names[class_map(name).index(value)] == wanted


def test_an_unknown_list_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'cityscapes'"):
        class_map("citiscapes")


@pytest.mark.parametrize(
    "adapter", [ade20k(), cityscapes(), coco_instances(), coco_panoptic(), voc()], ids=lambda a: a.name
)
def test_an_adapter_survives_json_and_may_name_its_list(adapter: DomainAdapter) -> None:
    held = adapter.to_dict()
    assert DomainAdapter.from_dict(held) == adapter
    assert adapter.name in CLASS_MAPS
    assert DomainAdapter.from_dict({**held, "classes": adapter.name}) == adapter


def test_photos_are_seen_upright_and_in_colour(tmp_path) -> None:
    lying = np.zeros((8, 16), np.uint8)
    lying[0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it
    Image.fromarray(lying).save(tmp_path / "phone.png", exif=exif)
    with open_for(tmp_path / "phone.png", pictures(class_map("voc"))) as source:
        values, valid = source.read()
    assert values.shape == (3, 16, 8) and valid.all()
    assert (values[:, :, -1] == 200).all() and (values[:, :, :-1] == 0).all()
