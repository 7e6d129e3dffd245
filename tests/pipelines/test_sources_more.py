"""Scenes at another resolution, in physical units, in several files, behind an address."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from adapters.channels import Channel, ChannelSet
from adapters.errors import InputError
from pipelines.config import PredictOptions
from pipelines.prediction import predict_scene
from pipelines.sources import open_for, open_source
from pipelines.sources.base import Geometry, Source
from pipelines.sources.resampled import ResampledSource, at_resolution, pixel_metres
from tests.models import adapter, tiny_bundle

UTM = Affine(0.5, 0, 400_000, 0, -0.5, 3_300_000)
OPTIONS = PredictOptions(tile=64, overlap=16, score=0.05, min_area=1, device="cpu", precision="fp32")


class Pixels(Source):
    """A source in memory."""

    def __init__(
        self, array: np.ndarray, valid: np.ndarray | None = None, transform: Affine = UTM, epsg: int | None = 32617
    ) -> None:
        crs = CRS.from_epsg(epsg) if epsg else None
        super().__init__("scene", array.shape[1:], ("a",) * len(array), array.dtype, None, Geometry(crs, transform))
        self.array = array
        self.valid = np.ones(array.shape[1:], bool) if valid is None else valid

    def _read(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        return self.array[:, rows, columns], self.valid[rows, columns]

    def _close(self) -> None:
        pass


def whole(source: Source) -> tuple[np.ndarray, np.ndarray]:
    return source.read(tuple(slice(0, n) for n in source.shape))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    seed=st.integers(0, 999),
)
def test_a_window_holds_what_the_whole_holds(shape: tuple[int, int], ratio: tuple[float, float], seed: int) -> None:
    random = np.random.default_rng(seed)
    source = ResampledSource(Pixels(random.random((2, *shape)), random.random(shape) < 0.8), ratio)
    array, valid = whole(source)
    top, left = (int(random.integers(0, n)) for n in source.shape)
    window = (slice(top, source.shape[0]), slice(left, source.shape[1]))
    part, seen = source.read(window)
    np.testing.assert_allclose(part, array[(slice(None), *window)], atol=1e-6)
    assert np.array_equal(seen, valid[window])
    assert array.dtype == np.float32 and (array[:, ~valid] == 0).all()


def test_values_of_pixels_without_data_do_not_matter() -> None:
    random = np.random.default_rng(0)
    array, valid = random.random((3, 60, 50)), random.random((60, 50)) < 0.7
    other = np.where(valid, array, 1e6)
    results = [whole(ResampledSource(Pixels(values, valid), (1.7, 1.7))) for values in (array, other)]
    assert np.array_equal(results[0][0], results[1][0]) and np.array_equal(results[0][1], results[1][1])


def test_a_ramp_stays_a_ramp_in_its_place() -> None:
    """A linear picture resampled by any ratio is linear still, at the new pixels' centres: no half-pixel shift."""
    y, x = np.mgrid[:80, :90] + 0.5
    for ratio in (0.4, 1.5, 2.0, 3.3):
        source = ResampledSource(Pixels(np.stack([y, x])), (ratio, ratio))
        array, valid = whole(source)
        rows, columns = (np.arange(n) + 0.5 for n in source.shape)
        inner = (slice(4, -4), slice(4, -4))
        for plane, wanted in zip(array, (ratio * rows[:, None], ratio * columns), strict=True):
            # A triangle of a few whole pixels has its middle 0.03 of a pixel off at worst.
            np.testing.assert_allclose(plane[inner], np.broadcast_to(wanted, valid.shape)[inner], atol=0.05)
        corner = source.geometry.transform @ (source.shape[1], source.shape[0])
        assert np.abs(np.array(corner) - np.array(UTM @ (90, 80))).max() <= 0.5 * ratio


