"""Crops of small GeoTIFFs, and of a real scene with real labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.remote_sensing import rgb_aerial
from maskformer.masks import MaskSet
from pipelines.annotations import LabelOptions, read_annotations
from pipelines.annotations.base import Annotations, Region
from pipelines.datasets import CropDataset, Part, Sampling
from pipelines.sources import open_source

EVERYTHING = Sampling(min_visible=0, min_pixels=1)  # no object is too small
ALL = ("flip", "rotate", "scale", "colour", "noise")


def labelled(objects: MaskSet, ignore: np.ndarray | None = None) -> Annotations:
    return Annotations(objects, None if ignore is None else Region.of(ignore))


def adapter(bands: int = 1, kinds: Sequence[str] = ("thing", "thing")) -> DomainAdapter:
    channels = ChannelSet(tuple(Channel(f"b{i}", (i + 1,), 0.0, 1.0) for i in range(bands)))
    classes = ClassSet(tuple(Class(f"class{i}", kind) for i, kind in enumerate(kinds)))
    return DomainAdapter("test", channels, classes)


def objects(masks: np.ndarray, labels: Sequence[int] | None = None) -> MaskSet:
    return MaskSet.from_dense(masks, [0] * len(masks) if labels is None else labels)


def blank(*shape: int) -> MaskSet:
    return MaskSet.empty(shape)


def box(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


@pytest.fixture
def numbered(make_geotiff: Callable[..., Path]) -> Path:
    """96 × 128 px: each pixel holds its own number, from 1."""
    return make_geotiff(np.arange(1, 96 * 128 + 1, dtype=np.float32).reshape(96, 128), "numbered.tif")


def places(image: torch.Tensor, valid: torch.Tensor, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, in the scene, of a crop's pixels."""
    numbers = image[0][valid].numpy().astype(np.int64) - 1
    return np.divmod(numbers, width)


def test_crops_show_the_scene_with_its_labels(numbered: Path) -> None:
    """Whatever is flipped and turned, each label pixel stays on its own image pixel. Overlaps survive."""
    masks = np.stack([box((96, 128), slice(10, 50), slice(20, 70)), box((96, 128), slice(30, 90), slice(50, 110))])
    ignore = box((96, 128), slice(60, 70), slice(0, 128))
    part = Part(numbered, labelled(objects(masks, [0, 1]), ignore))
    dataset = CropDataset([part], adapter(), 32, ("flip", "rotate"), sampling=EVERYTHING)
    overlapping = 0
    for index in range(60):
        image, target = dataset[index]
        assert image.shape == (1, 32, 32) and image.dtype == torch.float32
        rows, columns = places(image, torch.ones(32, 32, dtype=torch.bool))
        assert np.array_equal(target.valid.flatten().numpy(), ~ignore[rows, columns])
        for label, mask in zip(target.labels.tolist(), target.masks):
            assert np.array_equal(mask.flatten().numpy(), masks[label][rows, columns])
        overlapping += bool(len(target.masks) == 2 and target.masks.all(0).any())
    assert overlapping > 5


@given(st.integers(0, 10_000), st.integers(0, 95), st.integers(1, 96), st.integers(0, 127), st.integers(1, 128))
def test_no_pixel_from_outside_the_part(
    shared_scene: Path, seed: int, top: int, high: int, left: int, wide: int
) -> None:
    window = (slice(top, min(top + high, 96)), slice(left, min(left + wide, 128)))
    labels = labelled(objects(np.ones((1, 96, 128), bool)))  # one object that spans far beyond the part
    dataset = CropDataset([Part(shared_scene, labels, window)], adapter(), 32, ("flip",), seed, EVERYTHING)
    image, target = dataset[seed]
    rows, columns = places(image, target.valid)
    assert len(rows) == min(window[0].stop - top, 32) * min(window[1].stop - left, 32)
    assert rows.min() >= top and rows.max() < window[0].stop
    assert columns.min() >= left and columns.max() < window[1].stop
    assert (image[0][~target.valid] == 0).all() and not (target.masks & ~target.valid).any()


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import rasterio

    path = tmp_path_factory.mktemp("scene") / "numbered.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 96, "width": 128, "dtype": "float32"}
    with rasterio.open(path, "w", **profile, transform=rasterio.Affine(2, 0, 5, 0, -2, 9)) as sink:
        sink.write(np.arange(1, 96 * 128 + 1, dtype=np.float32).reshape(1, 96, 128))
    return path


