"""The rules of the plan: settings follow from measured objects, stay in their limits, and say why."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import sizing


def boxes(count: int, side: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Square boxes at random places inside `shape`."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, max(1, shape[0] - side), count)
    columns = random.integers(0, max(1, shape[1] - side), count)
    return np.stack([rows, columns, rows + side, columns + side], axis=1)


NONE = np.zeros((0, 4), np.int64)


@given(st.integers(0, 60), st.integers(1, 900), st.integers(40, 3000), st.integers(40, 3000), st.integers(0, 99))
def test_settings_always_fit_the_model_and_each_other(
    count: int, side: int, height: int, width: int, seed: int
) -> None:
    shapes, found = [(height, width)], [boxes(count, side, (height, width), seed)]
    crop = sizing.choose_crop(found, shapes).value
    assert crop % 32 == 0 and 32 <= crop <= 512
    overlap = sizing.choose_overlap(found, crop).value
    assert 0 < overlap <= crop // 2  # the grid wants overlap < tile, and more than half is wasted work
    queries = sizing.choose_queries(found, shapes, crop).value
    assert 20 <= queries <= 300
    split = sizing.choose_split(found, shapes, overlap).value
    assert split.validation + split.test < 1


def test_the_crop_is_four_large_objects_wide() -> None:
    shape = (3000, 3000)
    assert sizing.choose_crop([boxes(50, 60, shape)], [shape]).value == 256  # 240, up to a multiple of 32
    assert sizing.choose_crop([boxes(50, 5, shape)], [shape]).value == 128
    assert sizing.choose_crop([boxes(50, 400, shape)], [shape]).value == 512
    small = sizing.choose_crop([boxes(9, 60, (200, 500))], [(200, 500)])
    assert small.value == 192 and "200 px" in small.why


def test_a_single_giant_does_not_set_the_crop() -> None:
    """95 % of the objects count: one river among 99 houses leaves the houses their crop."""
    shape = (4000, 4000)
    found = np.concatenate([boxes(99, 40, shape), boxes(1, 3000, shape)])
    assert sizing.choose_crop([found], [shape]).value == 160


def test_the_overlap_holds_most_objects() -> None:
    shape = (2000, 2000)
    assert sizing.choose_overlap([boxes(50, 70, shape)], 288).value == 72
    assert sizing.choose_overlap([boxes(50, 4, shape)], 128).value == 32
    large = sizing.choose_overlap([boxes(50, 500, shape)], 512)
    assert large.value == 128 and "joined from parts" in large.why


def test_areas_have_no_size() -> None:
    """A whole lake is as long as the scene, and says nothing about the crop it takes to know water."""
    assert sizing.choose_crop([NONE], [(900, 900)]).value == 256
    assert sizing.choose_crop([NONE], [(100, 900)]).value == 96
    assert sizing.choose_overlap([NONE], 256).value == 32


def test_queries_follow_the_crowd() -> None:
    shape = (1024, 1024)
    few = sizing.choose_queries([boxes(10, 30, shape)], [shape], 256).value
    many = sizing.choose_queries([boxes(2000, 30, shape)], [shape], 256).value
    assert few == 20
    # 2000 boxes of 30 px over 1024²: about 2000 · (286/1024)² = 156 touch a crop; half as many again, and spread.
    assert 220 <= many <= 300


def test_objects_per_crop_counts_what_a_crop_touches() -> None:
    one = np.array([[100, 100, 110, 110]])
    counts = sizing.objects_per_crop([one], [(256, 256)], 128)
    assert counts.max() == 1 and counts.sum() == 4  # crops at 0 and 64 in both directions touch it
    assert sizing.objects_per_crop([NONE], [(256, 256)], 128).tolist() == [0]


def test_one_scene_is_cut_where_every_part_has_objects() -> None:
    """All objects lie in a strip at the bottom: cut across columns, every part has some; across rows, one has."""
    shape = (1000, 900)
    found = boxes(200, 20, (60, 900))
    found[:, [0, 2]] += 940
    choice = sizing.choose_split([found], [shape], 20)
    assert choice.value.axis == "columns"
    counts = sizing._objects_by_role([found], [shape], choice.value)
    assert min(counts.values()) > 10
    assert f"test {counts['test']}" in choice.why


def test_nothing_to_hold_out_is_said() -> None:
    one = np.array([[950, 880, 960, 890]])  # a single object, in the last corner
    choice = sizing.choose_split([one], [(1000, 900)], 8)
    assert (choice.value.validation, choice.value.test) == (0, 0)
    assert "everything is trained on" in choice.why


def test_several_scenes_are_dealt_out_whole_and_all_parts_have_objects() -> None:
    """Two of eight scenes are empty; a seed is found that leaves no part without objects."""
    shapes = [(300, 300)] * 8
    found = [boxes(0 if index in (2, 5) else 5, 20, (300, 300), index) for index in range(8)]
    choice = sizing.choose_split(found, shapes, 20)
    assert min(sizing._objects_by_role(found, shapes, choice.value).values()) > 0
    assert "dealt out whole" in choice.why and choice.value.gap == 0


def test_the_scene_with_most_objects_is_trained_on() -> None:
    shapes = [(300, 300)] * 3
    found = [boxes(count, 20, (300, 300)) for count in (60, 280, 20)]
    parts = sizing._objects_by_role(found, shapes, sizing.choose_split(found, shapes, 20).value)
    assert parts == {"train": 280, "validation": 20, "test": 60}


@pytest.mark.parametrize("shapes", [[(500, 500)], [(500, 500)] * 4])
def test_the_choice_is_the_same_every_time(shapes: list[tuple[int, int]]) -> None:
    found = [boxes(30, 20, shape, index) for index, shape in enumerate(shapes)]
    assert sizing.choose_split(found, shapes, 8) == sizing.choose_split(found, shapes, 8)
