"""Classes: values of label files to indices; ignore, background and unknown are three different things."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.classes import BACKGROUND, IGNORE, NODATA_ID, Class, ClassSet, value_key
from adapters.errors import InputError

CROPS = ClassSet(
    (Class("tree", values=(1, "Baum")), Class("water", "stuff", values=(2,)), Class("road", "stuff")), (9, "unsure")
)


def test_values_names_and_ids():
    assert [CROPS.index(v) for v in (1, 1.0, "1", "1.0", "TREE", " baum ", 2, "road")] == [0, 0, 0, 0, 0, 0, 1, 2]
    assert CROPS.names == ("tree", "water", "road") and CROPS.is_thing == (True, False, False)
    assert [CROPS.id_of(i) for i in range(3)] == [1, 2, 3]
    assert len(ClassSet(tuple(Class(f"c{i}") for i in range(254)))) < NODATA_ID


def test_ignore_is_not_background():
    assert CROPS.codes({9: 5, "unsure": 1, 0: 7, 1: 2}, "l.tif") == {9: IGNORE, "unsure": IGNORE, 0: BACKGROUND, 1: 0}
    sparse = ClassSet((Class("tree", values=(1,)),), ignore_values=(0,))
    assert sparse.codes({0: 3, 1: 1}, "l.tif") == {0: IGNORE, 1: 0}
    zero = ClassSet((Class("shadow", values=(0,)),))
    assert zero.codes({0: 3}, "l.tif") == {0: 0}
    for value in (9, "unsure", 0, 7):
        with pytest.raises(InputError):
            CROPS.index(value)


def test_claims():
    assert CROPS.claims(1) and CROPS.claims(9) and not CROPS.claims(0)
    assert ClassSet((Class("a"),), background_values=(0,)).claims(0)


def test_unknown_values_are_named_with_their_counts():
    with pytest.raises(InputError) as raised:
        CROPS.codes({1: 4, 7: 12, "shed": 3}, "l.gpkg", "objects")
    assert str(raised.value) == (
        "l.gpkg: unknown class values 7 (12 objects), 'shed' (3 objects); known are tree (1, 'Baum'), water (2), road; "
        "ignore: 9, unsure; background: 0"
    )


def test_explicit_background_closes_zero():
    with pytest.raises(InputError, match=r"unknown class value 0 \(1 px\)"):
        ClassSet((Class("a"),), background_values=(5,)).codes({0: 1}, "x", "px")


def test_colours():
    many = ClassSet(tuple(Class(f"c{i}") for i in range(40)))
    assert len(set(many.colours)) == 40 and all(len(c) == 7 for c in many.colours)
    assert ClassSet((Class("a", colour="#AABBCC"),)).colours == ("#aabbcc",)


words = st.text(min_size=1, max_size=6).filter(lambda t: t.strip())


@given(
    names=st.lists(words, min_size=1, max_size=6, unique_by=value_key),
    kinds=st.lists(st.sampled_from(["thing", "stuff"]), min_size=6, max_size=6),
)
def test_json_round_trip(names, kinds):
    taken = {value_key(n) for n in names}
    ignored = tuple(v for v in (-7, 255) if value_key(v) not in taken)
    one = ClassSet(tuple(Class(n, k) for n, k in zip(names, kinds)), ignored)
    assert ClassSet.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"classes": []}, "expected 1 to 254 of them, found 0"),
        ({"classes": "tree"}, "expected a list, found str"),
        ({}, "'classes' is missing"),
        (
            {"classes": [{"name": "a", "kind": "x"}]},
            "class 'a': kind: expected one of thing, stuff, found 'x'",
        ),
        ({"classes": [{"name": "a", "colour": "red"}]}, "expected '#rrggbb', found 'red'"),
        ({"classes": [{"name": "a", "values": [1.5]}]}, "expected whole numbers and words, found 1.5"),
        ({"classes": [{"name": "a", "values": 1}]}, "expected a list of numbers and words, found 1"),
        ({"classes": [{"name": "a"}, {"name": "b", "values": ["A"]}]}, "'a' belongs to both class 'a' and class 'b'"),
        ({"classes": [{"name": "a", "values": [1]}], "ignore_values": [1]}, "'1' belongs to both class 'a' and ignore"),
        ({"classes": [{"name": "a"}], "ignored": [1]}, "unknown key 'ignored'; .*did you mean 'ignore_values'"),
    ],
)
def test_errors(data, fault):
    with pytest.raises(InputError, match=fault):
        ClassSet.from_dict(data)
