"""The whole road in memory with a model that knows the answer: what goes in must come out, to the pixel."""

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from scipy import ndimage

from maskformer.masks import MaskSet
from pipelines.assembly import NODATA, class_map, predict_in_memory
from pipelines.config import PredictOptions
from pipelines.predictor import Predictor
from pipelines.regions import regions
from tests.models import Oracle, adapter


class ArraySource:
    """A picture in memory with the reading side of a Source."""

    def __init__(self, array: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.array, self.shape = array, array.shape[1:]
        self.valid = np.ones(self.shape, bool) if valid is None else valid
        self.geometry = type("Geometry", (), {"crs": CRS.from_epsg(32617), "transform": Affine.identity()})()

    def read(self, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        return self.array[(slice(None), *window)].copy(), self.valid[window]


def blobs(shape: tuple[int, int], classes: int, seed: int) -> np.ndarray:
    """Smooth random regions of several classes that do not touch: (1, H, W) float32, 0 between them."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.standard_normal(shape), 6)
    parts, count = ndimage.label(field > 0.03)
    kinds = np.concatenate([[0], random.integers(1, classes + 1, count)])
    return kinds[parts][None].astype(np.float32)


def truth_of(array: np.ndarray, classes: int) -> MaskSet:
    return regions(array[0].astype(np.uint8), classes).canonical()


def options(**settings) -> PredictOptions:
    fixed = {"tile": 64, "overlap": 24, "score": 0.5, "min_area": 0, "device": "cpu", "precision": "fp32"}
    return PredictOptions(**{**fixed, **settings})


@settings(max_examples=12)
@given(
    st.integers(0, 999),
    st.tuples(st.integers(20, 200), st.integers(20, 200)),
    st.sampled_from([(64, 24), (96, 8), (48, 33)]),
    st.sampled_from(["none", "flip"]),
    st.sampled_from([1, 3]),
)
def test_objects_and_classes_come_back_to_the_pixel(seed, shape, grid, tta, batch) -> None:
    array = blobs(shape, 2, seed)
    predictor = Predictor(
        Oracle(2), adapter(2), options(tile=grid[0], overlap=grid[1], tta=tta, batch=batch, task="semantic")
    )
    scene, ids = predict_in_memory(ArraySource(array), predictor, {})
    assert (ids == array[0]).all()
    assert scene.objects.with_scores(np.zeros(len(scene.objects))) == truth_of(array, 2).with_scores(
        np.zeros(len(scene.objects))
    )


def test_instances_of_a_tiled_scene_equal_those_of_the_whole() -> None:
    array = blobs((180, 230), 1, 5)
    source = ArraySource(array)
    whole, _ = predict_in_memory(source, Predictor(Oracle(1), adapter(), options(tile=256)), {})
    tiled, _ = predict_in_memory(source, Predictor(Oracle(1), adapter(), options()), {})
    # A U-shaped region is two components in a tile that cuts its arms: what the tile sees as two, masks
    # alone cannot join. Everything else is one and the same.
    same = {m.tobytes() for m in whole.objects.to_dense()} & {m.tobytes() for m in tiled.objects.to_dense()}
    assert len(same) >= 0.8 * len(whole.objects)


def test_nothing_is_seen_where_there_are_no_data() -> None:
    array = blobs((130, 130), 1, 3)
    valid = np.ones((130, 130), bool)
    valid[:, :70] = False  # whole tiles without a valid pixel, and tiles cut through
    for fill in (0.0, 1.0, 77.0):
        filled = np.where(valid, array, fill)
        scene, ids = predict_in_memory(ArraySource(filled, valid), Predictor(Oracle(1), adapter(), options()), {})
        assert (ids[~valid] == NODATA).all() and (ids[valid] == array[0][valid]).all()
        assert not scene.objects.to_dense()[:, ~valid].any()
        if fill == 0.0:
            first = scene.objects
        assert scene.objects == first, "the fill value of nodata moves nothing"


def test_small_and_unlikely_objects_are_left_out_after_stitching() -> None:
    array = np.zeros((1, 128, 128), np.float32)
    array[0, 10:13, 10:13] = 1  # 9 px
    array[0, 30:100, 60:66] = 1  # cut by every seam, large as a whole
    predictor = Predictor(Oracle(1), adapter(), options(min_area=200))
    scene, _ = predict_in_memory(ArraySource(array), predictor, {})
    assert scene.objects.areas.tolist() == [70 * 6]


def test_class_map_leaves_nothing_where_no_class_is_likely_unless_classes_cover() -> None:
    probabilities = np.array([[[0.3, 0.6]], [[0.2, 0.1]]], np.float32)
    valid = np.ones((1, 2), bool)
    assert class_map(probabilities, valid, adapter(2), 0.5).tolist() == [[0, 1]]
    assert class_map(probabilities, valid, adapter(2, covers=True, overlap="exclusive"), 0.5).tolist() == [[1, 1]]
    assert class_map(probabilities, ~valid, adapter(2), 0.5).tolist() == [[NODATA, NODATA]]


def test_regions_of_a_per_pixel_network_may_have_a_threshold_of_their_own() -> None:
    class Bridge(Oracle):
        """Two squares of probability 0.9, joined by a strip of 0.6."""

        def forward(self, x):  # type: ignore[no-untyped-def]
            return type(super().forward(x))(torch.stack([x[:, 0], torch.zeros_like(x[:, 0])], 1))

    array = np.full((1, 40, 60), -9.0, np.float32)
    array[0, 10:30, 5:25] = array[0, 10:30, 35:55] = np.log(9)
    array[0, 18:22, 25:35] = np.log(1.5)
    predictor = Predictor(Bridge(1), adapter(), options(task="semantic"))
    together, ids = predict_in_memory(ArraySource(array), predictor, {"semantic": 0.5})
    apart, same = predict_in_memory(ArraySource(array), predictor, {"semantic": 0.5, "regions": 0.8})
    assert together.objects.areas.tolist() == [840] and sorted(apart.objects.areas.tolist()) == [400, 400]
    assert (ids == same).all()


def test_unknown_device_is_a_readable_error() -> None:
    from adapters.errors import InputError

    with pytest.raises(InputError, match="--device tpu9"):
        Predictor(Oracle(1), adapter(), options(device="tpu9"))
