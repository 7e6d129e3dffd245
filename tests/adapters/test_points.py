"""The rule by which points become discs, and the adapter that carries it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import DomainAdapter
from adapters.classes import Class, ClassSet
from adapters.crowd import crowd
from adapters.errors import InputError
from adapters.points import PointRule


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), max_size=12), st.integers(1, 4))
def test_radii_against_all_distances(points, neighbours) -> None:
    points = np.array(points).reshape(-1, 2)
    radii = PointRule(neighbours=neighbours, share=0.5, smallest=2, largest=20).radii(points)
    for i, point in enumerate(points):
        others = sorted(np.linalg.norm(np.delete(points, i, axis=0) - point, axis=1))[:neighbours]
        expected = np.clip(0.5 * np.mean(others), 2, 20) if others else 20
        assert radii[i] == pytest.approx(expected)


def test_the_rule_travels_with_the_adapter() -> None:
    adapter = crowd(points=PointRule(neighbours=2, outside="clip"), tile=256)
    again = DomainAdapter.from_dict(adapter.to_dict())
    assert again == adapter and again.points is not None and again.points.outside == "clip"
    old = {key: value for key, value in adapter.to_dict().items() if key != "points"}
    assert DomainAdapter.from_dict(old).points is None, "an adapter written before there were points"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"neighbours": 0}, "neighbours"),
        ({"smallest": 0.5}, "smallest: expected 1 px"),
        ({"smallest": 5, "largest": 3}, "largest: expected at least smallest"),
        ({"share": float("nan")}, "share"),
        ({"outside": "ignore"}, "outside: expected one of drop, clip"),
    ],
)
def test_an_impossible_rule_is_refused(settings, words) -> None:
    with pytest.raises(InputError, match=words):
        PointRule(**settings)


def test_stuff_cannot_be_counted() -> None:
    with pytest.raises(InputError, match="'water' is stuff"):
        crowd(ClassSet((Class("person"), Class("water", "stuff"))))