def test_pixels_are_measured_on_the_ground() -> None:
    north = Pixels(np.zeros((1, 100, 100)), transform=Affine(1e-4, 0, 10, 0, -1e-4, 60), epsg=4326)
    height, width = pixel_metres(north)
    assert height == pytest.approx(11.141, abs=0.01) and width == pytest.approx(5.58, abs=0.01)
    seen = at_resolution(north, 10.0)
    assert seen.shape == (111, 56)
    assert pixel_metres(seen) == pytest.approx((10, 10), rel=0.02)
    mercator = Pixels(
        np.zeros((1, 100, 100)), transform=Affine(2, 0, 0, 0, -2, 8_399_738), epsg=3857
    )  # 60 degrees north
    assert pixel_metres(mercator) == pytest.approx((1.0, 1.0), rel=0.01)
    feet = Pixels(np.zeros((1, 10, 10)), transform=Affine(1, 0, 1e6, 0, -1, 2e5), epsg=2263)
    assert pixel_metres(feet) == pytest.approx((0.3048, 0.3048), rel=1e-3)
    rotated = Pixels(np.zeros((1, 10, 10)), transform=UTM @ Affine.rotation(30))
    assert pixel_metres(rotated) == pytest.approx((0.5, 0.5), rel=1e-6)
    assert at_resolution(rotated, 0.502) is rotated, "a percent is not worth a resampling"
    nowhere = Pixels(np.zeros((1, 10, 10)), epsg=None)
    assert at_resolution(nowhere, 3.0) is nowhere
    with pytest.raises(InputError, match="not the same kind of picture"):
        at_resolution(rotated, 500.0)


