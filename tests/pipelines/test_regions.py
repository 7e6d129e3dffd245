"""Regions of a class map, collected window by window: those of the whole map, whatever the windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer.masks import MaskSet
from pipelines.regions import RegionCollector, regions


def collected(ids: np.ndarray, classes: int, rows: int, columns: int, by_columns: bool) -> MaskSet:
    cuts = [[slice(a, min(a + step, n)) for a in range(0, n, step)] for n, step in zip(ids.shape, (rows, columns))]
    windows = [(r, c) for c in cuts[1] for r in cuts[0]] if by_columns else [(r, c) for r in cuts[0] for c in cuts[1]]
    collector = RegionCollector(ids.shape, classes)
    for window in windows:
        collector.add(window, ids[window])
    return collector.finish().canonical()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    rows=st.integers(1, 31),
    columns=st.integers(1, 31),
    by_columns=st.booleans(),
    seed=st.integers(0, 999),
)
def test_windows_give_the_regions_of_the_whole(shape, rows, columns, by_columns, seed):
    ids = np.random.default_rng(seed).choice([0, 1, 1, 1, 2, 255], shape).astype(np.uint8)  # long, winding regions
    whole = regions(ids, 2).canonical()
    assert collected(ids, 2, rows, columns, by_columns) == whole


def test_a_spiral_and_what_it_winds_round_are_two():
    ids = np.zeros((64, 64), np.uint8)
    low, high = 0, 63
    while low < high:
        ids[low, low : high + 1] = ids[low : high + 1, high] = ids[high, low : high + 1] = 1
        ids[low + 2 : high + 1, low] = 1
        if low + 2 < high:
            ids[low + 2, low : low + 3] = 1
        low, high = low + 2, high - 2
    ids[1, 1:60] = 2
    whole = regions(ids, 2)
    assert collected(ids, 2, 7, 5, True) == collected(ids, 2, 64, 3, False) == whole.canonical()
    assert (whole.labels == 0).sum() == 1


@pytest.mark.parametrize("value", [0, 255])
def test_nothing_anywhere(value):
    ids = np.full((9, 9), value, np.uint8)
    assert len(collected(ids, 3, 4, 4, False)) == 0 and len(regions(ids, 3)) == 0


def test_memory_follows_the_regions_not_the_scene():
    collector = RegionCollector((20_000, 300), 1)
    for start in range(0, 20_000, 500):
        collector.add((slice(start, start + 500), slice(0, 300)), np.ones((500, 300), np.uint8))
    held = sum(one.runs.nbytes + one.offsets.nbytes for one in collector._found)
    assert held < 20_000 * 300 / 10 and collector.finish().areas.tolist() == [20_000 * 300]
