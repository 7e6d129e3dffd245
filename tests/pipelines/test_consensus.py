"""Flipped views agree by matching, majority and mean score."""

import numpy as np
import pytest

from maskformer.masks import MaskSet
from pipelines.consensus import agree


def square(top: int, left: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((16, 16), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def views(*sets: list[tuple[np.ndarray, int, float]]) -> list[MaskSet]:
    return [
        MaskSet.from_dense(
            np.stack([m for m, _, _ in s]) if s else np.zeros((0, 16, 16), bool),
            np.array([label for _, label, _ in s], np.int64),
            np.array([score for _, _, score in s], np.float32),
        )
        for s in sets
    ]


def test_equal_views_change_nothing() -> None:
    one = [(square(1, 1), 0, 0.8), (square(8, 8), 1, 0.6)]
    assert agree(views(one, one, one, one)) == views(one)[0]


def test_what_no_other_view_sees_sinks_in_score_but_keeps_its_mask() -> None:
    merged = agree(views([(square(1, 1), 0, 0.8)], [], [], []))
    assert merged.scores == pytest.approx([0.2])
    assert (merged.to_dense()[0] == square(1, 1)).all()


def test_the_majority_draws_the_mask() -> None:
    merged = agree(views([(square(1, 1), 0, 0.9)], [(square(2, 1), 0, 0.6)], [(square(2, 1), 0, 0.6)]))
    assert (merged.to_dense()[0] == square(2, 1)).all()
    assert merged.scores == pytest.approx([0.7])


def test_classes_do_not_mix_and_matching_is_one_to_one() -> None:
    other_class = agree(views([(square(1, 1), 0, 0.9)], [(square(1, 1), 1, 0.9)]))
    assert other_class.scores == pytest.approx([0.45])
    twins = agree(views([(square(1, 1), 0, 0.8), (square(1, 1), 0, 0.6)], [(square(1, 1), 0, 1.0)]))
    assert sorted(twins.scores.tolist()) == pytest.approx([0.3, 0.9]) or sorted(twins.scores.tolist()) == pytest.approx(
        [0.4, 0.8]
    )
