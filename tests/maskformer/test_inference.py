import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from maskformer import class_maps, inference, tiles
from maskformer.masks import MaskSet
from maskformer.prediction import DensePrediction, Prediction


def random_prediction(seed: int, queries: int = 6, classes: int = 3, size: int = 8, batch: int = 1) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.randn(batch, queries, size // 4, size // 4, generator=generator)
    masks = 6 * F.interpolate(smooth, size=(size, size), mode="bilinear") + torch.randn(
        batch, queries, size, size, generator=generator
    )
    return Prediction(3 * torch.randn(batch, queries, classes + 1, generator=generator), masks)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles and several rounds of them, in pictures of 32 pixels."""
    monkeypatch.setattr(tiles, "TILE", 4)
    monkeypatch.setattr(tiles, "AT_ONCE", 7)


def full_size(prediction: Prediction, real, size) -> torch.Tensor:
    """The published road, all queries at once: padded size, crop, wanted size."""
    h, w = prediction.mask_logits.shape[-2:]
    up = F.interpolate(prediction.mask_logits, size=(4 * h, 4 * w), mode="bilinear", align_corners=False)
    up = up[..., : real[0], : real[1]]
    return up if tuple(up.shape[-2:]) == size else F.interpolate(up, size=size, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------- semantic


def test_semantic_is_the_published_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_maps, "BLOCK", 3)  # nine blocks, those at the end smaller
    monkeypatch.setattr(class_maps, "LEFT_OUT", 0.0)
    prediction = random_prediction(0, batch=2)
    p, m = prediction.class_logits.softmax(-1)[..., :-1], full_size(prediction, (32, 32), (32, 32)).sigmoid()
    published = torch.einsum("bqk,bqhw->bkhw", p, m)
    got = inference.semantic(prediction, (32, 32))
    assert got.min() >= 0 and got.max() <= 1
    assert torch.equal(got.argmax(1), published.argmax(1))
    small = published.sum(1, keepdim=True) <= 1
    torch.testing.assert_close(got[small.expand_as(got)], published[small.expand_as(got)])
    union = 1 - torch.prod(1 - torch.einsum("bqk,bqhw->bqkhw", p, m), dim=1)
    torch.testing.assert_close(
        inference.semantic(prediction, (32, 32), combine="noisy-or"), union, atol=1e-5, rtol=1e-4
    )


def test_semantic_crops_before_it_resizes() -> None:
    """An object that covers the whole real picture covers the whole answer, whatever the padding."""
    masks = torch.full((1, 1, 8, 8), -20.0)
    masks[..., :4, :6] = 20.0
    prediction = Prediction(torch.tensor([[[9.0, -9.0]]]), masks)
    assert inference.semantic(prediction, (64, 64), valid=(14, 22)).min() > 0.9
    assert inference.instances(prediction, (64, 64), valid=(14, 22))[0].areas.tolist() == [64 * 64]
    assert inference.panoptic(prediction, (64, 64), valid=(14, 22))[0].areas.tolist() == [64 * 64]


@pytest.mark.parametrize("valid", [(33, 32), (0, 5), [(8, 8)]])
def test_impossible_valid_sizes(valid) -> None:
    with pytest.raises(ValueError, match="valid"):
        inference.semantic(random_prediction(0, batch=2), (32, 32), valid=valid)


def test_a_picture_is_the_same_alone_and_in_a_batch() -> None:
    prediction = random_prediction(3, batch=2)
    alone = Prediction(prediction.class_logits[1:], prediction.mask_logits[1:])
    sizes = [(30, 20), (17, 32)]
    torch.testing.assert_close(
        inference.semantic(prediction, (20, 20), sizes)[1:], inference.semantic(alone, (20, 20), sizes[1])
    )
    assert (
        inference.instances(prediction, (20, 20), sizes, score=0.1)[1]
        == (inference.instances(alone, (20, 20), sizes[1], score=0.1)[0])
    )


# ---------------------------------------------------------------- instances


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.5]), st.sampled_from([None, 7]))
def test_instances_are_the_published_ones(seed: int, score: float, limit: int | None) -> None:
    prediction, size, real = random_prediction(seed), (25, 19), (30, 27)
    (got,) = inference.instances(prediction, size, real, score=score, limit=limit)
    scores, labels, masks = published_instances(prediction, size, real, score, limit)
    np.testing.assert_allclose(got.scores, scores, atol=1e-5)
    assert got.labels.tolist() == labels
    np.testing.assert_array_equal(got.to_dense(), masks)


def published_instances(prediction, size, real, score, limit) -> tuple[list[float], list[int], np.ndarray]:
    """Every query with every class, each mask at full size."""
    p = prediction.class_logits[0].softmax(-1)[:, :-1]
    x = full_size(prediction, real, size)[0]
    every = []
    values, order = p.flatten().topk(limit or p.numel())
    for value, index in zip(values, order, strict=True):
        mask = x[index // 3] > 0
        quality = value * (x[index // 3].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        if mask.any() and quality >= score:
            every.append((float(quality), int(index % 3), mask.numpy()))
    every.sort(key=lambda one: -one[0])
    masks = np.array([one[2] for one in every], bool).reshape(-1, *size)
    return [one[0] for one in every], [one[1] for one in every], masks


def test_instances_keep_overlaps_and_respect_the_filters() -> None:
    masks = torch.full((1, 3, 8, 8), -20.0)
    masks[0, 0, :6], masks[0, 1, 2:], masks[0, 2, :1, :1] = 20.0, 20.0, 20.0
    classes = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]]])
    prediction = Prediction(classes, masks)
    (all_objects,) = inference.instances(prediction, (32, 32))
    assert len(all_objects) == 3
    assert all_objects.intersections(all_objects)[0, 1] > 0
    assert inference.instances(prediction, (32, 32), min_area=100)[0].labels.tolist() == [0, 1]
    assert inference.instances(prediction, (32, 32), thing=[False, True])[0].labels.tolist() == [1]
    assert len(inference.instances(prediction, (32, 32), score=1.0)[0]) == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        inference.instances(prediction, (32, 32), mask=1.0)


def test_no_query_survives() -> None:
    prediction = Prediction(torch.tensor([[[-9.0, 9.0]] * 3]), torch.randn(1, 3, 8, 8))
    for found in (inference.instances(prediction, (10, 12)), inference.panoptic(prediction, (10, 12))):
        assert len(found[0]) == 0
        assert found[0].shape == (10, 12)


# ---------------------------------------------------------------- panoptic


def published_merge(prediction, size, real, thing, score, overlap, inside_mask) -> tuple[np.ndarray, list[int]]:
    """The loop of the paper's merge, straight from its description."""
    best, labels = prediction.class_logits[0].softmax(-1).max(-1)
    masks = full_size(prediction, real, size)[0].sigmoid()
    kept = (labels != prediction.class_logits.shape[-1] - 1) & (best > score)
    best, labels, masks = best[kept], labels[kept], masks[kept]
    segments, found, stuff = np.zeros(size, np.int64), [], {}
    if not len(masks):
        return segments, found
    winner = (best[:, None, None] * masks).argmax(0)
    for k in range(len(masks)):
        own, original = winner == k, masks[k] >= 0.5
        pixels = own & original if inside_mask else own
        if not (own.any() and original.any() and pixels.any()) or own.sum() / original.sum() < overlap:
            continue
        label = int(labels[k])
        if not thing[label] and label in stuff:
            segments[pixels.numpy()] = stuff[label]
            continue
        found.append(label)
        segments[pixels.numpy()] = len(found)
        if not thing[label]:
            stuff[label] = len(found)
    return segments, found


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([(0.0, 0.0), (0.3, 0.5), (0.5, 0.8)]))
def test_panoptic_merge_is_the_published_loop(seed: int, inside: bool, thresholds: tuple[float, float]) -> None:
    prediction, thing = random_prediction(seed, queries=9), [True, False, False]
    arguments = ((24, 20), (30, 27), thing, *thresholds, inside)
    segments, labels = published_merge(prediction, *arguments)
    (got,) = inference.panoptic(
        prediction, *arguments[:3], score=thresholds[0], overlap=thresholds[1], inside_mask=inside
    )
    assert got.labels.tolist() == labels
    np.testing.assert_array_equal(got.to_label_map(), segments)


