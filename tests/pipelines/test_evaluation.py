"""A scene's scores: the right numbers under the right names, several scenes as one, and the trivial floor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.base import Annotation
from adapters.classes import Class, ClassSet
from maskformer.masks import MaskSet
from pipelines.average_precision import average_precision
from pipelines.boundaries import boundary_counts
from pipelines.evaluation import combine, evaluate_scene
from pipelines.metrics import f1, panoptic_quality
from pipelines.sources import open_source
from pipelines.trivial import most_common_class, trivial_baselines

CLASSES = ClassSet((Class("tree"), Class("house"), Class("lake", "stuff")))
KEYS = {
    *("miou", "iou", "foreground_iou", "pixel_accuracy", "pq", "sq", "rq"),
    *("ap", "ap50", "f1_50", "f1_75", "counts", "per_class"),
    *("boundary_iou", "f1_50_small", "f1_50_medium", "f1_50_large", "count_error", "count_mae"),
}
SHAPE = (60, 80)


def discs(count: int, seed: int, classes: int = 2, jitter: float = 0.0) -> MaskSet:
    rng, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    centres, radii = rng.uniform(8, (52, 72), (count, 2)), rng.uniform(3, 8, count)
    centres += noise.normal(0, jitter, centres.shape) if jitter else 0
    masks = np.hypot(y - centres[:, 0, None, None], x - centres[:, 1, None, None]) < radii[:, None, None]
    return MaskSet.from_dense(masks, rng.integers(0, classes, count), noise.random(count))


def class_map(objects: MaskSet) -> np.ndarray:
    return np.concatenate([[0], objects.labels + 1]).astype(np.uint8)[objects.to_label_map()]


def rectangle(label: int, rows: slice, columns: slice, score: float = 1.0) -> MaskSet:
    mask = np.zeros((1, *SHAPE), bool)
    mask[0, rows, columns] = True
    return MaskSet.from_dense(mask, [label], [score])


def test_perfect_prediction_has_every_key() -> None:
    truth = discs(12, 0)
    scores = combine([evaluate_scene(truth, class_map(truth), Annotation(truth), CLASSES)])
    assert set(scores) == KEYS
    rest = {"counts", "per_class", "f1_50_medium", "f1_50_large", "count_error", "count_mae"}
    assert all(scores[key] == 1.0 for key in KEYS - rest)
    assert scores["f1_50_medium"] is scores["f1_50_large"] is None  # discs of 8 px are small
    assert scores["count_error"] == scores["count_mae"] == 0
    assert scores["counts"] == {"scenes": 1, "truth": 12, "predicted": 12, "ignored": 0}
    assert set(scores["per_class"]) == {"tree", "house", "lake"}
    kinds = {"iou", "boundary_iou", "pq", "sq", "rq", "ap", "ap50", "f1_50", "f1_75"}
    errors = {"count_error", "count_mae"}
    assert set(scores["per_class"]["tree"]) == kinds | errors
    assert {scores["per_class"]["tree"][kind] for kind in kinds} == {1.0}
    assert {scores["per_class"]["lake"][kind] for kind in kinds} == {None}
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_counts_are_compared_scene_by_scene() -> None:
    """One too many here and one too few there are two errors, not none."""
    truth = discs(9, 0)
    more = MaskSet.concatenate([truth, rectangle(0, slice(0, 3), slice(0, 4))])
    scores = combine([evaluate_scene(p, None, Annotation(truth), CLASSES) for p in (more, truth[1:])])
    assert scores["count_error"] == 0 and scores["count_mae"] == 1
    gone = CLASSES.names[truth.labels[0]]
    assert scores["per_class"][gone]["count_mae"] == (1.0 if gone == "tree" else 0.5)


def test_f1_by_size_takes_the_truths_size() -> None:
    large, small = rectangle(0, slice(0, 50), slice(0, 60)), rectangle(0, slice(52, 60), slice(0, 10))
    truth = MaskSet.concatenate([large, small])
    # The large one is found too small (medium by its own area), the small one is missed, and one is invented.
    found = [rectangle(0, slice(0, 50), slice(0, 36)), rectangle(1, slice(0, 5), slice(70, 80))]
    scores = combine([evaluate_scene(MaskSet.concatenate(found), None, Annotation(truth), CLASSES)])
    assert scores["f1_50_medium"] == 1.0 and scores["f1_50_small"] == 0.0 and scores["f1_50_large"] is None


def eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        wide = np.pad(mask, 1)
        shifts = [
            wide[1 + a : wide.shape[0] - 1 + a, 1 + b : wide.shape[1] - 1 + b] for a in (-1, 0, 1) for b in (-1, 0, 1)
        ]
        mask = np.logical_and.reduce(shifts)
    return mask


@pytest.mark.parametrize("distance", [1, 3, 5])
def test_boundary_iou_is_that_of_the_paper(distance: int) -> None:
    """Against the definition: a mask minus the mask eroded `distance` times by a 3 x 3 square."""
    truth, prediction = class_map(discs(25, 1)), class_map(discs(25, 1, jitter=2.0))
    ignore = np.zeros(SHAPE, bool)
    ignore[:, :20] = True
    counts = boundary_counts(prediction, truth, 3, ignore, distance)
    for index in range(3):
        a, b = (mask & ~eroded(mask, distance) & ~ignore for mask in (truth == index + 1, prediction == index + 1))
        assert counts[:, index].tolist() == [(a & b).sum(), (a | b).sum()]
    scores = combine([evaluate_scene(discs(25, 1, jitter=2.0), None, Annotation(discs(25, 1)), CLASSES)])
    assert 0 < scores["boundary_iou"] < scores["miou"], "outlines are harder than insides"


def test_scores_are_those_of_the_metrics() -> None:
    truth, prediction = discs(25, 1), discs(25, 1, jitter=1.0)
    scores = combine([evaluate_scene(prediction, None, Annotation(truth), CLASSES)])
    expected = {
        **panoptic_quality(prediction, truth, 3),
        **average_precision([(prediction, truth)], 3),
        "f1_50": f1(prediction, truth, 0.5),
        "f1_75": f1(prediction, truth, 0.75),
    }
    for key in ("pq", "sq", "rq", "ap", "ap50", "f1_50", "f1_75"):
        assert 0 < scores[key] < 1
        assert scores[key] == pytest.approx(expected[key], abs=1e-6)
    assert scores["per_class"]["house"]["ap"] == pytest.approx(expected["per_class"]["ap"][1], abs=1e-6)


def test_two_scenes_score_as_one_canvas() -> None:
    scenes = [(discs(20, seed, jitter=1.0), discs(20, seed)) for seed in (2, 3)]
    parts = [evaluate_scene(p, class_map(p), Annotation(t), CLASSES, True) for p, t in scenes]
    both = (SHAPE[0], 2 * SHAPE[1])
    prediction, truth = (
        MaskSet.concatenate([one[side].place(both, (0, n * SHAPE[1])) for n, one in enumerate(scenes)])
        for side in (0, 1)
    )
    whole = evaluate_scene(prediction, class_map(prediction), Annotation(truth), CLASSES, True)
    one, two = combine(parts), combine([whole])
    assert one.pop("counts")["scenes"] == 2 and two.pop("counts")["scenes"] == 1
    assert one == two
    assert combine(parts[::-1])["pq"] == one["pq"]


def test_pooled_iou_tells_classes_apart_and_foreground_iou_does_not() -> None:
    truth = rectangle(0, slice(0, 60), slice(0, 40))
    wrong = rectangle(1, slice(0, 60), slice(0, 40))
    scores = combine([evaluate_scene(wrong, class_map(wrong), Annotation(truth), CLASSES)])
    assert (scores["iou"], scores["miou"], scores["foreground_iou"]) == (0.0, 0.0, 1.0)
    assert scores["pixel_accuracy"] == 0.5 and scores["pq"] == 0.0 and scores["f1_50"] == 0.0


def test_stuff_is_one_segment_and_no_detection() -> None:
    truth = MaskSet.concatenate([rectangle(2, slice(0, 20), slice(0, 80)), rectangle(2, slice(40, 60), slice(0, 80))])
    pieces = [rectangle(2, slice(top, top + 10), slice(0, 80)) for top in (0, 10, 40, 50)]
    prediction = MaskSet.concatenate(pieces)
    scores = combine([evaluate_scene(prediction, class_map(prediction), Annotation(truth), CLASSES)])
    assert scores["pq"] == 1.0 and scores["miou"] == 1.0
    assert scores["ap"] is None and scores["f1_50"] is None
    assert scores["counts"]["truth"] == scores["counts"]["predicted"] == 0


def test_ignored_ground_is_not_scored() -> None:
    truth, extra = rectangle(0, slice(0, 10), slice(0, 80)), rectangle(1, slice(30, 40), slice(0, 80))
    prediction = MaskSet.concatenate([truth, extra])
    ignore = np.zeros(SHAPE, bool)
    ignore[25:] = True
    plain = combine([evaluate_scene(prediction, class_map(prediction), Annotation(truth), CLASSES)])
    scores = combine([evaluate_scene(prediction, class_map(prediction), Annotation(truth, ignore), CLASSES)])
    assert plain["f1_50"] == pytest.approx(2 / 3, abs=1e-6) and plain["miou"] == 0.5
    assert scores["f1_50"] == 1.0 and scores["miou"] == 1.0 and scores["pixel_accuracy"] == 1.0
    assert scores["counts"]["ignored"] == 1 and plain["counts"]["ignored"] == 0


def test_covering_classes_leave_unlabelled_pixels_out() -> None:
    truth = rectangle(2, slice(0, 30), slice(0, 80))
    prediction = MaskSet.concatenate([truth, rectangle(0, slice(35, 55), slice(10, 60))])
    part = evaluate_scene(prediction, class_map(prediction), Annotation(truth), CLASSES, covers=True)
    scores = combine([part])
    assert scores["miou"] == 1.0 and scores["pq"] == 1.0 and scores["counts"]["ignored"] == 1


def test_nodata_of_the_map_is_not_scored() -> None:
    truth = rectangle(0, slice(0, 60), slice(0, 80))
    semantic = np.ones(SHAPE, np.uint8)
    semantic[:30] = 255
    assert combine([evaluate_scene(truth, semantic, Annotation(truth), CLASSES)])["miou"] == 1.0


def test_without_a_map_higher_scores_lie_on_top() -> None:
    low = rectangle(0, slice(0, 60), slice(0, 80), 0.2)
    high = rectangle(1, slice(0, 60), slice(0, 80), 0.9)
    truth = Annotation(high)
    for prediction in (MaskSet.concatenate([low, high]), MaskSet.concatenate([high, low])):
        assert combine([evaluate_scene(prediction, None, truth, CLASSES)])["miou"] == 1.0


def test_box_labels_are_scored_as_boxes() -> None:
    truth = discs(15, 4)
    squares = np.zeros((15, *SHAPE), bool)
    for mask, (top, left, bottom, right) in zip(squares, truth.boxes, strict=True):
        mask[top:bottom, left:right] = True
    prediction = MaskSet.from_dense(squares, truth.labels)
    scores = combine([evaluate_scene(prediction, None, Annotation(truth), CLASSES, box_labels=True)])
    assert set(scores) == KEYS | {"box_f1_50", "box_ap", "box_ap50"}
    assert scores["box_f1_50"] == scores["box_ap"] == 1.0
    assert scores["f1_50"] == 1.0 and scores["sq"] < 0.9  # a disc fills 79 % of its box


def test_nothing_found_and_nothing_there() -> None:
    empty = MaskSet.empty(SHAPE)
    nothing = np.zeros(SHAPE, np.uint8)
    scores = combine([evaluate_scene(empty, nothing, Annotation(empty), CLASSES)])
    assert scores["pixel_accuracy"] == 1.0
    assert all(scores[key] is None for key in ("miou", "iou", "pq", "ap", "f1_50", "f1_75"))
    truth = discs(5, 5)
    missed = combine([evaluate_scene(empty, nothing, Annotation(truth), CLASSES)])
    assert all(missed[key] == 0.0 for key in ("miou", "iou", "pq", "ap", "f1_50", "f1_75"))
    invented = combine([evaluate_scene(truth, class_map(truth), Annotation(empty), CLASSES)])
    assert invented["f1_50"] == 0.0 and invented["pq"] == 0.0 and invented["ap"] is None


def test_scenes_must_share_their_classes() -> None:
    empty = Annotation(MaskSet.empty(SHAPE))
    one = evaluate_scene(empty.objects, None, empty, CLASSES)
    other = evaluate_scene(empty.objects, None, empty, ClassSet((Class("road"),)))
    with pytest.raises(ValueError, match="same classes"):
        combine([one, other])
    with pytest.raises(ValueError, match="at least one scene"):
        combine([])


def scene(make_geotiff: Any, truth: MaskSet, name: str, seed: int, valid: np.ndarray | None = None) -> Path:
    """Four bands of noise; on objects the second band has a larger share and no band a telling value."""
    rng = np.random.default_rng(seed)
    light = rng.uniform(0.3, 1.0, SHAPE)
    inside = truth.to_label_map() > 0
    shares = np.full((4, *SHAPE), 0.2) + rng.uniform(0, 0.05, (4, *SHAPE))
    shares[1] += np.where(inside, 0.25, 0)
    path = make_geotiff((5000 * light * shares).astype(np.uint16), name, valid=valid)
    return Path(path)


def test_one_threshold_is_tuned_here_and_scored_there(make_geotiff: Any) -> None:
    truths = [discs(15, seed) for seed in (6, 7)]
    paths = [scene(make_geotiff, truth, f"{n}.tif", n) for n, truth in enumerate(truths)]
    training, held_out = ([(open_source(p), Annotation(t))] for p, t in zip(paths, truths, strict=True))
    rows = trivial_baselines(training, held_out)
    share = (truths[1].to_label_map() > 0).mean()
    assert set(rows) == {"all_background", "all_foreground", "threshold"}
    assert rows["all_background"]["foreground_iou"] == 0.0
    assert rows["all_foreground"]["foreground_iou"] == pytest.approx(share)
    assert rows["threshold"]["foreground_iou"] > 0.95  # no band alone tells, a ratio does
    assert "/" in rows["threshold"]["rule"] or "share" in rows["threshold"]["rule"]
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("covers", [False, True])
def test_the_most_common_class_is_scored_as_a_map_of_it_would_be(make_geotiff: Any, covers: bool) -> None:
    truths = [discs(15, seed, classes=3) for seed in (6, 7)]
    hidden = np.zeros(SHAPE, bool)
    hidden[:30, :20] = True
    paths = [scene(make_geotiff, truth, f"{n}.tif", n) for n, truth in enumerate(truths)]
    training, held_out = ([(open_source(p), Annotation(t, hidden))] for p, t in zip(paths, truths, strict=True))
    answer = most_common_class(training, held_out, CLASSES, covers)
    shares = np.bincount(class_map(truths[0])[~hidden], minlength=4)[1:]
    chosen = int(shares.argmax())
    assert answer.pop("rule") == f"{CLASSES.names[chosen]} everywhere"
    everywhere = np.full(SHAPE, chosen + 1, np.uint8)
    whole = evaluate_scene(MaskSet.empty(SHAPE), everywhere, Annotation(truths[1], hidden), CLASSES, covers=covers)
    assert answer == pytest.approx({key: combine([whole])[key] for key in answer}, abs=1e-6)
    assert most_common_class([], held_out, CLASSES, covers) == {}


def test_one_channel_dark_objects(make_geotiff: Any) -> None:
    truth = discs(10, 8)
    picture = np.where(truth.to_label_map() > 0, 50, 200).astype(np.uint8)
    place = [(open_source(make_geotiff(picture[None], "grey.tif")), Annotation(truth))]
    rows = trivial_baselines(place, place)
    assert rows["threshold"]["foreground_iou"] == 1.0 and "< 200" in rows["threshold"]["rule"]


def test_threshold_is_never_below_everything_on_its_own_ground(make_geotiff: Any) -> None:
    truth = discs(10, 9)
    noise = np.random.default_rng(0).integers(0, 255, (3, *SHAPE)).astype(np.uint8)
    place = [(open_source(make_geotiff(noise, "noise.tif")), Annotation(truth))]
    rows = trivial_baselines(place, place)
    assert rows["threshold"]["foreground_iou"] >= rows["all_foreground"]["foreground_iou"]


def test_pixels_without_data_and_ignored_ones_are_left_out(make_geotiff: Any) -> None:
    truth = rectangle(0, slice(0, 30), slice(0, 80))
    valid, ignore = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
    valid[45:], ignore[30:40] = False, True
    picture = np.full((1, *SHAPE), 7, np.uint8)
    place = [(open_source(make_geotiff(picture, "part.tif", valid=valid)), Annotation(truth, ignore))]
    rows = trivial_baselines(place, place)
    assert rows["all_foreground"]["foreground_iou"] == pytest.approx(30 / 35)


def test_nothing_to_tune_on(make_geotiff: Any) -> None:
    truth, empty = discs(10, 10), MaskSet.empty(SHAPE)
    source = open_source(scene(make_geotiff, truth, "scene.tif", 0))
    assert set(trivial_baselines([(source, Annotation(empty))], [(source, Annotation(truth))])) == {
        "all_background",
        "all_foreground",
    }
    assert "threshold" not in trivial_baselines([], [(source, Annotation(truth))])
    rows = trivial_baselines([(source, Annotation(truth))], [(source, Annotation(empty))])
    assert {row["foreground_iou"] for row in rows.values()} == {None}


def test_real_crowns_have_a_trivial_floor(shared_data: Path) -> None:
    """NEON tree crowns: left half tunes, right half is scored. Green shadows are not crowns: far from solved."""
    scenes = sorted(shared_data.rglob("OSBS_029.tif"))
    if not scenes:
        pytest.skip("OSBS_029.tif not in the shared data")
    import csv

    table = scenes[0].with_suffix(".csv")
    with table.open() as file:
        boxes = [[round(float(row[k])) for k in ("ymin", "ymax", "xmin", "xmax")] for row in csv.DictReader(file)]
    source = open_source(scenes[0])
    masks = np.zeros((len(boxes), *source.shape), bool)
    for mask, (top, bottom, left, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    objects = MaskSet.from_dense(masks, np.zeros(len(boxes), np.int64))
    half = source.shape[1] // 2
    windows = [(slice(0, source.shape[0]), part) for part in (slice(0, half), slice(half, source.shape[1]))]
    training, held_out = ([(source.view(w), Annotation(objects.crop(w)))] for w in windows)
    rows = trivial_baselines(training, held_out)
    floor = rows["all_foreground"]["foreground_iou"]
    assert 0.1 < floor < rows["threshold"]["foreground_iou"] < 0.9
