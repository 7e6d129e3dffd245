"""Counting on tiles is exact: given the truth, every grid gives its count; full crops are split and reported."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskformer.masks import MaskSet
from maskformer.prediction import Prediction
from pipelines.config import PredictOptions
from pipelines.counting import Counter, SoftPoints, soft_points, split_grid
from pipelines.counting_metrics import centroids
from pipelines.grid import Grid
from pipelines.stitching import stitch
from tests.models import adapter
from tests.scenes import disc

ADAPTER = adapter(tile=64, tile_overlap=16)
LONE = 12.0  # logit of what is certain


def crowd_of(seed: int, shape: tuple[int, int], many: int, largest: float) -> MaskSet:
    """Discs that may overlap, as MaskSet on `shape`."""
    random = np.random.default_rng(seed)
    masks = []
    for _ in range(many):
        rows = disc(random.uniform(0, shape[0]), random.uniform(0, shape[1]), random.uniform(1.5, largest))
        mask = np.zeros(shape, bool)
        for row, start, stop in rows:
            if 0 <= row < shape[0]:
                mask[row, max(start, 0) : max(stop, 0)] = True
        if mask.any():
            masks.append(mask)
    dense = np.array(masks).reshape(-1, *shape)
    return MaskSet.from_dense(dense, [0] * len(dense))


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(40, 150), st.integers(40, 150)),
    st.integers(0, 40),
    st.integers(40, 90),
    st.integers(16, 30),
)
def test_the_truth_tiled_and_stitched_counts_the_truth(seed, shape, many, tile, overlap) -> None:
    truth = crowd_of(seed, shape, many, largest=overlap / 4)
    grid = Grid(shape, tile, overlap)
    tiles = [(tile, truth.crop(tile.window)) for tile in grid]
    assert len(stitch(grid, tiles)) == len(truth)
    owned = []
    for tile, seen in tiles:
        core = [(grid.cores[axis][at], grid.cores[axis][at + 1]) for axis, at in enumerate(tile.index)]
        owned.append(SoftPoints(centroids(seen), np.ones(len(seen))).shifted(*tile.offset).inside(core[0], core[1]))
    assert SoftPoints.concatenate(owned).p.sum() == len(truth), "each object owned once, by its centroid"


def test_ownership_is_half_open() -> None:
    points = SoftPoints(np.array([[10.0, 5.0]]), np.ones(1))
    assert not len(points.inside((0, 9), (0, 10)).p) and len(points.inside((0, 9), (10, 20)).p)


class Spots(nn.Module):
    """Knows the truth but has only so many queries: the picture's value n is object n's pixel; others are empty."""

    def __init__(self, queries: int, p: float = 1.0) -> None:
        super().__init__()
        self.queries, self.p = queries, p
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: torch.Tensor) -> Prediction:
        small = nn.functional.max_pool2d(x[:, :1], 4)[0, 0]
        self.seen.append(tuple(small.shape))
        numbers = [n for n in small.unique().tolist() if n > 0][: self.queries]
        masks = torch.full((1, self.queries, *small.shape), -LONE)
        classes = torch.tensor([-LONE, 0.0]).repeat(1, self.queries, 1)
        for query, number in enumerate(numbers):
            masks[0, query][small == number] = LONE
            classes[0, query, 0] = float(np.log(self.p / (1 - self.p))) if self.p < 1 else LONE
        return Prediction(classes, masks)


class Picture:
    """A source in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values.astype(np.float32), values.shape

    def read(self, window):
        return self.values[window][None], np.ones(self.values[window].shape, bool)


def spots(rows: int, columns: int, step: int = 16) -> Picture:
    """Objects of 8 x 8 px, numbered, on a lattice that the mask stride divides."""
    values = np.zeros((rows * step, columns * step))
    for number in range(rows * columns):
        top, left = number // columns * step + 4, number % columns * step + 4
        values[top : top + 8, left : left + 8] = number + 1
    return Picture(values)


def counter(model: nn.Module, **options) -> Counter:
    settled = PredictOptions(
        **{"tile": 64, "overlap": 32, "task": "instance", "score": 0.5, "device": "cpu", "precision": "fp32", **options}
    )
    return Counter(model, ADAPTER, settled, smallest=32)


def test_both_counts_of_a_lattice_are_right_on_every_grid() -> None:
    picture = spots(8, 10)
    for tile, overlap in ((64, 32), (96, 32), (160, 48), (256, 0)):
        result = counter(Spots(120), tile=tile, overlap=overlap).count(picture)
        assert result.count == 80 and result.expected == pytest.approx(80, abs=0.01), (tile, overlap)
        assert not result.full and not result.splits
        assert result.interval[0] <= 80 <= result.interval[1]


def test_half_precision_counts_too() -> None:
    result = counter(Spots(120), precision="bf16").count(spots(8, 10))
    assert result.count == 80 and result.expected == pytest.approx(80, abs=0.5)


def test_a_full_crop_is_split_until_its_queries_suffice() -> None:
    picture = spots(8, 8)  # 64 objects on 128 px
    model = Spots(20)
    result = counter(model, tile=128, overlap=32).count(picture)
    assert result.count == 64 and result.expected == pytest.approx(64, abs=0.01)
    assert result.splits > 1 and not result.full and result.crops == len(model.seen)


def test_what_stays_full_is_reported() -> None:
    picture = spots(4, 4, step=8)  # an object on every other pixel of the mask: 16 on 32 px, and 10 queries
    result = counter(Spots(10), tile=32, overlap=8).count(picture)
    assert result.count == 10 and result.splits == 0
    assert [full.to_dict() for full in result.full] == [
        {"rows": [0, 32], "columns": [0, 32], "taken": 10, "queries": 10}
    ]


def test_the_interval_is_as_wide_as_the_doubt() -> None:
    certain = counter(Spots(120)).count(spots(4, 4))
    doubtful = counter(Spots(120, p=0.75)).count(spots(4, 4))
    assert doubtful.count == 16 and doubtful.expected == pytest.approx(12, abs=0.05)
    low, high = doubtful.interval
    spread = 1.6449 * np.sqrt(16 * 0.75 * 0.25)
    assert (low, high) == pytest.approx((12 - spread, 12 + spread), abs=0.1)
    assert certain.interval[1] - certain.interval[0] < 0.2


def test_soft_points_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = Prediction(
        torch.randn(1, 7, 3, generator=generator), torch.randn(1, 7, 16, 16, generator=generator) - 0.5
    )
    prediction.mask_logits[0, 3] = -5
    prediction.mask_logits[0, 3, 4, 6] = -1
    points, best = soft_points(prediction, (50, 61), (True, True))
    p = prediction.class_logits[0].softmax(-1)
    for query in range(7):
        mask = prediction.mask_logits[0, query, :13, :16] > 0
        rows, columns = np.nonzero(mask.numpy()) if query != 3 else (np.array([4]), np.array([6]))
        expected = (4 * (columns.mean() + 0.5), 4 * (rows.mean() + 0.5))
        assert points.places[query] == pytest.approx(expected, abs=1e-4)
        assert points.p[query] == pytest.approx(float(p[query, :2].sum()), abs=1e-6)
        assert best[query] == pytest.approx(float(p[query, :2].max()), abs=1e-6)


@pytest.mark.parametrize("shape", [(128, 128), (100, 257), (64, 64)])
def test_a_split_has_two_parts_along_each_axis(shape) -> None:
    grid = split_grid(shape, 32)
    assert grid.counts == (2, 2) and all(tile < side for tile, side in zip(grid.tile, shape, strict=True))