def test_a_sample_depends_on_seed_and_index_alone(numbered: Path) -> None:
    labels = labelled(objects(box((96, 128), slice(10, 50), slice(20, 70))[None]))

    def make(seed: int) -> CropDataset:
        return CropDataset([Part(numbered, labels)], adapter(), 32, ALL, seed)

    first, again, other = make(0), make(0), make(1)
    state = torch.get_rng_state()
    forward = [first[index] for index in range(8)]
    backward = [again[index] for index in reversed(range(8))][::-1]
    assert torch.equal(torch.get_rng_state(), state)  # dropout in the same process is left alone
    for (image, target), (same, same_target) in zip(forward, backward):
        assert torch.equal(image, same)
        assert all(torch.equal(*pair) for pair in zip(target, same_target))
    assert not any(torch.equal(forward[index][0], other[index][0]) for index in range(8))
    assert not torch.equal(forward[0][0], forward[1][0])


def test_missing_pixels_are_never_seen_or_scored(make_geotiff: Callable[..., Path]) -> None:
    values = np.full((2, 96, 96), 5.0, np.float32)
    values[:, 40:, :] = -9999.0
    path = make_geotiff(values, nodata=-9999.0)
    labels = labelled(objects(np.ones((1, 96, 96), bool)))
    dataset = CropDataset([Part(path, labels)], adapter(2), 32, ("flip", "rotate", "scale"))
    shares = []
    for index in range(40):
        image, target = dataset[index]
        assert (image[:, ~target.valid] == 0).all()
        torch.testing.assert_close(image[:, target.valid], torch.full_like(image[:, target.valid], 5.0))
        shares.append(target.valid.float().mean().item())
    assert min(shares) > 0  # crops without a single known pixel are drawn again
    assert min(shares) < 0.9 and max(shares) == 1.0


def test_ignored_pixels_stay_in_the_picture(numbered: Path) -> None:
    """Nothing is known about their label; the picture is what the model will see there later, too."""
    ignore = box((96, 128), slice(0, 96), slice(64, 128))
    image, target = CropDataset([Part(numbered, labelled(blank(96, 128), ignore))], adapter(), 128)[0]
    assert target.valid.sum() == 96 * 64
    assert (image[0, :96, :128] > 0).all()
    assert (image[0, 96:] == 0).all() and not target.valid[96:].any()


def test_scaled_crops_show_more_or_less(make_geotiff: Callable[..., Path]) -> None:
    columns = make_geotiff(np.tile(np.arange(128, dtype=np.float32), (96, 1)))
    dataset = CropDataset([Part(columns, labelled(blank(96, 128)))], adapter(), 48, ("scale",))
    spans = []
    for index in range(40):
        image, target = dataset[index]
        assert image.shape == (1, 48, 48) and target.valid.all()
        spans.append(float(image.max() - image.min()) + 1)
    assert 36 <= min(spans) < 40 and 60 < max(spans) <= 64


def test_objects_draw_crops(make_geotiff: Callable[..., Path]) -> None:
    """One object of 8 × 8 in a megapixel: no crop finds it by chance."""
    path = make_geotiff(np.ones((1024, 1024), np.uint8))
    labels = labelled(objects(box((1024, 1024), slice(700, 708), slice(300, 308))[None]))
    part = Part(path, labels)

    def hits(share: float) -> int:
        dataset = CropDataset([part], adapter(), 64, ("flip",), sampling=Sampling(objects=share))
        return sum(len(dataset[index][1].labels) for index in range(40))

    assert (hits(0.0), hits(1.0)) == (0, 40)
    assert 10 <= hits(0.5) <= 30


def test_objects_of_other_parts_draw_nothing(make_geotiff: Callable[..., Path]) -> None:
    path = make_geotiff(np.ones((256, 256), np.uint8))
    labels = labelled(objects(box((256, 256), slice(200, 208), slice(200, 208))[None]))
    dataset = CropDataset([Part(path, labels, (slice(0, 128), slice(0, 256)))], adapter(), 32)
    assert all(len(dataset[index][1].labels) == 0 for index in range(20))


def test_rare_classes_come_as_often_when_balanced(make_geotiff: Callable[..., Path]) -> None:
    path = make_geotiff(np.ones((512, 512), np.uint8))
    masks = [
        box((512, 512), slice(row, row + 6), slice(column, column + 6))
        for row in range(8, 256, 24)
        for column in range(8, 500, 24)
    ]
    masks.append(box((512, 512), slice(480, 486), slice(480, 486)))
    part = Part(path, labelled(objects(np.stack(masks), [0] * (len(masks) - 1) + [1])))

    def rare(balanced: bool) -> int:
        sampling = Sampling(objects=1.0, balanced=balanced)
        dataset = CropDataset([part], adapter(), 32, sampling=sampling)
        return sum(1 in dataset[index][1].labels.tolist() for index in range(60))

    assert rare(False) <= 4 and 18 <= rare(True) <= 42


