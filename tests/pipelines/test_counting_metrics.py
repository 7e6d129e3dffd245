"""Counting scores against brute force: every matching tried, every cell counted by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Annotation
from adapters.classes import Class, ClassSet
from maskformer.masks import MaskSet
from pipelines.counting_metrics import (
    RADII,
    cells,
    centroids,
    count_quality,
    count_record,
    counting_scores,
    localisation_f1,
    localise,
)
from pipelines.evaluation import combine, evaluate_scene


def dots(points, shape=(64, 64), labels=None) -> MaskSet:
    """One pixel an object, at (x, y)."""
    masks = np.zeros((len(points), *shape), bool)
    for mask, (x, y) in zip(masks, points):
        mask[y, x] = True
    return MaskSet.from_dense(masks, [0] * len(points) if labels is None else labels)


def best_by_trying(found, truth, radius):
    """(pairs, total distance) of the best one-to-one matching, by trying all of them."""
    few, many = (found, truth) if len(found) <= len(truth) else (truth, found)
    best = (0, 0.0)
    for choice in itertools.permutations(range(len(many)), len(few)):
        distances = [math.dist(few[i], many[j]) for i, j in enumerate(choice)]
        kept = [d for d in distances if d <= radius]
        if (len(kept), -sum(kept)) > (best[0], -best[1]):
            best = (len(kept), sum(kept))
    return best


place = st.tuples(st.integers(0, 15), st.integers(0, 15))


@given(st.lists(place, max_size=5), st.lists(place, max_size=5), st.sampled_from([1.0, 3.0, 6.5]))
def test_the_matching_is_the_best_there_is(found, truth, radius) -> None:
    a, b = np.array(found, float).reshape(-1, 2), np.array(truth, float).reshape(-1, 2)
    i, j = localise(a, b, radius)
    assert len(set(i.tolist())) == len(i) and len(set(j.tolist())) == len(j)
    distances = np.linalg.norm(a[i] - b[j], axis=1)
    assert (distances <= radius).all()
    pairs, total = best_by_trying(a.tolist(), b.tolist(), radius)
    assert len(i) == pairs and distances.sum() == pytest.approx(total)


def test_nearest_first_would_lose_a_pair() -> None:
    """Found 0 and 6, true 4 and 8.5 within 4.5: the nearest pair (6, 4) alone would leave the others unmatched."""
    found, truth = np.array([[0.0, 0], [6, 0]]), np.array([[4.0, 0], [8.5, 0]])
    assert len(localise(found, truth, 4.5)[0]) == 2


@given(st.lists(place, max_size=12), st.lists(place, max_size=12))
def test_game_counts_every_cell(found, truth) -> None:
    record = count_record(dots(found, (16, 16)), dots(truth, (16, 16)), 1)
    for level in range(4):
        side = 16 // 2**level
        errors = 0
        for top, left in itertools.product(range(0, 16, side), repeat=2):
            inside = [
                sum(left <= x < left + side and top <= y < top + side for x, y in points) for points in (found, truth)
            ]
            errors += abs(inside[0] - inside[1])
        assert record.game[level, 0] == errors
    assert record.game[0, 0] == abs(len(found) - len(truth))


def test_cells_of_a_picture_that_does_not_divide() -> None:
    points = np.array([[0.0, 0.0], [9.9, 6.9], [5.0, 3.5], [4.99, 3.49]])
    assert cells(points, (7, 10), 1).tolist() == [2, 0, 0, 2]
    assert cells(points, (7, 10), 0).tolist() == [4]


def test_centroids_are_those_of_the_pixels() -> None:
    random = np.random.default_rng(0)
    masks = random.random((6, 20, 30)) > 0.7
    expected = [[c.mean() + 0.5 for c in (np.nonzero(m)[1], np.nonzero(m)[0])] for m in masks]
    np.testing.assert_allclose(centroids(MaskSet.from_dense(masks, [0] * 6)), expected)


def test_scores_of_three_pictures_by_hand() -> None:
    pictures = [  # found, true
        ([(1, 1), (30, 30), (60, 60)], [(1, 2), (30, 38)]),  # one within 4, two within 10, one too many
        ([], []),
        ([(5, 5)], [(5, 5), (6, 40), (40, 6), (50, 50)]),
    ]
    scores = counting_scores([count_record(dots(f), dots(t), 1) for f, t in pictures])
    assert scores["mae"] == pytest.approx((1 + 0 + 3) / 3)
    assert scores["rmse"] == pytest.approx(math.sqrt((1 + 0 + 9) / 3))
    assert scores["nae"] == pytest.approx((1 / 2 + 3 / 4) / 2), "pictures of nobody have no relative error"
    assert scores["mean_count"] == pytest.approx(2)
    assert RADII[:2] == (4, 10)
    assert scores["loc_f1_4"] == pytest.approx(2 * 2 / (4 + 6))
    assert scores["loc_f1_10"] == pytest.approx(2 * 3 / (4 + 6))
    assert scores["loc_precision_10"] == pytest.approx(3 / 4) and scores["loc_recall_10"] == pytest.approx(3 / 6)
    assert scores["mae_up_to_20"] == scores["mae"] and scores["pictures_up_to_20"] == 3
    assert "mae_over_500" not in scores


def test_classes_are_matched_apart() -> None:
    found, truth = dots([(5, 5), (20, 20)], labels=[0, 1]), dots([(5, 5), (20, 20)], labels=[1, 1])
    scores = counting_scores([count_record(found, truth, 2)])
    assert scores["mae"] == 0, "two found, two there"
    assert scores["per_class"]["mae"].tolist() == [1, 1] and scores["loc_f1_4"] == pytest.approx(0.5)
    assert localisation_f1(found, truth) == pytest.approx(0.5)


def test_quality_prefers_the_right_count() -> None:
    truth = dots([(10, 10), (30, 30)])
    assert count_quality(truth, truth) == 1 == localisation_f1(dots([]), dots([]))
    assert count_quality(dots([(10, 10), (30, 30), (50, 50)]), truth) == pytest.approx(0.8 - 0.5)


def test_ten_thousand_people_in_seconds() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0, 4000, (10_000, 2))
    i, _ = localise(truth + random.normal(0, 2, truth.shape), truth, 10.0)
    assert len(i) > 9900


def test_evaluation_has_the_scores_where_the_adapter_counts() -> None:
    classes = ClassSet((Class("person"),))
    truth, found = dots([(10, 10), (30, 30)]), dots([(10, 11), (30, 30), (50, 50)])
    scene = evaluate_scene(found, None, Annotation(truth), classes, counts=True)
    scores = combine([scene, evaluate_scene(truth, None, Annotation(truth), classes, counts=True)])
    assert scores["mae"] == 0.5 and scores["rmse"] == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert {"nae", "game1", "game2", "game3", "loc_f1_4", "loc_f1_10", "mae_up_to_20"} <= set(scores)
    assert scores["per_class"]["person"]["mae"] == 0.5
    json.dumps(scores, allow_nan=False)
    assert "mae" not in combine([evaluate_scene(found, None, Annotation(truth), classes)])


def test_nobody_anywhere() -> None:
    classes = ClassSet((Class("person"),))
    nobody = MaskSet.empty((8, 8))
    scores = combine([evaluate_scene(nobody, None, Annotation(nobody), classes, counts=True)])
    assert scores["mae"] == 0 and scores["nae"] is None and scores["loc_f1_10"] is None
