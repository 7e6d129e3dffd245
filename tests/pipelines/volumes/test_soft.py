"""Soft masks: kept beside the objects, found again after linking, agreed on by views, cut on the finest grid."""

import numpy as np
import pytest
import torch

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.volume import VolumeRules
from maskformer import inference
from maskformer.masks import MaskSet
from maskformer.prediction import DensePrediction, Prediction
from pipelines.volumes.agreement import agree, agree_slices, same_objects
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.linking import link_slices
from pipelines.volumes.probabilities import ClassMaps
from pipelines.volumes.resampling import plan_resampling
from pipelines.volumes.restoring import Decision, restore_labels, restore_objects
from pipelines.volumes.slice_predictor import Wanted, class_maps, soft_instances
from pipelines.volumes.slicing import transposed, turn_objects
from pipelines.volumes.soft import INSIDE, HardSet, LinkedSet, SoftSet, SoftStore, hard, soft_of_maps, together


def blob(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    """Probabilities that fall off over two voxels around a ball."""
    away = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre)))
    return np.clip((radius - away) / 2 + 0.5, 0, 1).astype(np.float32)


@pytest.mark.parametrize(("kind", "mask"), [("queries", 0.5), ("queries", 0.8), ("queries", 0.15), ("pixels", 0.5)])
def test_soft_objects_are_the_objects_of_inference(kind: str, mask: float) -> None:
    torch.manual_seed(0)
    if kind == "queries":
        smooth = torch.nn.functional.interpolate(torch.randn(1, 6, 4, 5) * 4, size=(16, 24), mode="bilinear")
        prediction = Prediction(torch.randn(1, 6, 4) * 3, smooth)
    else:
        smooth = torch.nn.functional.interpolate(torch.randn(1, 4, 6, 8) * 4, size=(64, 96), mode="bilinear")
        prediction = DensePrediction(smooth)
    size, thing = (61, 90), [True, True, False]
    plain = inference.instances(prediction, size, valid=size, score=0.2, mask=mask, thing=thing)[0]
    wanted = Wanted(tuple(thing), score=0.2)
    found = soft_instances(prediction, size, wanted, mask=mask)
    assert len(plain) > 2 and found.objects == plain and len(found.soft) == len(plain)
    for shape, one in zip(plain.to_dense(), found.soft):
        drawn = np.zeros(size, bool)
        drawn[tuple(slice(a, a + n) for a, n in zip(one.offset, one.values.shape))] = one.values >= INSIDE
        assert np.array_equal(drawn, shape), "a voxel is in the mask where its byte is one half or more"
    assert soft_instances(prediction, size, wanted, soft=False, mask=mask).objects == plain
    if kind == "queries" and mask != 0.5:
        assert plain != inference.instances(prediction, size, valid=size, score=0.2, thing=thing)[0]


@pytest.mark.parametrize("layered", [False, True])
def test_class_maps_are_those_of_inference(layered: bool) -> None:
    torch.manual_seed(1)
    masks = torch.nn.functional.interpolate(torch.randn(1, 40, 4, 5) * 6, size=(16, 24), mode="bilinear")
    classes = torch.randn(1, 40, 31) * 2
    classes[..., 8:30] -= 12  # most classes are nowhere
    prediction, size = Prediction(classes, masks), (61, 90)
    whole = inference.semantic(prediction, size, valid=size, combine="noisy-or" if layered else "sum")[0].numpy()
    found = class_maps(prediction, size, Wanted((True,) * 30, layered=layered))
    assert 3 < len(found.classes) < 12
    assert np.allclose(found.dense(30)[found.classes], whole[found.classes], atol=1e-5)
    assert np.delete(whole, found.classes, axis=0).max() < 0.02
    every = class_maps(prediction, size, Wanted((True,) * 30, layered=layered, least=0.0))
    assert np.allclose(every.maps, whole, atol=1e-5) and len(every.classes) == 30


