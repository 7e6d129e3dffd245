"""Scenes that trip systems up, predicted whole: tiny, turned, far north, in feet, over the antimeridian, no room."""

import json
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from pipelines import prediction
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.prediction import predict_scene
from tests.models import Oracle, tiny_bundle

OPTIONS = PredictOptions(task="semantic", device="cpu", precision="fp32", min_area=1)
UTM = Affine(1.0, 0, 500_000, 0, -1.0, 6_650_000)


def adapter() -> DomainAdapter:
    return DomainAdapter(
        "hard",
        ChannelSet((Channel("value", (1,)),)),
        ClassSet((Class("a"),)),
        overlap="exclusive",
        tile=32,
        tile_overlap=8,
    )


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its model reads the truth off the first channel."""
    monkeypatch.setattr(Bundle, "build", lambda self, device="cpu": Oracle(1))
    return tiny_bundle(tmp_path / "bundle", adapter())


def scene(path: Path, values: np.ndarray, crs: str | None = "EPSG:32633", transform: Affine = UTM, **profile) -> Path:
    height, width = values.shape
    kind = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "height": height, "width": width, **profile}
    with rasterio.open(path, "w", crs=crs, transform=transform, **kind) as file:
        file.write(values, 1)
    return path


def square(shape=(40, 50), size: int = 20) -> np.ndarray:
    values = np.zeros(shape, np.uint8)
    values[10 : 10 + size, 12 : 12 + size] = 1
    return values


def objects(folder: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_file(folder / "objects.gpkg")


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (3, 5), (31, 33)])
def test_scenes_smaller_than_a_tile_and_one_pixel_wide(bundle: Path, tmp_path: Path, shape) -> None:
    folder = predict_scene(scene(tmp_path / "s.tif", np.ones(shape, np.uint8)), bundle, tmp_path / "out", OPTIONS)
    found = objects(folder)
    assert len(found) == 1 and found["area_m2"][0] == pytest.approx(shape[0] * shape[1], rel=2e-3)
    with rasterio.open(folder / "semantic.tif") as file:
        assert (file.read(1) == 1).all() and file.shape == shape


@pytest.mark.parametrize(
    "transform",
    [UTM @ Affine.rotation(30), UTM @ Affine.shear(20, 0), UTM @ Affine.rotation(-100) @ Affine.scale(1, 2)],
    ids=["rotated", "sheared", "turned and stretched"],
)
def test_turned_scenes_keep_places_and_areas(bundle: Path, tmp_path: Path, transform: Affine) -> None:
    path = scene(tmp_path / "s.tif", square(), transform=transform)
    found = objects(predict_scene(path, bundle, tmp_path / "out", OPTIONS))
    assert len(found) == 1
    x, y = transform @ (22.0, 20.0)  # the middle of the square
    middle = found.geometry[0].centroid
    assert (middle.x, middle.y) == pytest.approx((x, y), abs=1e-6)
    assert found["area_m2"][0] == pytest.approx(400 * abs(transform.determinant), rel=2e-3)


def test_web_mercator_at_60_degrees_has_areas_on_the_ground(bundle: Path, tmp_path: Path) -> None:
    transform = Affine(10.0, 0, 1_000_000, 0, -10.0, 8_399_737)  # 60° N: a metre of the map is half a metre there
    path = scene(tmp_path / "s.tif", square(), "EPSG:3857", transform)
    found = objects(predict_scene(path, bundle, tmp_path / "out", OPTIONS))
    assert found["area_m2"][0] == pytest.approx(400 * 100 / 4, rel=0.02)


def test_feet_become_metres(bundle: Path, tmp_path: Path) -> None:
    transform = Affine(10.0, 0, 6_000_000, 0, -10.0, 2_000_000)  # California zone 5, US survey feet
    path = scene(tmp_path / "s.tif", square(), "EPSG:2229", transform)
    found = objects(predict_scene(path, bundle, tmp_path / "out", OPTIONS))
    assert found["area_m2"][0] == pytest.approx(400 * 100 * (1200 / 3937) ** 2, rel=2e-3)


def test_across_the_antimeridian_an_object_stays_one_of_its_size(bundle: Path, tmp_path: Path) -> None:
    step = 1e-4
    transform = Affine(step, 0, 180 - 22 * step, 0, -step, 0.002)  # the square's middle column lies on 180°
    path = scene(tmp_path / "s.tif", square(), "EPSG:4326", transform)
    found = objects(predict_scene(path, bundle, tmp_path / "out", OPTIONS))
    assert len(found) == 1
    assert found["area_m2"][0] == pytest.approx(400 * (step * 111_319.5) * (step * 110_574.3), rel=2e-3)


def test_the_fill_value_of_no_data_changes_no_byte(bundle: Path, tmp_path: Path) -> None:
    results = []
    for number, fill in enumerate((0, 7, 255)):
        values = square((80, 90), 30)
        values[:, 60:] = fill
        values[40:50, :20] = fill
        folder = tmp_path / str(number)
        folder.mkdir()
        path = scene(folder / "s.tif", values)
        with rasterio.open(path, "r+") as file:  # a mask says what is data; the values beneath are free
            mask = np.full(values.shape, 255, np.uint8)
            mask[:, 60:], mask[40:50, :20] = 0, 0
            file.write_mask(mask)
        results.append(predict_scene(path, bundle, folder / "out", OPTIONS))
    for name in ("semantic.tif", "objects.parquet"):
        assert len({(folder / name).read_bytes() for folder in results}) == 1, name


def test_a_disk_that_is_too_small_is_told_before_anything_is_done(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prediction.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    monkeypatch.setattr(prediction, "run_shards", lambda *_, **__: pytest.fail("began"))
    path = scene(tmp_path / "s.tif", square((200, 200)))
    with pytest.raises(InputError, match=r"needs about .* GiB .* are free"):
        predict_scene(path, bundle, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_scene_in_degrees_says_so_in_its_manifest(bundle: Path, tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", square(), "EPSG:4326", Affine(1e-5, 0, 15, 0, -1e-5, 60))
    folder = predict_scene(path, bundle, tmp_path / "out", OPTIONS)
    assert json.loads((folder / "run.json").read_text())["source"]["crs"] == "EPSG:4326"
    # a degree of longitude is half as long at 60° N
    assert objects(folder)["area_m2"][0] == pytest.approx(400 * 1.1141 * 0.5580, rel=5e-3)