def test_panoptic_ids_are_unique_where_stuff_comes_between() -> None:
    """sky, person, sky, person: three segments; another library gives both persons one id."""
    masks = torch.full((1, 4, 8, 8), -20.0)
    for q in range(4):
        masks[0, q, 2 * q : 2 * q + 2] = 20.0
    classes = torch.tensor([[[0, 9.0, 0], [9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]]])
    (got,) = inference.panoptic(Prediction(classes, masks), (32, 32), thing=[True, False])
    assert got.labels.tolist() == [1, 0, 0]
    assert got.areas.tolist() == [512, 256, 256]
    assert len(set(got.ids.tolist())) == 3
    assert got.to_dense().sum(0).max() == 1


# ---------------------------------------------------------------- tiles


def shapes(kind: str, side: int = 24) -> Prediction:
    """Pictures as models draw them: what tiles settle without drawing, and what they must draw, both occur."""
    generator = torch.Generator().manual_seed(len(kind))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = torch.full((1, 6, side, side), -9.0)
    if kind == "discs":
        for q, (y, x, radius) in enumerate([(5, 6, 5), (6, 14, 4), (15, 6, 6), (16, 17, 7), (12, 12, 3), (2, 21, 2)]):
            masks[0, q] = ((radius - ((rows - y) ** 2 + (columns - x) ** 2).sqrt()) * 6).clamp(-9, 9)
    if kind == "everything and details":  # one mask covers all, thin and single-cell ones lie on it
        masks[0, 0] = 9.0
        masks[0, 1, :, 7], masks[0, 2, 13, :], masks[0, 3, 20, 20] = 9.0, 9.0, 9.0
        masks[0, 4, 3:9, 12:19] = 9.0
    if kind == "equal masks":  # the first query must win every pixel
        masks[0, 1:4, 4:18, 6:20] = 5.0
    if kind == "nearly nothing":
        masks += torch.randn(masks.shape, generator=generator)
        masks[0, 5, 0, 0] = 9.5
    if kind == "noise":
        masks = 4 * torch.randn(masks.shape, generator=generator)
    classes = torch.randn(1, 6, 4, generator=generator) * 0.2
    classes[0, torch.arange(6), torch.tensor([1, 0, 2, 1, 0, 2])] += 4.0
    if kind == "equal masks":
        classes[0, 1:4] = classes[0, 1].clone()
    return Prediction(classes, masks)