def linked_ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float, axis: int) -> LinkedSet:
    """A ball seen slice by slice across `axis`."""
    volume = np.moveaxis(blob(shape, centre, radius), axis, 0)
    store, slices = SoftStore(), []
    for position, plane in enumerate(volume):
        objects = MaskSet.from_dense((plane >= 0.5)[None], [0], [0.8])
        objects = objects[objects.areas > 0]
        found = SoftSet(objects, soft_of_maps(objects, [plane] * len(objects)))
        store.add(position, found)
        slices.append((position, objects))
    linked = link_slices(volume.shape, slices)
    return LinkedSet(linked, turn_objects(linked, axis), axis, store)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_linked_objects_find_the_soft_masks_of_their_slices(axis: int) -> None:
    shape, centre = (20, 22, 24), (9.3, 10.7, 11.2)
    found = linked_ball(shape, centre, 6, axis)
    assert len(found.objects) == 1
    soft = found.soft_of(0)
    dense = np.zeros(shape, np.uint8)
    dense[tuple(slice(a, a + n) for a, n in zip(soft.offset, soft.values.shape))] = soft.values
    assert np.array_equal(dense >= INSIDE, found.objects.to_dense()[0])
    inside = (dense > 0) & (blob(shape, centre, 6) >= 0.5)
    assert np.abs(dense[inside] / 255 - blob(shape, centre, 6)[inside]).max() < 0.01


def test_objects_cut_on_the_fine_grid_keep_their_place_better_than_cut_masks() -> None:
    random = np.random.default_rng(0)
    soft_away, hard_away = [], []
    for _ in range(12):
        fine = VolumeGeometry((40, 44, 36), np.diag([1.0, 1, 1, 1]))
        way = plan_resampling(fine, "RAS", [2.0, 2.0, 2.0])
        truth = blob(fine.shape, tuple(18 + random.random(3) * 4), 5 + random.random() * 4)
        coarse = way.forward(truth)
        store, slices = SoftStore(), []
        for position, plane in enumerate(coarse):
            objects = MaskSet.from_dense((plane >= 0.5)[None], [0])
            objects = objects[objects.areas > 0]
            store.add(position, SoftSet(objects, soft_of_maps(objects, [plane] * len(objects))))
            slices.append((position, objects))
        linked = link_slices(coarse.shape, slices)
        wanted = np.argwhere(truth >= 0.5).mean(0)
        soft = restore_objects(agree([LinkedSet(linked, linked, 0, store)]), way)
        cut = restore_objects(agree([HardSet(linked)]), way)
        soft_away.append(np.abs(np.argwhere(soft.to_dense()[0]).mean(0) - wanted).max())
        hard_away.append(np.abs(np.argwhere(cut.to_dense()[0]).mean(0) - wanted).max())
        # with the probabilities of the whole volume in memory it would be this
        assert abs(soft.areas[0] / way.back_mask(coarse).sum() - 1) < 0.03
    # the slice above the last one in which it is an object is lost to it: hence not always under a tenth
    assert max(soft_away) < 0.15 and np.mean(soft_away) < 0.06, soft_away
    assert np.mean(soft_away) < 0.6 * np.mean(hard_away), (np.mean(soft_away), np.mean(hard_away))


def test_views_agree_on_what_they_share() -> None:
    shape = (12, 30)
    dense = np.zeros((3, *shape), bool)
    dense[0, 2:8, 2:10] = dense[1, 2:8, 4:12] = dense[2, 3:9, 20:26] = True
    first = SoftSet(MaskSet.from_dense(dense[:1], [0], [0.9]), [])
    second = SoftSet(MaskSet.from_dense(dense[1:], [0, 0], [0.7, 0.6]), [])
    views = [SoftSet(v.objects, [hard(v.objects, n) for n in range(len(v.objects))]) for v in (first, second)]
    found = agree_slices(views)
    assert len(found.objects) == 2 and np.allclose(found.objects.scores, [0.8, 0.3]), "seen once: half the score"
    both = dense[0] & dense[1]
    mask = found.objects.to_dense()[0]
    assert mask[both].all() and (mask <= (dense[0] | dense[1])).all()
    assert same_objects(first.objects, second.objects.with_labels([1, 1]), 0.3) == [], "other classes are other objects"
    three = [*views, SoftSet(views[0].objects, views[0].soft)]
    assert np.array_equal(agree_slices(three).objects.to_dense()[0], dense[0]), "two of three"