def test_a_scene_is_predicted_at_the_models_resolution(make_geotiff: Any, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(1, 255, (3, 200, 260)).astype(np.uint8)
    scene = make_geotiff(picture, crs="EPSG:32617", transform=UTM)
    rgb = adapter(channels=("red", "green", "blue"), resolution=1.0)
    folder = predict_scene(scene, tiny_bundle(tmp_path / "bundle", rgb), tmp_path / "out", OPTIONS)
    with rasterio.open(folder / "semantic.tif") as file:
        assert file.shape == (100, 130) and file.transform.almost_equals(UTM @ Affine.scale(2))
    with open_for(scene, rgb) as source:
        assert source.shape == (100, 130)


def encoded(path: Path, values: np.ndarray, scale: float, offset: float) -> Path:
    """Reflectance in integers, and in the header what they mean."""
    stored = np.rint((values - offset) / scale).astype(np.uint16)
    profile = {"width": values.shape[2], "height": values.shape[1], "count": len(values), "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32617", transform=UTM, nodata=0, **profile) as file:
        file.write(stored)
        file.scales, file.offsets = (scale,) * len(values), (offset,) * len(values)
    return path


def test_two_encodings_of_one_reflectance_are_the_same_input(tmp_path: Path) -> None:
    """Landsat's Collection 2 and Sentinel-2 before and after baseline 04.00 differ in scale and offset only."""
    values = np.random.default_rng(0).uniform(0.02, 0.6, (2, 30, 40))
    files = [
        encoded(tmp_path / f"{n}.tif", values, scale, offset)
        for n, (scale, offset) in enumerate([(1e-4, 0.0), (1e-4, -0.1), (2.75e-5, -0.2)])
    ]
    physical = ChannelSet(tuple(Channel(f"band{n}", (n,), 0.3, 0.2, units="physical") for n in (1, 2)))
    inputs = []
    for file in files:
        with open_source(file, physical) as source:
            array, valid = whole(source)
            assert valid.all() and source.dtype == array.dtype == np.float32
            inputs.append(physical.normalise(array))
    for other in inputs[1:]:
        np.testing.assert_allclose(inputs[0], other, atol=1e-3)
    with open_source(files[2]) as source:
        assert whole(source)[0].dtype == np.uint16, "as stored, unless a channel asks"
    assert ChannelSet.from_list(physical.to_list()) == physical


def band_file(path: Path, values: np.ndarray, pixel: float, **changes: Any) -> None:
    settings = {"crs": "EPSG:32617", "transform": Affine(pixel, 0, 400_000, 0, -pixel, 3_300_000), **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", "GTiff", width=values.shape[1], height=values.shape[0], count=1, dtype="uint16", **settings
    ) as file:
        file.write(values, 1)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A folder as Sentinel-2 is delivered: bands at 10 and 20 m, one of them at both, and a preview of three bands."""
    random = np.random.default_rng(0)
    red, nir = (random.integers(1, 4000, (80, 60)).astype(np.uint16) for _ in range(2))
    folder = tmp_path / "product"
    for name, values in (("B04", red), ("B08", nir)):
        band_file(folder / "R10m" / f"T17_20210605_{name}_10m.tif", values, 10.0)
    band_file(folder / "R20m" / "T17_20210605_B04_20m.tif", red[::2, ::2], 20.0)
    band_file(folder / "R20m" / "T17_20210605_B11_20m.tif", np.full((40, 30), 700, np.uint16), 20.0)
    with rasterio.open(folder / "T17_20210605_TCI_10m.tif", "w", "GTiff", 60, 80, 3, dtype="uint8") as file:
        file.write(np.zeros((3, 80, 60), np.uint8))
    return folder


def test_a_folder_of_bands_is_a_scene(product: Path) -> None:
    channels = ChannelSet((Channel("B11"), Channel("B04"), Channel("B99", impute="zero")))
    with open_source(product, channels) as source:
        assert source.shape == (80, 60) and source.channels == ("B11", "B04", "B99")
        assert source.geometry.transform.a == 10.0 and source.imputed == (False, False, True)
        array, valid = source.read((slice(8, 40), slice(0, 60)))
        digest = source.digest()
    assert valid.all() and (array[0] == 700).all() and (array[2] == 0).all()
    with rasterio.open(product / "R10m" / "T17_20210605_B04_10m.tif") as file:
        assert np.array_equal(array[1], file.read(1)[8:40])
    with open_source(product, ChannelSet((Channel("B11"),))) as source:
        assert source.shape == (40, 30), "the grid is the finest among the bands in use"
        assert source.digest() != digest
    with pytest.raises(InputError, match="no band 'B12'"):
        open_source(product, ChannelSet((Channel("B12"),)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"crs": "EPSG:32618"}, "another CRS"),
        ({"transform": Affine(20, 0, 500_000, 0, -20, 3_300_000)}, "must cover the same ground"),
    ],
)
def test_bands_on_different_ground_are_refused(product: Path, changes: dict[str, Any], says: str) -> None:
    band_file(product / "R20m" / "T17_20210605_B11_20m.tif", np.zeros((40, 30), np.uint16), 20.0, **changes)
    with pytest.raises(InputError, match=says):
        open_source(product, ChannelSet((Channel("B11"), Channel("B04"))))


def test_a_folder_without_bands_is_refused(tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "rgb.tif", "w", "GTiff", 6, 8, 3, dtype="uint8") as file:
        file.write(np.zeros((3, 8, 6), np.uint8))
    with pytest.raises(InputError, match="no raster with a single band"):
        open_source(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    program = Path(__file__).parents[1] / "range_server.py"
    with subprocess.Popen([sys.executable, program, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()


def test_a_scene_behind_an_address_gives_the_bytes_of_the_file(make_geotiff: Any, tmp_path: Path, server: str) -> None:
    picture = np.random.default_rng(0).integers(1, 255, (3, 130, 170)).astype(np.uint8)
    scene = make_geotiff(picture, crs="EPSG:32617", transform=UTM)
    assert scene.parent == tmp_path
    bundle = tiny_bundle(tmp_path / "bundle", adapter(channels=("red", "green", "blue")))
    here = predict_scene(scene, bundle, tmp_path / "here", OPTIONS)
    there = predict_scene(f"{server}/{scene.name}?signature=secret", bundle, tmp_path / "there", OPTIONS)
    assert there.name == here.name == "scene"
    for name in ("semantic.tif", "objects.parquet"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    for file in there.iterdir():
        assert b"secret" not in file.read_bytes(), f"{file.name}: a signature is a password"
    with pytest.raises(InputError, match=r"nothing\.tif"):
        open_source(f"{server}/nothing.tif")
