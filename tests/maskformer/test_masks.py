"""MaskSet against boolean arrays: every operation on runs equals the same on pixels."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from maskformer.masks import MaskSet


@st.composite
def scenes(draw, axes=None):
    """Boolean masks (N, *shape) with empty, full and equal ones, labels, scores."""
    axes = axes or draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, 12 if axes == 2 else 5)) for _ in range(axes))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    count = draw(st.integers(0, 6))
    dense = rng.random((count, *shape)) < rng.choice([0, 0.2, 0.6, 1], (count, *[1] * axes))
    if count > 2:
        dense[1] = dense[0]
    return dense, rng.integers(0, 3, count), rng.random(count).astype(np.float32)


@settings(max_examples=30)
@given(scenes())
def test_dense_round_trip(scene):
    dense, labels, scores = scene
    masks = MaskSet.from_dense(dense, labels, scores)
    np.testing.assert_array_equal(masks.to_dense(), dense)
    assert masks.to_dense().shape == dense.shape
    np.testing.assert_array_equal(masks.areas, dense.sum(axis=tuple(range(1, dense.ndim))))
    assert MaskSet.from_dense(masks.to_dense(), labels, scores) == masks
    assert MaskSet(masks.shape, masks.runs, masks.offsets, labels, scores) == masks
    for mask, found in zip(dense, masks.boxes):
        where = np.argwhere(mask)
        if len(where):
            assert found.tolist() == [*where.min(axis=0), *(where.max(axis=0) + 1)]
        else:
            assert not found.any()


@settings(max_examples=30)
@given(scenes(), st.data())
def test_crop_and_place(scene, data):
    dense, labels, scores = scene
    masks = MaskSet.from_dense(dense, labels, scores)
    window = []
    for length in masks.shape:
        start = data.draw(st.integers(0, length))
        window.append(slice(start, data.draw(st.integers(start, length))))
    window = tuple(window)
    part = dense[(slice(None), *window)]
    kept = part.any(axis=tuple(range(1, part.ndim)))
    found, positions = masks.crop_indexed(window)
    assert found == masks.crop(window) == MaskSet.from_dense(part[kept], labels[kept], scores[kept])
    np.testing.assert_array_equal(positions, np.flatnonzero(kept))
    back = np.zeros((kept.sum(), *masks.shape), bool)
    back[(slice(None), *window)] = part[kept]
    np.testing.assert_array_equal(found.place(masks.shape, [s.start for s in window]).to_dense(), back)


@settings(max_examples=30)
@given(scenes(), st.data())
def test_union_and_overlap(scene, data):
    dense, labels, scores = scene
    masks = MaskSet.from_dense(dense, labels, scores)
    count = len(dense)
    flat = dense.reshape(count, int(np.prod(masks.shape))).astype(np.int64)
    shared = flat @ flat.T
    np.testing.assert_array_equal(masks.intersections(masks), shared)
    union = flat.sum(axis=1)[:, None] + flat.sum(axis=1) - shared
    np.testing.assert_allclose(masks.iou(masks), np.where(union > 0, shared / np.maximum(union, 1), 0))
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), np.int64)
    united = masks.union(groups)
    for number, group in enumerate(np.unique(groups)):
        members = np.flatnonzero(groups == group)
        np.testing.assert_array_equal(united.to_dense()[number], dense[members].any(axis=0))
        areas = masks.areas[members]
        assert labels[members][areas == areas.max()].min() == united.labels[number]
        weights = areas if areas.any() else np.ones(len(areas))
        assert united.scores[number] == pytest.approx(np.average(scores[members], weights=weights), rel=1e-6)


@settings(max_examples=30)
@given(scenes())
def test_label_map_and_layers(scene):
    dense, labels, scores = scene
    masks = MaskSet.from_dense(dense, labels, scores)
    expected = np.zeros(masks.shape, np.int32)
    for number, mask in enumerate(dense):
        expected[mask] = number + 1
    np.testing.assert_array_equal(masks.to_label_map(), expected)
    layers = masks.layers()
    for number, mask in enumerate(dense):
        shown = np.zeros(masks.shape, bool)
        for layer in layers:
            shown |= layer == number + 1
        np.testing.assert_array_equal(shown, mask)
    deepest = dense.sum(axis=0).max(initial=0)
    assert deepest <= len(layers) <= max(len(dense), 1)
    values = [int(value) for value in np.unique(expected) if value]
    again = MaskSet.from_label_map(expected, dict(zip(values, labels[np.array(values, int) - 1].tolist())))
    np.testing.assert_array_equal(again.labels, labels[np.array(values, int) - 1])
    np.testing.assert_array_equal(again.to_dense(), np.array([expected == v for v in values]).reshape(-1, *masks.shape))


@settings(max_examples=30)
@given(scenes(axes=2))
def test_coco_strings_are_those_of_pycocotools(scene):
    dense, labels, scores = scene
    masks = MaskSet.from_dense(dense, labels, scores)
    rles = masks.to_coco_rle()
    for mask, rle in zip(dense, rles):
        assert rle["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        np.testing.assert_array_equal(coco.decode(rle), mask)
    assert MaskSet.from_coco_rle(rles, labels, scores, shape=masks.shape) == masks
    as_bytes = [{**rle, "counts": rle["counts"].encode()} for rle in rles]
    assert MaskSet.from_coco_rle(as_bytes, labels, scores, shape=masks.shape) == masks


def test_coco_strings_of_large_masks():
    y, x = np.mgrid[:240, :310]
    dense = np.array([(y - 100) ** 2 + (x - 180) ** 2 < 90**2, (y * 7 + x * 3) % 11 < 4, y >= 0])
    masks = MaskSet.from_dense(dense, [0, 1, 2])
    for mask, rle in zip(dense, masks.to_coco_rle()):
        assert rle["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert MaskSet.from_coco_rle(masks.to_coco_rle(), [0, 1, 2]) == masks
    plain = [{"size": [2, 3], "counts": [1, 2, 3]}]
    np.testing.assert_array_equal(MaskSet.from_coco_rle(plain, [0]).to_dense()[0], [[0, 1, 0], [1, 0, 0]])


@settings(max_examples=30)
@given(scenes(), st.randoms())
def test_order_does_not_matter_to_the_canonical_set(scene, random):
    dense, labels, scores = scene
    masks = MaskSet.from_dense(dense, labels, scores)
    order = list(range(len(masks)))
    random.shuffle(order)
    other = masks[order]
    assert masks.canonical() == other.canonical() and masks.same_set(other)
    assert sorted(masks.ids.tolist()) == sorted(other.ids.tolist())
    np.testing.assert_array_equal(masks.canonical().ids, other.canonical().ids)
    assert len(set(masks.ids.tolist())) == len(masks) and (masks.ids >= 0).all()


def test_ids_follow_the_scene_not_the_canvas():
    dense = np.zeros((2, 6, 6), bool)
    dense[0, 2:4, 1:5] = dense[1, 2:5, 1:3] = True
    masks = MaskSet.from_dense(dense, [0, 1])
    np.testing.assert_array_equal(masks.place((9, 12), (0, 0)).ids, masks.ids)
    assert not set(masks.place((9, 12), (1, 0)).ids.tolist()) & set(masks.ids.tolist())
    np.testing.assert_array_equal(masks.with_scores([0.1, 0.2]).ids, masks.ids)


def test_choosing_objects():
    dense = np.random.default_rng(0).random((5, 6, 7)) < 0.4
    masks = MaskSet.from_dense(dense, [0, 1, 2, 3, 4])
    for index in (slice(1, 4), [3, 0, 3], np.array([True, False, True, False, True]), slice(None, None, -1)):
        np.testing.assert_array_equal(masks[index].to_dense(), dense[index])
    assert masks[-1].labels.tolist() == [4] and len(masks[[]]) == 0
    assert MaskSet.concatenate([masks[:2], masks[2:]]) == masks
    with pytest.raises(IndexError):
        masks[5]


def test_any_runs_are_brought_into_the_unique_form():
    untidy = MaskSet((3, 6), [(1, 2, 4), (0, 0, 6), (1, 0, 2), (1, 3, 5)], [0, 4], [7])
    assert untidy.runs.tolist() == [[0, 0, 6], [1, 0, 5]] and untidy.areas.tolist() == [11]


def test_long_objects_are_cropped_by_bisection():
    rows = np.column_stack([np.arange(9000), np.full(9000, 2), np.full(9000, 5)])
    river = MaskSet((9000, 9), rows, [0, 9000], [0])
    found = river.crop((slice(4000, 4010), slice(3, 9)))
    assert found.runs.tolist() == [[row, 0, 2] for row in range(10)]


def test_sets_are_values():
    masks = MaskSet.from_dense(np.ones((1, 2, 2), bool), [0], [0.5])
    assert pickle.loads(pickle.dumps(masks)) == masks
    assert isinstance(masks == masks, bool) and masks != masks.with_labels([1]) and (masks == 3) is False
    for array in (masks.runs, masks.labels, masks.scores, masks.offsets, masks.areas, masks.boxes, masks.ids):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(TypeError):
        hash(masks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskSet((4,), [], [0], []), "at least two axes"),
        (lambda: MaskSet((4, 4), [(0, 0, 5)], [0, 1], [0]), "inside the canvas"),
        (lambda: MaskSet((4, 4), [(4, 0, 1)], [0, 1], [0]), "inside the canvas"),
        (lambda: MaskSet((4, 4), [(2**32, 0, 1)], [0, 1], [0]), "inside the canvas"),
        (lambda: MaskSet((4, 4), [(0, 2, 2)], [0, 1], [0]), "start < stop"),
        (lambda: MaskSet((4, 4), [(0, 0, 0, 2)], [0, 1], [0]), r"expected runs \(R, 3\)"),
        (lambda: MaskSet((4, 4), [(0, 0, 2)], [0, 2], [0]), "rising from 0 to 1"),
        (lambda: MaskSet((4, 4), [(0, 0, 2)], [0, 1], [0, 1]), "1 labels and scores, got 2 labels"),
        (lambda: MaskSet((4, 4), [(0, 0, 2)], [0, 1], [0.5]), "integer class indices"),
        (lambda: MaskSet((4, 4), [(0, 0, 2)], [0, 1], [0], [np.nan]), "finite scores"),
        (lambda: MaskSet.from_dense(np.ones((4, 4)), [0]), "expected masks"),
        (lambda: MaskSet.from_label_map(np.full((2, 2), 9), {1: 0}), r"got none for \[9\]"),
        (lambda: MaskSet.empty((4, 4)).iou(MaskSet.empty((4, 5))), "one canvas"),
        (lambda: MaskSet.concatenate([]), "at least one"),
        (lambda: MaskSet.concatenate([MaskSet.empty((4, 4)), MaskSet.empty((4, 5))]), "one canvas"),
        (lambda: MaskSet.empty((4, 4)).crop((slice(0, 2),)), "2 slices"),
        (lambda: MaskSet.empty((4, 4)).crop((slice(0, 2), slice(0, 4, 2))), "steps 1"),
        (lambda: MaskSet((4, 4), [(0, 0, 4)], [0, 1], [0]).place((4, 4), (0, 1)), "inside the canvas"),
        (lambda: MaskSet((4, 4), [(0, 0, 4)], [0, 1], [0]).union([0, 1]), "1 integer groups"),
        (lambda: MaskSet.empty((2, 4, 4)).to_coco_rle(), "expected a picture"),
        (lambda: MaskSet.from_coco_rle([{"size": [2, 2], "counts": [1, 2]}], [0]), "add up to 2 x 2"),
        (lambda: MaskSet.from_coco_rle([{"size": [2, 2], "counts": "~!"}], [0]), "compressed COCO string"),
        (lambda: MaskSet.from_coco_rle([], []), "one canvas"),
    ],
)
def test_wrong_input_says_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
