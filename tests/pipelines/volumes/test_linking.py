"""Slice the truth, link the slices, get the truth back."""

import numpy as np
import pytest

from maskformer.masks import MaskSet
from pipelines.volumes.linking import LinkRules, SliceLinker, link_slices, torn
from pipelines.volumes.probabilities import ClassMaps, Spool, averaged, smoothed


def balls(seed: int, count: int = 16, shape: tuple[int, int, int] = (24, 36, 40), classes: int = 2) -> MaskSet:
    """Ellipsoids that may overlap, never two centred on one column of one class."""
    random = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    masks, centres = [], []
    while len(masks) < count:
        radius = random.uniform(2.5, 6, 3)
        centre = random.uniform(radius, np.array(shape) - radius)
        if any(np.linalg.norm((centre - other)[1:]) < 6 for other in centres):
            continue
        centres.append(centre)
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip((z, y, x), centre, radius)) <= 1
        masks.append(inside)
    scores = random.integers(1, 8, count) / 8
    return MaskSet.from_dense(np.array(masks), random.integers(0, classes, count), scores)


def slices(truth: MaskSet, seed: int = 0) -> list[tuple[int, MaskSet]]:
    """Every slice as a picture's objects, in a random order."""
    random = np.random.default_rng(seed)
    result = []
    for position in range(truth.shape[0]):
        part = truth.crop((slice(position, position + 1), slice(None), slice(None)))
        flat = MaskSet(truth.shape[1:], part.runs[:, 1:], part.offsets, part.labels, part.scores)
        result.append((position, flat[random.permutation(len(flat))]))
    return result


@pytest.mark.parametrize("seed", range(8))
def test_the_truth_comes_back(seed: int) -> None:
    truth = balls(seed)
    found = link_slices(truth.shape, slices(truth, seed))
    assert len(truth.overlaps(truth)[0]) > len(truth), "the scene has no overlaps: it would prove little"
    assert found == truth.canonical()
    assert not torn(found).any()


def test_the_order_within_a_slice_does_not_matter() -> None:
    truth = balls(3)
    rough = MaskSet.concatenate([truth, truth.with_scores(truth.scores / 2)])  # twins: equal evidence everywhere
    first, second = (link_slices(rough.shape, slices(rough, seed)) for seed in (1, 2))
    assert first == second
    assert len(first) == len(rough)


def column(shape: tuple[int, int, int], present: list[int]) -> list[tuple[int, MaskSet]]:
    mask = np.zeros((1, *shape[1:]), bool)
    mask[0, 2:6, 2:6] = True
    return [(z, MaskSet.from_dense(mask, [0]) if z in present else MaskSet.empty(shape[1:])) for z in range(shape[0])]


def test_an_empty_slice_separates_objects() -> None:
    shape = (8, 8, 8)
    found = link_slices(shape, column(shape, [0, 1, 2, 4, 5]))
    assert found.areas.tolist() == [48, 32]
    assert len(set(found.ids.tolist())) == 2


def test_a_gap_is_bridged_on_request_and_filled() -> None:
    shape = (8, 8, 8)
    found = link_slices(shape, column(shape, [0, 1, 2, 4, 5]), LinkRules(gap=1))
    assert found.areas.tolist() == [96] and not torn(found).any()
    assert link_slices(shape, column(shape, [0, 1, 2, 5]), LinkRules(gap=1)).areas.tolist() == [48, 16]


def test_what_is_torn_is_told() -> None:
    dense = np.zeros((3, 5, 4, 4), bool)
    dense[0, 0, 0, 0] = dense[0, 2, 0, 0] = True  # skips a slice
    dense[1, 0, 0, 0] = dense[1, 1, 3, 3] = True  # beside itself
    dense[2, 0:3, 1, 1] = True
    assert torn(MaskSet.from_dense(dense, [0, 0, 0])).tolist() == [True, True, False]


def test_classes_are_not_mixed_and_small_objects_left_out() -> None:
    shape = (6, 8, 8)
    parts = [(z, one.with_labels([0 if z < 3 else 1])) for z, one in column(shape, list(range(6)))]
    assert link_slices(shape, parts).labels.tolist() == [0, 1]
    assert len(link_slices(shape, parts, LinkRules(min_voxels=49))) == 0


def test_closed_objects_come_out_at_once_and_memory_is_what_is_open() -> None:
    shape = (1000, 8, 8)
    linker = SliceLinker(shape)
    for z, one in column(shape, list(range(0, 1000, 2))):
        closed = linker.add(z, one)
        assert len(closed) == (z >= 2 and z % 2 == 0) and len(linker._open) <= 1
    assert len(linker.finish()) == 1
    with pytest.raises(ValueError, match="expected a slice"):
        linker.add(3, MaskSet.empty(shape[1:]))


def maps(volume: np.ndarray) -> list[ClassMaps]:
    return [ClassMaps.of(one) for one in volume]


def test_smoothing_across_slices() -> None:
    random = np.random.default_rng(0)
    volume = random.random((7, 2, 3, 4), dtype=np.float32)
    volume[2:5, 1] = 0  # a class that is not there in every slice
    found = np.stack([one.dense(2) for one in smoothed(maps(volume))])
    padded = np.concatenate([volume[:1] * 0, volume, volume[:1] * 0])
    weights = np.array([3, *[4] * 5, 3], np.float32)[:, None, None, None]
    expected = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / weights
    assert np.allclose(found, expected, atol=1e-6)
    assert np.allclose(next(smoothed(maps(volume[:1]))).maps, volume[0])
    mean = [one.dense(2) for one in smoothed(maps(volume[:2]), (1, 1, 1, 1, 1))]
    assert np.allclose(mean, [volume[:2].mean(0)] * 2)
    with pytest.raises(ValueError, match="odd"):
        list(smoothed(maps(volume), (1, 1)))


def test_planes_are_averaged_through_files() -> None:
    shape, random = (4, 5, 6), np.random.default_rng(0)
    volumes = random.random((3, 2, *shape), dtype=np.float32)
    spools = [Spool(2, shape) for _ in range(3)]
    for axis, (spool, volume) in enumerate(zip(spools, volumes)):
        for position, one in enumerate(np.moveaxis(volume, axis + 1, 0)):
            spool.write(axis, position, ClassMaps.of(one))
    assert np.allclose(np.stack([one.dense(2) for one in averaged(spools)], 1), volumes.mean(0), atol=0.003)
    for spool in spools:
        spool.close()
