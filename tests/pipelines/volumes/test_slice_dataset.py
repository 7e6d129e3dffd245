"""Slices for training: what a picture shows is what its target says, drawn evenly, whatever the memory."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.errors import InputError
from adapters.volume import VolumeRules
from maskformer.baseline import flatten_target
from pipelines.annotations.options import LabelOptions
from pipelines.volumes.augmentation import NAMES, SliceAugmentation
from pipelines.volumes.cases import LabelledCase
from pipelines.volumes.dataset import SliceDataset, SliceSampling, target_of
from pipelines.volumes.layouts import Case, read_layout
from pipelines.volumes.prepared import CaseStore, PreparedCase, pictures
from tests.pipelines.volumes.make_cases import adapter, balls, decathlon, save

EVERY = ("axial", "coronal", "sagittal")


def prepared(folder: Path, count: int = 2, limit_mb: int = 64, **settings) -> tuple[list[PreparedCase], CaseStore]:
    cases = [LabelledCase(c) for c in read_layout(decathlon(folder, count))]
    store = CaseStore(adapter(**settings), limit_mb)
    return store.prepare(cases), store


def shown(image: torch.Tensor) -> torch.Tensor:
    """The class a picture's own slice shows: its values are those of the labels, but for noise."""
    return image[len(image) // 2].round().long()


def said(target) -> torch.Tensor:
    """Class + 1 of each pixel of a target, 0 for none."""
    flat = flatten_target(target, 2)
    return torch.where(flat == 2, 0, flat + 1)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("crop", [32, 64])
def test_a_picture_and_its_target_are_one(tmp_path: Path, crop: int, spacing: tuple[float, ...] | None) -> None:
    cases, store = prepared(tmp_path, spacing=spacing, volume=VolumeRules(planes=EVERY))
    data = SliceDataset(cases, store.adapter, crop, seed=3)
    seen = Counter()
    for index in range(40):
        image, target = data[index]
        assert image.shape == (3, crop, crop) and image.dtype == torch.float32
        assert target.valid.shape == (crop, crop) and not image[:, ~target.valid & (image[1] == 0)].abs().max() > 1
        assert int(target.layers.max()) == len(target.labels)
        agree = (shown(image) == said(target))[target.valid].float().mean()
        assert agree > (0.999 if spacing is None else 0.9), "resampled borders are between two classes"
        seen.update(target.labels.tolist())
    assert set(seen) == {0, 1}


def test_a_sample_depends_on_its_number_alone(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    cases, store = prepared(tmp_path)
    data = SliceDataset(cases, store.adapter, 32, NAMES, seed=1)
    forward = [data[k] for k in range(6)]
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002 - MONAI must not draw from the global generator
    backward = [SliceDataset(cases, store.adapter, 32, NAMES, seed=1)[k] for k in reversed(range(6))][::-1]
    for (a, first), (b, second) in zip(forward, backward):
        assert torch.equal(a, b) and torch.equal(first.layers, second.layers) and torch.equal(first.valid, second.valid)
    other = SliceDataset(cases, store.adapter, 32, NAMES, seed=2)
    assert not torch.equal(other[0][0], forward[0][0])
    assert data.fingerprint() != other.fingerprint()
    assert data.fingerprint() == SliceDataset(cases, store.adapter, 32, NAMES, seed=1).fingerprint()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("colour", "bias", "noise", "smooth")])
def test_moved_pictures_take_their_labels_along(tmp_path: Path, name: str) -> None:
    pytest.importorskip("monai")
    cases, store = prepared(tmp_path)
    plain = SliceDataset(cases, store.adapter, 32, (), seed=5, sampling=SliceSampling(content=1.0))
    moved = SliceDataset(cases, store.adapter, 32, (name,), seed=5, sampling=SliceSampling(content=1.0))
    changed = 0
    for index in range(12):
        image, target = moved[index]
        inside = target.valid
        assert (shown(image) == said(target))[inside].float().mean() > 0.93
        changed += not torch.equal(image, plain[index][0])
    assert changed >= 3


