"""Scores against brute force over all matchings, pycocotools, and cases counted by hand."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskformer.masks import MaskSet
from pipelines.average_precision import average_precision
from pipelines.metrics import (
    Pairs,
    box_f1,
    confusion,
    f1,
    f1_counts,
    foreground_iou,
    match,
    pairs_of,
    panoptic_counts,
    panoptic_quality,
    panoptic_scores,
    semantic_scores,
    without_ignored,
)

CLASSES = 2


@st.composite
def scenes(draw: st.DrawFn) -> tuple[MaskSet, MaskSet]:
    """Rectangles that overlap a lot: predictions and truth share a few corners, so IoUs near 0.5 and ties occur."""
    shape = (12, 14)

    def boxes(most: int) -> MaskSet:
        masks, labels, scores = [], [], []
        for _ in range(draw(st.integers(0, most))):
            top, left = draw(st.integers(0, 6)), draw(st.integers(0, 6))
            mask = np.zeros(shape, bool)
            mask[top : top + draw(st.integers(3, 6)), left : left + draw(st.integers(3, 6))] = True
            masks.append(mask)
            labels.append(draw(st.integers(0, CLASSES - 1)))
            scores.append(draw(st.sampled_from([0.25, 0.5, 0.75, 1.0])))
        dense = np.array(masks, bool).reshape(-1, *shape)
        return MaskSet.from_dense(dense, np.array(labels, np.int64), scores)

    return boxes(5), boxes(5)


def all_matchings(iou: np.ndarray) -> list[list[float]]:
    """IoUs of the pairs of every one-to-one matching, by trying them all (entries of 0 are no pairs)."""
    n, m = iou.shape
    found = []
    for size in range(min(n, m) + 1):
        for rows in itertools.combinations(range(n), size):
            for columns in itertools.permutations(range(m), size):
                values = [float(iou[r, c]) for r, c in zip(rows, columns, strict=True)]
                if all(values):
                    found.append(values)
    return found


def dense_iou(prediction: MaskSet, truth: MaskSet, label: int) -> np.ndarray:
    p = prediction.to_dense()[prediction.labels == label]
    t = truth.to_dense()[truth.labels == label]
    shared = (p[:, None] & t[None]).sum(axis=(2, 3))
    united = (p[:, None] | t[None]).sum(axis=(2, 3))
    return shared / np.maximum(united, 1)


@given(scenes())
def test_panoptic_quality_is_the_best_of_all_matchings(scene: tuple[MaskSet, MaskSet]) -> None:
    prediction, truth = scene
    scores = panoptic_quality(prediction, truth, CLASSES)
    expected = []
    for label in range(CLASSES):
        iou = dense_iou(prediction, truth, label)
        n, m = iou.shape
        if n + m == 0:
            assert math.isnan(scores["per_class"]["pq"][label])
            continue
        best = max(all_matchings(np.where(iou > 0.5, iou, 0)), key=sum)
        tp, total = len(best), (n + m) / 2
        assert scores["per_class"]["pq"][label] == pytest.approx(sum(best) / total, abs=1e-12)
        sq, rq = scores["per_class"]["sq"][label], scores["per_class"]["rq"][label]
        assert sq * rq == pytest.approx(sum(best) / total, abs=1e-12)
        if sum(abs(sum(other) - sum(best)) < 1e-12 for other in all_matchings(np.where(iou > 0.5, iou, 0))) == 1:
            assert rq == pytest.approx(tp / total) and sq == pytest.approx(sum(best) / tp if tp else 0)
        expected.append(sum(best) / total)
    if expected:
        assert scores["pq"] == pytest.approx(np.mean(expected), abs=1e-12)
    else:
        assert math.isnan(scores["pq"])


@given(scenes(), st.sampled_from([0.3, 0.5, 0.75]))
def test_f1_finds_as_many_pairs_as_there_can_be(scene: tuple[MaskSet, MaskSet], threshold: float) -> None:
    prediction, truth = scene
    counts = f1_counts(prediction, truth, CLASSES, threshold)
    for label in range(CLASSES):
        iou = dense_iou(prediction, truth, label)
        best = max(all_matchings(np.where(iou >= threshold, iou, 0)), key=lambda pairs: (len(pairs), sum(pairs)))
        assert counts.tp[label] == len(best)
        assert counts.iou[label] == pytest.approx(sum(best), abs=1e-12)
        assert counts.fp[label] == iou.shape[0] - len(best)
        assert counts.fn[label] == iou.shape[1] - len(best)
    total = len(prediction) + len(truth)
    value = f1(prediction, truth, threshold)
    assert math.isnan(value) if total == 0 else value == pytest.approx(2 * counts.tp.sum() / total)


@given(scenes())
def test_box_pairs_are_mask_pairs_of_filled_boxes(scene: tuple[MaskSet, MaskSet]) -> None:
    """The scenes are rectangles, so both kinds must agree to the last pair."""
    masks, boxes = (pairs_of(*scene, kind) for kind in ("mask", "box"))
    assert np.array_equal(masks.prediction, boxes.prediction) and np.array_equal(masks.truth, boxes.truth)
    assert np.array_equal(masks.iou, boxes.iou)


def coco_reference(pairs: list[tuple[MaskSet, MaskSet]], kind: str) -> np.ndarray:
    """Precision (thresholds, recalls, classes) of pycocotools, detections not cut."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(objects: MaskSet, image: int) -> list[dict]:
        rles = [coco_mask.encode(np.asfortranarray(one, np.uint8)) for one in objects.to_dense()]
        return [
            {
                "image_id": image,
                "category_id": int(label) + 1,
                "segmentation": rle,
                "bbox": [int(b[1]), int(b[0]), int(b[3] - b[1]), int(b[2] - b[0])],
                "area": int(area),
                "score": float(score),
                "iscrowd": 0,
            }
            for rle, label, score, b, area in zip(
                rles, objects.labels, objects.scores, objects.boxes, objects.areas, strict=True
            )
        ]

    truth, found = COCO(), COCO()
    for coco, side in ((truth, 1), (found, 0)):
        annotations = [row for image, pair in enumerate(pairs, 1) for row in rows(pair[side], image)]
        coco.dataset = {
            "images": [{"id": i, "height": p.shape[0], "width": p.shape[1]} for i, (p, _) in enumerate(pairs, 1)],
            "categories": [{"id": k + 1} for k in range(CLASSES)],
            "annotations": [{"id": n, **row} for n, row in enumerate(annotations, 1)],
        }
        coco.createIndex()
    evaluation = COCOeval(truth, found, "segm" if kind == "mask" else "bbox")
    evaluation.params.maxDets = [10**6]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def jittered(rng: np.random.Generator, shape: tuple[int, int], count: int) -> tuple[MaskSet, MaskSet]:
    """Overlapping discs, and predictions that are them moved, doubled, dropped and invented; scores often tie."""
    y, x = np.mgrid[: shape[0], : shape[1]]

    def discs(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return np.hypot(y - centres[:, 0, None, None], x - centres[:, 1, None, None]) < radii[:, None, None]

    centres, radii = rng.uniform(0, shape, (count, 2)), rng.uniform(3, 12, count)
    labels = rng.integers(0, CLASSES, count)
    truth = MaskSet.from_dense(discs(centres, radii), labels)
    chosen = rng.integers(0, count, count + 10)
    moved = centres[chosen] + rng.normal(0, rng.choice([0, 1, 3], (len(chosen), 1)), (len(chosen), 2))
    guess = np.where(rng.random(len(chosen)) < 0.9, labels[chosen], rng.integers(0, CLASSES, len(chosen)))
    scores = np.round(rng.random(len(chosen)), int(rng.integers(1, 3)))
    prediction = MaskSet.from_dense(discs(moved, radii[chosen]), guess, scores)
    return tuple(one[one.areas > 0] for one in (prediction, truth))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_equals_pycocotools(kind: str, seed: int, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(seed)
    pairs = [jittered(rng, (60 + 10 * n, 90), int(rng.integers(5, 60))) for n in range(3)]
    reference = coco_reference(pairs, kind)
    capsys.readouterr()
    scores = average_precision(pairs, CLASSES, kind=kind)  # type: ignore[arg-type]
    assert reference.min() >= 0 and 0.05 < reference.mean() < 0.95
    assert scores["ap"] == pytest.approx(reference.mean(), abs=1e-6)
    assert scores["ap50"] == pytest.approx(reference[0].mean(), abs=1e-6)
    assert scores["per_class"]["ap"] == pytest.approx(reference.mean(axis=(0, 1)), abs=1e-6)


def test_average_precision_is_not_cut_at_100() -> None:
    y, x = np.divmod(np.arange(400), 20)
    runs = np.column_stack([y, 2 * x, 2 * x + 1])
    objects = MaskSet((20, 40), runs, np.arange(401), np.zeros(400, np.int64), np.linspace(0, 1, 400))
    assert average_precision([(objects, objects)], 1)["ap"] == 1.0


@given(scenes())
def test_average_precision_equals_pycocotools_in_small(scene: tuple[MaskSet, MaskSet]) -> None:
    prediction, truth = scene
    scores = average_precision([scene], CLASSES)["per_class"]["ap"]
    if len(prediction) and len(truth):
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):
            reference = coco_reference([scene], "mask").mean(axis=(0, 1))
        reference = np.where(reference < 0, np.nan, reference)
        np.testing.assert_allclose(scores, reference, atol=1e-6)
    for label in range(CLASSES):
        assert math.isnan(scores[label]) == (not (truth.labels == label).any())


def two_rows() -> MaskSet:
    dense = np.zeros((2, 4, 10), bool)
    dense[0, 0], dense[1, 2] = True, True
    return MaskSet.from_dense(dense, [0, 0])


def test_predictions_in_ignored_ground_count_for_nothing() -> None:
    truth = two_rows()[:1]
    prediction = two_rows()
    assert f1(prediction, truth) == pytest.approx(2 / 3)
    ignore = np.zeros((4, 10), bool)
    ignore[2, :5] = True  # exactly half: still wrong
    assert f1(prediction, truth, ignore=ignore) == pytest.approx(2 / 3)
    ignore[2, 5] = True  # more than half: neither right nor wrong
    assert f1(prediction, truth, ignore=ignore) == 1.0
    assert panoptic_quality(prediction, truth, 1, ignore)["pq"] == 1.0
    assert average_precision([(prediction, truth)], 1, [ignore])["ap"] == 1.0
    assert len(without_ignored(prediction, ignore)) == 1 and without_ignored(prediction, None) is prediction


def test_a_perfect_and_an_empty_prediction() -> None:
    truth, nothing = two_rows(), MaskSet.empty((4, 10))
    assert panoptic_quality(truth, truth, 1) == {
        "pq": 1.0,
        "sq": 1.0,
        "rq": 1.0,
        "per_class": {"pq": [1.0], "sq": [1.0], "rq": [1.0]},
    }
    assert (f1(truth, truth), box_f1(truth, truth), average_precision([(truth, truth)], 1)["ap"]) == (1, 1, 1)
    assert (f1(nothing, truth), panoptic_quality(nothing, truth, 1)["pq"]) == (0, 0)
    assert average_precision([(nothing, truth)], 1)["ap"] == 0
    assert math.isnan(f1(nothing, nothing)) and math.isnan(average_precision([(truth, nothing)], 1)["ap"])


def test_exactly_half_is_f1_but_not_panoptic() -> None:
    truth = two_rows()[:1]
    half = MaskSet((4, 10), [[0, 0, 5]], [0, 1], [0])
    assert f1(half, truth, 0.5) == 1.0 and f1(half, truth, 0.75) == 0.0
    assert panoptic_quality(half, truth, 1)["pq"] == 0.0


def lines(*spans: tuple[int, int], scores: list[float] | None = None) -> MaskSet:
    """Objects on one line of 20 pixels."""
    runs = [[0, start, stop] for start, stop in spans]
    return MaskSet((1, 20), runs, np.arange(len(spans) + 1), np.zeros(len(spans), np.int64), scores)


def test_two_fair_matches_are_more_than_one_perfect_match() -> None:
    prediction, truth = lines((0, 10), (6, 10)), lines((0, 10), (0, 4))  # IoU 1, 0.4, 0.4 and 0
    assert f1_counts(prediction, truth, 1, 0.3).tp[0] == 2
    assert f1_counts(prediction, truth, 1, 0.5).tp[0] == 1


def test_of_equal_truths_the_last_is_taken_as_in_coco(capsys: pytest.CaptureFixture) -> None:
    truth = lines((0, 10), (2, 12))
    for later in ((2, 12), (0, 10)):  # only one of the two leaves this one its own truth
        prediction = lines((1, 11), later, scores=[0.9, 0.8])
        reference = coco_reference([(prediction, truth)], "mask")[:, :, 0].mean()
        assert average_precision([(prediction, truth)], 1)["ap"] == pytest.approx(reference, abs=1e-9)


def test_scenes_add_up() -> None:
    rng = np.random.default_rng(3)
    scenes = [jittered(rng, (60, 80), 30) for _ in range(2)]
    both = panoptic_counts(*scenes[0], CLASSES) + panoptic_counts(*scenes[1], CLASSES)
    shape = (60, 200)
    together = [
        MaskSet.concatenate([scenes[0][i].place(shape, (0, 0)), scenes[1][i].place(shape, (0, 100))]) for i in (0, 1)
    ]
    assert panoptic_scores(both)["pq"] == pytest.approx(panoptic_quality(*together, CLASSES)["pq"], abs=1e-12)


def test_canvases_must_agree() -> None:
    with pytest.raises(ValueError, match="one canvas"):
        f1(MaskSet.empty((4, 4)), MaskSet.empty((4, 5)))
    with pytest.raises(ValueError, match="one shape"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 1)


def test_matching_of_nothing() -> None:
    empty = np.zeros(0, np.int64)
    assert len(match(Pairs(empty, empty, np.zeros(0)), np.zeros(0))) == 0


def test_confusion_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 1]], np.uint8)
    prediction = np.array([[0, 1, 1, 2], [2, 2, 1, 255]], np.uint8)
    table = confusion(prediction, truth, 2)
    assert table.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 2]]
    scores = semantic_scores(table)
    assert scores["per_class"]["iou"].tolist() == [1 / 3, 2 / 3]
    assert scores["miou"] == 0.5 and scores["pixel_accuracy"] == 4 / 6
    assert scores["iou"] == 3 / 6 and scores["foreground_iou"] == 4 / 5
    ignore = np.zeros((2, 4), bool)
    ignore[0] = True
    assert confusion(prediction, truth, 2, ignore).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 2]]
    halves = confusion(prediction[:1], truth[:1], 2) + confusion(prediction[1:], truth[1:], 2)
    assert np.array_equal(halves, table)
    with pytest.raises(ValueError, match=r"expected values 0\.\.1"):
        confusion(prediction, truth, 1)


