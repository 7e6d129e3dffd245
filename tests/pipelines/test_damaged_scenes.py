"""A scene with a corrupt block, and one that changes under the run."""

import json
import os
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio

from adapters.errors import InputError
from pipelines import shards
from pipelines.cli import run
from pipelines.config import PredictOptions
from pipelines.prediction import predict_scene
from pipelines.sources import open_source
from pipelines.sources.tolerant import TolerantSource, lost_pixels
from tests.models import adapter, tiny_bundle

OPTIONS = PredictOptions(tile=128, overlap=32, score=0.05, min_area=1, device="cpu", precision="fp32", shard_tiles=2)


def block_file(path: Path, picture: np.ndarray) -> Path:
    """A tiled GeoTIFF of 64-pixel deflated blocks."""
    profile = {"driver": "GTiff", "width": picture.shape[2], "height": picture.shape[1], "count": len(picture)}
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": "pixel"}
    place = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 3_300_000)
    with rasterio.open(path, "w", dtype="uint8", crs="EPSG:32617", transform=place, **profile, **tiled) as file:
        file.write(picture)
    return path


def corrupt(path: Path, column: int, row: int) -> None:
    """Overwrite one block's bytes; the file's length stays."""
    with rasterio.open(path) as file:
        place = [int(file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
    data = bytearray(path.read_bytes())
    data[place[0] : place[0] + place[1]] = os.urandom(place[1])
    path.write_bytes(bytes(data))


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (3, 256, 320)).astype(np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", adapter(channels=("red", "green", "blue")))


def test_all_but_the_corrupt_block_is_read(tmp_path: Path, picture: np.ndarray) -> None:
    path = block_file(tmp_path / "scene.tif", picture)
    corrupt(path, 2, 1)
    with open_source(path) as opened:
        source = TolerantSource(opened)
        array, valid = source.read((slice(10, 250), slice(0, 320)))
    assert not valid[64 - 10 : 128 - 10, 128:192].any()
    # Windows are halved to 64 px or less, so a loss may reach beyond its block, but not by more than that.
    assert (~valid).sum() <= 4 * 64 * 64 and valid.sum() > 0.7 * valid.size
    assert (array[:, valid] == picture[:, 10:250][:, valid]).all() and (array[:, ~valid] == 0).all()
    assert source.lost and all("cannot be read" in reason for reason in source.lost.values())
    assert lost_pixels({(w[0], w[1], w[2], w[3]) for w in source.lost}, (256, 320)) == (~valid).sum()


def test_overlapping_losses_count_once() -> None:
    assert lost_pixels({(0, 10, 0, 10), (5, 15, 5, 15), (0, 10, 0, 5)}, (20, 20)) == 175
    assert lost_pixels(set(), (5, 5)) == 0


def test_a_corrupt_block_costs_its_pixels_and_shows_in_every_output(
    tmp_path: Path, picture: np.ndarray, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = block_file(tmp_path / "scene.tif", picture)
    corrupt(path, 2, 1)
    code = run(["predict", str(bundle), str(path), "--out", str(tmp_path / "out"), "--tile", "128", "--overlap", "32"])
    told = capsys.readouterr()
    assert code == 3 and "warning: scene.tif:" in told.err and "could not be read" in told.err
    folder = tmp_path / "out" / "scene"
    manifest = json.loads((folder / "run.json").read_text())
    with rasterio.open(folder / "semantic.tif") as file:
        lost = file.read(1) == 255
    assert 64 * 64 <= lost.sum() <= manifest["lost_pixels"] < 0.3 * lost.size
    assert lost[64:128, 128:192].all()
    assert any("could not be read" in note for note in manifest["warnings"])
    hole = geopandas.GeoSeries.from_wkt(["POINT (400080 3299952)"], crs="EPSG:32617").iloc[0]  # the block's middle
    assert not geopandas.read_parquet(folder / "objects.parquet").contains(hole).any()


def test_a_scene_of_which_nothing_can_be_read_is_refused(tmp_path: Path, picture: np.ndarray, bundle: Path) -> None:
    path = block_file(tmp_path / "scene.tif", picture)
    for column in range(5):
        for row in range(4):
            corrupt(path, column, row)
    with pytest.raises(InputError, match=r"scene\.tif: cannot be read"):
        predict_scene(path, bundle, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "scene").exists()


@pytest.mark.parametrize("changed", [True, False], ids=["other pixels", "touched only"])
def test_a_scene_that_changes_during_the_run(
    tmp_path: Path, picture: np.ndarray, bundle: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    path = block_file(tmp_path / "scene.tif", picture)
    real, calls = shards._write, []

    def write_and_change(*arguments: object) -> None:
        real(*arguments)
        if not calls:
            block_file(path, picture[:, ::-1] if changed else picture)
            os.utime(path, (1, 1))
        calls.append(1)

    monkeypatch.setattr(shards, "_write", write_and_change)
    if not changed:
        assert predict_scene(path, bundle, tmp_path / "out", OPTIONS).is_dir()
        return
    with pytest.raises(InputError, match="changed while it was predicted"):
        predict_scene(path, bundle, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "scene").exists()