@pytest.mark.parametrize("name", ["colour", "bias", "noise", "smooth"])
def test_changed_grey_values_leave_labels_and_nothing_alone(name: str) -> None:
    pytest.importorskip("monai")
    augment = SliceAugmentation((name,))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 32, 32, generator=generator)
    planes = torch.randint(0, 70_000, (2, 32, 32), generator=generator, dtype=torch.int32)
    present = torch.ones(32, 32, dtype=torch.bool)
    present[20:] = False
    changed = 0
    for seed in range(8):
        after, maps, there = augment(image, planes, present, 32, seed)
        assert torch.equal(maps, planes) and torch.equal(there, present) and not after[:, 20:].any()
        changed += not torch.equal(after, image * present)
    assert changed >= 1


def test_unknown_names_are_errors() -> None:
    with pytest.raises(InputError, match=r"did you mean 'elastic'"):
        SliceAugmentation(("elastics",))
    with pytest.raises(InputError, match="no case"):
        SliceDataset([], adapter(), 32)


def test_right_and_left_are_the_patients(tmp_path: Path) -> None:
    cases, store = prepared(tmp_path, 1, volume=VolumeRules(planes=EVERY))
    case = cases[0]
    data = SliceDataset(cases, store.adapter, 32, ("mirror",), seed=0)
    # RAS: rows of axial and of coronal pictures run from left to right; sagittal slices do so themselves
    assert [case.mirror_axis(axis) for axis in case.axes] == [0, 0, None]
    for axis in case.axes:
        picture = torch.from_numpy(case.slices(axis)[4][0])
        from pipelines.volumes.augmentation import mirrored

        there, *_ = mirrored(picture, picture, picture[0], case.mirror_axis(axis), 1)
        back, *_ = mirrored(there, there, there[0], case.mirror_axis(axis), 1)
        assert torch.equal(back, picture) and not torch.equal(there, picture)
    assert len({data[k][0].sum().item() for k in range(4)}) > 1


def test_draws_are_even_over_classes_and_patients(tmp_path: Path) -> None:
    """One patient with a large volume and ten times the slices, and a class in two slices of another patient alone."""
    large, small = np.zeros((24, 24, 60), np.uint8), np.zeros((24, 24, 6), np.uint8)
    large[4:12, 4:12, 5:55] = 1
    small[4:12, 4:12, 1:5] = 1
    small[15:20, 15:20, 2:4] = 2
    cases = []
    for name, labels in (("large", large), ("small", small)):
        image = save(tmp_path / f"{name}.nii.gz", labels.astype(np.float32))
        cases.append(LabelledCase(Case(name, name, {"": image}, save(tmp_path / f"{name}_l.nii.gz", labels))))
    store = CaseStore(adapter(("thing", "thing")))
    ready = store.prepare(cases)
    assert [list(c.content[2]) for c in ready] == [[0], [0, 1]]
    data = SliceDataset(ready, store.adapter, 32, seed=0, sampling=SliceSampling(content=1.0))
    generator = np.random.default_rng(0)
    drawn = Counter()
    for _ in range(2000):
        case, axis, position, anchor = data._draw(generator)
        assert anchor is not None and case.labels_of(axis, position)[0][tuple(anchor)] > 0
        drawn[case.patient] += 1
        drawn["rare"] += position in case.content[axis].get(1, ())
    assert 0.22 < drawn["large"] / 2000 < 0.28, "half of the draws are class 1, half of those the large patient"
    assert drawn["rare"] / 2000 > 0.5, "a class in two slices of 66 is drawn every second time"
    anywhere = SliceDataset(ready, store.adapter, 32, seed=0, sampling=SliceSampling(content=0.0))
    empty = sum(not len(anywhere[k][1].labels) for k in range(60))
    assert 5 < empty < 40, "what is not there is learned too"