KINDS = ["discs", "everything and details", "equal masks", "nearly nothing", "noise"]
SIZES = [((96, 96), (96, 96)), ((96, 96), (384, 384)), ((90, 77), (200, 131)), ((96, 61), (40, 33)), ((33, 96), (9, 7))]


@pytest.mark.parametrize("tile", [8, 32])
@pytest.mark.parametrize(("real", "size"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_change_nothing(
    kind: str, real: tuple[int, int], size: tuple[int, int], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks pixel by pixel those of the stack of all masks at full size, at every ratio of sizes."""
    monkeypatch.setattr(tiles, "TILE", tile)
    monkeypatch.setattr(tiles, "AT_ONCE", 100)
    prediction, thing = shapes(kind), [True, False, True]
    (got,) = inference.instances(prediction, size, real, score=0.2)
    scores, labels, masks = published_instances(prediction, size, real, 0.2, None)
    np.testing.assert_allclose(got.scores, scores, atol=1e-5)
    if len(set(np.round(scores, 5))) == len(scores):  # among equal scores any order is right
        assert got.labels.tolist() == labels
        np.testing.assert_array_equal(got.to_dense(), masks)
    for inside in (False, True):
        segments, found = published_merge(prediction, size, real, thing, 0.3, 0.4, inside)
        (got,) = inference.panoptic(prediction, size, real, thing, score=0.3, overlap=0.4, inside_mask=inside)
        assert got.labels.tolist() == found
        np.testing.assert_array_equal(got.to_label_map(), segments)


def test_settled_tiles_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two half planes only the tiles of their border are made."""
    masks = torch.full((1, 2, 32, 32), -9.0)
    masks[0, 0, :, :16], masks[0, 1, :, 16:] = 9.0, 9.0
    drawn = []
    upsample = tiles.Tiles.upsample
    monkeypatch.setattr(tiles.Tiles, "upsample", lambda self, *at: drawn.append(at) or upsample(self, *at))
    prediction = Prediction(torch.tensor([[[9.0, 0], [9.0, 0]]]), masks)
    (got,) = inference.panoptic(prediction, (128, 128))
    assert got.areas.tolist() == [128 * 64, 128 * 64]
    assert 0 < sum(len(at[0]) for at in drawn) <= 2 * 2 * 32  # two masks, two columns of tiles of 4 pixels


# ---------------------------------------------------------------- count


def test_count_is_what_is_kept_and_what_is_expected() -> None:
    masks = torch.full((2, 3, 8, 8), -20.0)
    masks[0, 0, :3], masks[0, 1, 4:], masks[1, 0, :2] = 20.0, 20.0, 20.0
    prediction = Prediction(torch.zeros(2, 3, 3).index_fill_(2, torch.tensor([0]), 2.0), masks)
    p = float(prediction.class_logits[0, 0].softmax(0)[0])
    first, second = inference.count(prediction, (32, 32), thing=[True, False])
    assert (first.kept, second.kept) == (2, 1)
    assert first.expected == pytest.approx(3 * p) == second.expected
    (both, _) = inference.count(prediction, (32, 32), score=0.99)
    assert both.kept == 0
    assert both.expected == pytest.approx(3 * float(prediction.class_logits[0, 0].softmax(0)[:2].sum()))
    (regions,) = inference.count(dense_picture(), (16, 16), thing=[True, False])
    assert regions.kept == 2
    assert regions.expected == pytest.approx(2, abs=0.05)


# ---------------------------------------------------------------- dense


def dense_picture() -> DensePrediction:
    logits = torch.zeros(1, 3, 16, 16)
    logits[:, 2] = 5.0  # nothing
    for rows, columns, label in ((slice(0, 4), slice(0, 4), 0), (slice(8, 12), slice(8, 16), 0)):
        logits[0, label, rows, columns] = 10.0
    logits[0, 1, 14:, :] = 10.0
    return DensePrediction(logits)


def test_dense_predictions_give_components() -> None:
    prediction = dense_picture()
    (found,) = inference.instances(prediction, (16, 16), score=0.5)
    assert sorted(found.areas.tolist()) == [16, 32, 32]
    assert (found.scores > 0.98).all()
    assert inference.instances(prediction, (16, 16), thing=[True, False])[0].labels.tolist() == [0, 0]
    assert inference.instances(prediction, (16, 16), min_area=20)[0].areas.tolist() == [32, 32]
    (segments,) = inference.panoptic(prediction, (16, 16), thing=[True, False])
    assert segments.labels.tolist() == [0, 0, 1]
    probability = inference.semantic(prediction, (16, 16))
    assert probability.shape == (1, 2, 16, 16)
    torch.testing.assert_close(probability, prediction.logits.softmax(1)[:, :2])


def test_dense_valid_and_empty() -> None:
    prediction = dense_picture()
    (found,) = inference.instances(prediction, (8, 8), valid=(4, 4))
    assert found.areas.tolist() == [64]
    nothing = DensePrediction(torch.tensor([0.0, 0.0, 9.0])[None, :, None, None].expand(1, 3, 8, 8))
    assert inference.instances(nothing, (8, 8)) == [MaskSet.empty((8, 8))]