def test_classes_that_do_not_occur_are_not_in_the_mean() -> None:
    truth = np.ones((3, 3), np.uint8)
    scores = semantic_scores(confusion(truth, truth, 3))
    assert scores["miou"] == 1.0 and np.isnan(scores["per_class"]["iou"][1:]).all()
    empty = semantic_scores(np.zeros((4, 4), np.int64))
    assert all(math.isnan(empty[key]) for key in ("miou", "iou", "foreground_iou", "pixel_accuracy"))


def test_foreground_iou() -> None:
    a, b = np.array([True, True, False]), np.array([False, True, True])
    assert foreground_iou(a, b) == 1 / 3
    assert math.isnan(foreground_iou(a & ~a, b & ~b))


def test_twenty_thousand_objects_are_scored_without_a_table_of_all_pairs() -> None:
    """N x M float64 would be 3 GB. Seconds, not minutes: 20 s is ten times what it takes."""
    rng = np.random.default_rng(0)
    top, left = np.divmod(np.arange(20_000), 200)
    sizes = rng.integers(4, 14, 20_000)

    def squares(shift: int) -> MaskSet:
        rows = np.concatenate([np.arange(n) + 12 * t for n, t in zip(sizes, top, strict=True)])
        start = np.repeat(12 * left, sizes) + shift
        runs = np.column_stack([rows, start, start + np.repeat(sizes, sizes)])
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return MaskSet((1300, 2500), runs, offsets, np.zeros(20_000, np.int64), rng.random(20_000))

    begin = time.perf_counter()
    prediction, truth = squares(1), squares(0)
    right = 2 * sizes / (2 * (sizes + 1)) * (sizes - 1) / sizes  # IoU of a square moved by one pixel
    assert panoptic_quality(prediction, truth, 1)["pq"] == pytest.approx(right[right > 0.5].sum() / 20_000)
    assert f1(prediction, truth, 0.75) == pytest.approx((right >= 0.75).mean())
    assert box_f1(prediction, truth, 0.75) == pytest.approx((right >= 0.75).mean())
    assert average_precision([(prediction, truth)], 1)["ap"] > 0.1
    assert time.perf_counter() - begin < 20