def test_ignored_voxels_and_slivers_teach_nothing(tmp_path: Path) -> None:
    labels = np.zeros((40, 70, 4), np.uint8)
    labels[5:35, 5:65] = 1
    labels[38:, :10] = 9
    image = save(tmp_path / "i.nii.gz", labels.astype(np.float32))
    truth = save(tmp_path / "l.nii.gz", labels)
    from dataclasses import replace

    one = adapter(("thing",))
    one = replace(one, classes=replace(one.classes, ignore_values=(9,)))
    with CaseStore(one) as store:
        (case,) = store.prepare([LabelledCase(Case("i", "i", {"": image}, truth))])
        assert case.ignored(2, 0)[39, 3] and not case.ignored(2, 0)[0, 0]
        data = SliceDataset([case], one, 32, sampling=SliceSampling(content=1.0))
        slivers = ignored = 0
        for index in range(200):
            picture, target = data[index]
            ignored += bool((picture[1] == 9).any())
            assert not target.valid[picture[1] == 9].any()
            little = (picture[1] == 1) & ~target.valid
            slivers += bool(little.any())
            assert bool((picture[1] == 1).sum() > 200) <= (len(target.labels) == 1)
        assert ignored
    assert data.sampling.min_visible == 0.1


def test_numbers_close_up() -> None:
    layers = torch.tensor([[[0, 3, 3], [5, 5, 0]], [[0, 0, 4], [0, 0, 0]]], dtype=torch.int32)
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[0, 2] = False  # object 4 is seen nowhere else
    target = target_of(layers, np.array([7, 7, 0, 1, 2]), valid)
    assert target.labels.tolist() == [0, 2] and target.layers.tolist() == [[[0, 1, 1], [2, 2, 0]]]
    nothing = target_of(torch.zeros_like(layers), np.zeros(0, np.int64), valid)
    assert not len(nothing.labels) and nothing.layers.shape == (1, 2, 3)


def test_what_does_not_fit_the_memory_lies_in_files(tmp_path: Path) -> None:
    inside, _ = prepared(tmp_path, 2, 64)
    beyond, store = prepared(tmp_path, 2, 0)
    assert all(isinstance(c.values.base, np.memmap) or isinstance(c.values, np.memmap) for c in beyond)
    assert not any(isinstance(c.values.base, np.memmap) for c in inside)
    a, b = (SliceDataset(c, store.adapter, 32, seed=4) for c in (inside, beyond))
    assert a.fingerprint() == b.fingerprint()
    for index in range(5):
        assert torch.equal(a[index][0], b[index][0]) and torch.equal(a[index][1].layers, b[index][1].layers)
    folder = store.keeper._folder
    assert folder is not None and folder.is_dir()
    store.close()
    assert not folder.exists()


def test_one_image_of_two_patients_is_an_error(tmp_path: Path) -> None:
    image, labels = save(tmp_path / "a.nii.gz", balls()), save(tmp_path / "l.nii.gz", balls())
    copy = tmp_path / "b.nii.gz"
    copy.write_bytes(image.read_bytes())
    cases = [LabelledCase(Case(p.name, p.name, {"": p}, labels)) for p in (image, copy)]
    with pytest.raises(InputError, match="the very image of a case of another patient"):
        CaseStore(adapter()).prepare(cases)


def test_labels_on_another_grid_are_moved_on_request(tmp_path: Path) -> None:
    image = save(tmp_path / "a.nii.gz", balls().astype(np.float32))
    labels = save(tmp_path / "l.nii.gz", balls()[::2], np.diag([2.0, 1, 2, 1]))
    case = Case("a", "a", {"": image}, labels)
    with pytest.raises(InputError, match="another grid"):
        CaseStore(adapter()).prepare([LabelledCase(case)])
    (found,) = CaseStore(adapter()).prepare([LabelledCase(case, options=LabelOptions(resample=True))])
    assert len(found.labels) == 3


def test_pictures_come_in_order(tmp_path: Path) -> None:
    cases, _ = prepared(tmp_path, 1)
    groups = list(pictures(cases[0], 2, 4))
    assert [len(g) for g in groups] == [4, 4, 2]
    assert np.array_equal(groups[1][0][0], cases[0].slices(2)[4][0])
    assert cases[0].objects.labels.tolist() == [0, 0, 1]
