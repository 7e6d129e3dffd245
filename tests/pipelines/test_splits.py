"""Parts never share a pixel, whatever the scenes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import DataItem, SplitOptions
from pipelines.splits import ROLES, split_by_place

SIDES = st.integers(40, 400)


@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=8),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
    st.integers(0, 5),
    st.sampled_from(["longest", "rows", "columns"]),
    st.integers(0, 3),
)
def test_parts_are_disjoint_and_inside(shapes, validation, test, gap, axis, seed) -> None:
    items = [DataItem(source=f"{i}.tif") for i in range(len(shapes))]
    options = SplitOptions(validation=validation, test=test, gap=gap, axis=axis, seed=seed)
    split = split_by_place(items, shapes, options)
    seen = [np.zeros(shape, np.int8) for shape in shapes]
    for role in ROLES:
        for place in getattr(split, role):
            part = seen[place.item][place.window]
            assert part.size, "no empty part"
            part += 1
    assert max(int(s.max()) for s in seen) == 1
    assert split.train


def test_one_scene_is_cut_along_its_longer_side_with_a_gap() -> None:
    split = split_by_place([DataItem(source="a")], [(100, 200)], SplitOptions(validation=0.25, test=0.25, gap=10))
    columns = [getattr(split, role)[0].window[1] for role in ROLES]
    assert [(c.start, c.stop) for c in columns] == [(0, 100), (110, 150), (160, 200)]
    assert all(getattr(split, role)[0].window[0] == slice(0, 100) for role in ROLES)


def test_roles_of_the_config_stand() -> None:
    items = [
        DataItem(source="a", role="test"),
        DataItem(source="b", role="train"),
        DataItem(source="c", role="validation"),
    ]
    split = split_by_place(items, [(8, 8)] * 3, SplitOptions())
    assert [p[0].item for p in (split.train, split.validation, split.test)] == [1, 2, 0]


def test_many_scenes_are_dealt_whole_and_the_same_each_time() -> None:
    items = [DataItem(source=str(i)) for i in range(10)]
    split = split_by_place(items, [(8, 8)] * 10, SplitOptions(validation=0.2, test=0.3, seed=4))
    assert (len(split.train), len(split.validation), len(split.test)) == (5, 2, 3)
    assert split == split_by_place(items, [(8, 8)] * 10, SplitOptions(validation=0.2, test=0.3, seed=4))


def test_a_config_may_name_held_out_scenes_alone() -> None:
    split = split_by_place([DataItem(source="only.tif", role="test")], [(8, 8)], SplitOptions())
    assert (split.train, split.validation, len(split.test)) == ([], [], 1)