def test_three_planes_see_one_object_each_and_agree_on_one() -> None:
    shape, centre = (20, 22, 24), (9.3, 10.7, 11.2)
    views = [linked_ball(shape, centre, 6, axis) for axis in range(3)]
    (one,) = agree(views)
    assert one.score == pytest.approx(0.8)
    dense = np.zeros(shape, bool)
    dense[tuple(slice(a, a + n) for a, n in zip(one.soft.offset, one.soft.values.shape))] = one.soft.values >= INSIDE
    assert np.array_equal(dense, blob(shape, centre, 6) >= 0.5)
    lonely = [views[0], HardSet(MaskSet.empty(shape)), HardSet(MaskSet.empty(shape))]
    assert next(iter(agree(lonely))).score == pytest.approx(0.8 / 3), "what one plane of three sees sinks in score"


def test_the_mean_of_boxes() -> None:
    a, b = hard(MaskSet.from_dense(np.ones((1, 2, 3), bool), [0]), 0), None
    b = a._replace(offset=(1, 1))
    mean = together([a, b])
    assert mean.offset == (0, 0) and mean.values.shape == (3, 4)
    assert mean.values[1, 1] == 255 and mean.values[0, 0] == 128 and mean.values[2, 0] == 0


def test_transposed_objects_are_their_transposed_masks() -> None:
    dense = np.random.default_rng(0).random((4, 3, 5, 7)) < 0.3
    objects = MaskSet.from_dense(dense, [0, 1, 0, 2])
    for order in ([2, 1, 0], [1, 2, 0], [0, 1, 2]):
        assert np.array_equal(transposed(objects, order).to_dense(), dense.transpose(0, *(a + 1 for a in order)))


def decision(classes: int, **settings: object) -> Decision:
    names = ClassSet(tuple(Class(f"c{k}") for k in range(classes)))
    return Decision(DomainAdapter("t", ChannelSet((Channel("x"),)), names, **settings), VolumeRules(), 0.5)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 3.0), (2.0, 1.5, 0.8)])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("covers", [False, True])
def test_classes_are_decided_on_the_scans_own_grid(spacing: tuple | None, axis: int, covers: bool) -> None:
    """Slice by slice it is what it would be with all probabilities of the whole volume in memory."""
    geometry = VolumeGeometry((14, 15, 16), np.array([[0, -1.0, 0, 3], [1.2, 0, 0, 0], [0, 0, 1.1, 5], [0, 0, 0, 1]]))
    way = plan_resampling(geometry, "RAS", spacing)
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.full(5, 0.4), way.target.shape)[..., :4].astype(np.float32)
    probabilities = np.moveaxis(probabilities, -1, 0).copy()
    probabilities[1, ::3, :, ::2] = 0.0  # a class that comes and goes from slice to slice
    known = random.random(geometry.shape) < 0.95
    decide = decision(4, covers=covers)
    slices = np.moveaxis(probabilities, axis + 1, 0)
    found = restore_labels((ClassMaps.of(one, decide.least) for one in slices), axis, way, known, decide)
    if way.is_exact:
        whole = np.stack([way._turn_back(one) for one in probabilities])
    else:
        from pipelines.volumes.resampling import _interpolate, _weights

        weights = [_weights(m, n, 1 / f) for n, m, f in way._steps()]
        whole = np.stack([way._turn_back(_interpolate(one, weights)) for one in probabilities])
    expected = whole.argmax(0) + 1
    if not covers:
        expected[whole.max(0) < 0.5] = 0
    expected[~known] = 0
    ties = np.sort(whole, axis=0)[-1] - np.sort(whole, axis=0)[-2] < 1e-5
    unsure = np.abs(whole.max(0) - 0.5) < 1e-5
    assert ((found == expected) | ties | unsure).all() and (ties | unsure).mean() < 0.01
