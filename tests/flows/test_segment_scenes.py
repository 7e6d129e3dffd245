"""A nightly run does what is new, names what it cannot do, and the next night does the rest."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from flows.segment_scenes import segment_scenes
from pipelines.config import PredictOptions
from pipelines.executors import ExecutorOptions
from pipelines.new_scenes import SceneSearch
from pipelines.prediction import predict_scene
from pipelines.sinks.folder import sha256
from tests.models import adapter, tiny_bundle

OPTIONS = PredictOptions(tile=64, overlap=16, score=0.05, min_area=1, device="cpu", precision="fp32")
NOW = SceneSearch(settled_s=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", adapter(channels=("red", "green", "blue")))


def put(path: Path, seed: int) -> Path:
    place = {"crs": "EPSG:32617", "transform": Affine(0.5, 0, 400_000, 0, -0.5, 3_300_000)}
    with rasterio.open(path, "w", "GTiff", 90, 70, 3, dtype="uint8", **place) as file:
        file.write(np.random.default_rng(seed).integers(0, 255, (3, 70, 90)).astype(np.uint8))
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def night(folder: Path, bundle: Path, out: Path):
    state = segment_scenes(str(folder), str(bundle), str(out), NOW, OPTIONS, return_state=True)
    return state, state.result(raise_on_failure=False)


def test_what_is_new_is_done_and_what_cannot_be_read_is_named(bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "scenes", tmp_path / "out"
    folder.mkdir()
    state, result = night(folder, bundle, out)
    assert state.is_completed() and result == {"found": 0, "done": {}, "failed": {}}, "an empty folder is no failure"
    first = put(folder / "first.tif", 1)
    (folder / "broken.tif").write_text("not a raster")
    state, result = night(folder, bundle, out)
    assert state.name == "Partial" and list(result["failed"]) == [str(folder / "broken.tif")]
    assert result["done"] == {str(first): str(out / "first")}
    by_command = predict_scene(first, bundle, tmp_path / "command", OPTIONS, executor=ExecutorOptions())
    assert sha256(out / "first" / "objects.parquet") == sha256(by_command / "objects.parquet")

    put(folder / "broken.tif", 2)  # it has arrived whole
    state, result = night(folder, bundle, out)
    assert state.name == "Completed" and list(result["done"]) == [str(folder / "broken.tif")]
    state, result = night(folder, bundle, out)
    assert result == {"found": 2, "done": {}, "failed": {}}, "nothing twice"
    assert sorted(p.name for p in out.iterdir()) == [".scenes", "broken", "first"]


def test_a_night_on_which_nothing_can_be_read_has_failed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "only.tif").write_text("not a raster")
    state, result = night(tmp_path, bundle, tmp_path / "out")
    assert state.is_failed() and "only.tif" in str(result)


def test_a_pattern_stays_in_its_folder() -> None:
    for bad in ("../*.tif", "/etc/*", "a/../../b.tif"):
        with pytest.raises(ValueError, match="files inside the folder"):
            SceneSearch(pattern=bad)
