"""Reasons stand above their keys, and the file says the same with and without them."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.commented_yaml import dump, without_none

VALUES = {
    "name": "crowns",
    "data": [{"source": "a: b#c.tif", "labels": None}, {"source": "ü.tif", "labels": "x.xml"}],
    "train": {"crop": 256, "augment": ["flip", "scale"]},
    "adapter": {"channels": [{"name": "red", "find": ["r", 1]}], "crop": None},
}


def test_a_reason_stands_above_its_key() -> None:
    lines = dump(VALUES, {"train.crop": "4 × 60 px", "data.labels": "found beside"}, "Hello\n\nyou").splitlines()
    assert lines[:3] == ["# Hello", "#", "# you"]
    crop = lines.index("  crop: 256")
    assert lines[crop - 1] == "  # 4 × 60 px"
    assert lines[lines.index("    # found beside") + 1] == "    labels: x.xml"
    assert "  augment: [flip, scale]" in lines


def test_comments_change_nothing() -> None:
    text = dump(VALUES, {"train.crop": "why: because # of this", "name": "a\nb"}, "header: x")
    assert yaml.safe_load(text) == without_none(VALUES)


def test_a_reason_without_its_key_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"train\.corp"):
        dump(VALUES, {"train.corp": "typo"})


# Line ends inside a key are beyond YAML's own writer, and beyond file and class names.
letters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
plain = st.one_of(st.integers(-9, 9), st.booleans(), st.text(letters, max_size=30), st.floats(-1, 1))
names = st.text(letters, min_size=1, max_size=8)
trees = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@given(st.dictionaries(names, trees, max_size=4))
def test_any_values_come_back(values: dict) -> None:
    assert yaml.safe_load(dump(values)) == values