@pytest.mark.parametrize(("kind", "kept"), [("thing", False), ("stuff", True)])
def test_a_thing_mostly_out_of_view_is_ignored_not_background(numbered: Path, kind: str, kept: bool) -> None:
    """Of 40 × 40 px, 3 × 40 stick into the part: 7.5 %, under the tenth that makes a target."""
    mask = box((96, 128), slice(29, 69), slice(30, 70))
    part = Part(numbered, labelled(objects(mask[None])), (slice(0, 32), slice(0, 128)))
    _, target = CropDataset([part], adapter(kinds=(kind,)), 128)[0]
    assert len(target.labels) == int(kept)
    assert target.valid.sum() == 32 * 128 - (0 if kept else 120)
    assert target.valid[29:32, 30:70].all() == kept


def test_a_giant_that_fills_the_crop_is_a_target(numbered: Path) -> None:
    """All but a few of its pixels are out of view, but the crop could not show more."""
    _, target = CropDataset([Part(numbered, labelled(objects(np.ones((1, 96, 128), bool))))], adapter(), 32)[0]
    assert len(target.labels) == 1 and target.masks.all() and target.valid.all()


def test_specks_are_ignored(numbered: Path) -> None:
    masks = np.stack([box((96, 128), slice(5, 6), slice(5, 8)), box((96, 128), slice(20, 22), slice(20, 22))])
    part = Part(numbered, labelled(objects(masks, [0, 1])))
    _, target = CropDataset([part], adapter(), 128)[0]
    assert target.labels.tolist() == [1]
    assert not target.valid[5, 5:8].any() and target.valid[:96, :128].sum() == 96 * 128 - 3


def test_large_parts_come_more_often(make_geotiff: Callable[..., Path]) -> None:
    parts = [
        Part(make_geotiff(np.full((size, size), value, np.uint8), f"{value}.tif"), labelled(blank(size, size)))
        for size, value in ((64, 1), (128, 2))
    ]
    dataset = CropDataset(parts, adapter(), 32)
    seen = [int(dataset[index][0].max()) for index in range(100)]
    assert 8 <= seen.count(1) <= 34  # a fifth of the area


def test_what_cannot_be_is_refused(numbered: Path, tmp_path: Path) -> None:
    labels = labelled(blank(96, 128))
    with pytest.raises(InputError, match="no part"):
        CropDataset([], adapter(), 32)
    for window in ((slice(0, 97), slice(0, 128)), (slice(5, 5), slice(0, 128)), (slice(-3, 9), slice(0, 9))):
        with pytest.raises(InputError, match=r"numbered\.tif: part .* is not inside"):
            CropDataset([Part(numbered, labels, window)], adapter(), 32)
    with pytest.raises(InputError, match=r"none\.tif"):
        CropDataset([Part(tmp_path / "none.tif", labels)], adapter(), 32)


def test_fingerprint_follows_pixels_labels_and_settings(make_geotiff: Callable[..., Path]) -> None:
    def fingerprint(value: int = 1, mask: slice = slice(0, 9), ignore: Any = None, **changes: Any) -> str:
        path = make_geotiff(np.full((64, 64), value, np.uint8))
        labels = labelled(objects(box((64, 64), mask, slice(0, 9))[None]), ignore)
        window = changes.pop("window", None)
        settings = {"crop": 32, "augment": ("flip",), "seed": 0, "sampling": Sampling(), **changes}
        return CropDataset([Part(path, labels, window)], adapter(), **settings).fingerprint()

    variants = [
        fingerprint(),
        fingerprint(value=2),
        fingerprint(mask=slice(0, 10)),
        fingerprint(window=(slice(0, 60), slice(0, 64))),
        fingerprint(ignore=box((64, 64), slice(30, 40), slice(0, 64))),
        fingerprint(crop=64),
        fingerprint(augment=()),
        fingerprint(seed=1),
        fingerprint(sampling=Sampling(objects=0.1)),
    ]
    assert len(set(variants)) == len(variants)
    assert fingerprint() == variants[0]


def test_real_crowns(shared_data: Path) -> None:
    """A scene without a CRS, half of it a part, with boxes of which 88 pairs overlap."""
    folder = shared_data / "satellite" / "crowns"
    path = folder / "2019_YELL_2_541000_4977000_image_crop.tiff"
    crowns = rgb_aerial(ClassSet((Class("crown", values=("Tree",)),)))
    with open_source(path, crowns.channels) as source:
        annotations = read_annotations(path.with_suffix(".xml"), source, crowns, LabelOptions())
        height, width = source.shape
    part = Part(path, annotations, (slice(0, height // 2), slice(0, width)))
    dataset = CropDataset([part], crowns, 256, ALL)
    found = overlapping = 0
    for index in range(12):
        image, target = dataset[index]
        assert image.shape == (3, 256, 256) and image.isfinite().all()
        assert image[:, target.valid].std() > 0.2  # a picture, not padding
        assert target.masks.flatten(1).any(1).all()
        found += len(target.labels)
        overlapping += int((target.masks.sum(0) > 1).any())
    assert found > 60 and overlapping >= 3
