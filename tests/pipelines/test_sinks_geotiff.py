"""The semantic map: a valid COG, equal in place and pixels, equal bytes however it was written."""

import json
import resource
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo import cog_validate

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from pipelines.sinks.folder import sha256
from pipelines.sinks.geotiff import NODATA, SemanticSink, class_table

CLASSES = ClassSet((Class("tree"), Class("wäter & ice", "stuff", colour="#0000ff")))
UTM = SimpleNamespace(crs=CRS.from_epsg(32617), transform=Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000))
ROTATED = SimpleNamespace(crs=CRS.from_epsg(3857), transform=Affine.translation(10, 20) @ Affine.rotation(30))

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def labels(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 3, (height // 16 + 1, width // 16 + 1))
    picture = np.kron(coarse, np.ones((16, 16)))[:height, :width].astype(np.uint8)
    picture[:3] = NODATA
    return picture


def write(path: Path, picture: np.ndarray, geometry: Any, rows: int, columns: int | None = None) -> Path:
    height, width = picture.shape
    columns = columns or width
    with SemanticSink(path, picture.shape, geometry, CLASSES) as sink:
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                window = (slice(top, min(top + rows, height)), slice(left, min(left + columns, width)))
                sink.write(window, picture[window])
        assert not path.exists()
        return sink.commit()


@pytest.mark.parametrize("geometry", [UTM, ROTATED, None], ids=["utm", "rotated", "no-crs"])
@pytest.mark.parametrize("shape", [(1100, 1300), (30, 20), (1, 7)])
def test_valid_cog_in_the_place_of_the_scene(tmp_path: Path, geometry: Any, shape: tuple[int, int]) -> None:
    picture = labels(*shape)
    path = write(tmp_path / "semantic.tif", picture, geometry, rows=64)
    valid, errors, notes = cog_validate(path, strict=True)
    assert valid and not errors and not notes
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(1), picture)
        assert (file.nodata, file.dtypes, file.count) == (NODATA, ("uint8",), 1)
        assert file.crs == (geometry.crs if geometry else None)
        assert file.transform.almost_equals(geometry.transform if geometry else Affine.identity(), 1e-9)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert bool(file.overviews(1)) == (max(shape) > 512)
    assert [p.name for p in tmp_path.iterdir()] == ["semantic.tif"]


def test_class_names_and_colours_are_inside(tmp_path: Path) -> None:
    with rasterio.open(write(tmp_path / "semantic.tif", labels(64, 64), UTM, rows=64)) as file:
        assert json.loads(file.tags()["CLASSES"]) == class_table(CLASSES)
        assert file.tags(1)["CLASS_1"] == "tree" and file.tags(1)["CLASS_2"] == "wäter & ice"
        assert file.descriptions == ("class",)
        assert file.colorinterp[0].name == "palette"
        assert file.colormap(1)[2] == (0, 0, 255, 255)
        assert file.colormap(1)[NODATA][3] == 0
    assert class_table(CLASSES)[2] == {
        "value": 2,
        "name": "wäter & ice",
        "kind": "stuff",
        "colour": "#0000ff",
    }


def test_bytes_do_not_depend_on_how_it_was_written(tmp_path: Path) -> None:
    picture = labels(1100, 1300)
    hashes = set()
    for number, (rows, columns) in enumerate([(64, None), (1100, None), (100, 333), (64, None)]):
        hashes.add(sha256(write(tmp_path / f"{number}.tif", picture, UTM, rows, columns)))
    order = np.random.default_rng(1).permutation(np.arange(0, 1100, 50))
    with SemanticSink(tmp_path / "shuffled.tif", picture.shape, UTM, CLASSES) as sink:
        for top in order:
            sink.write((slice(top, top + 50), slice(None)), picture[top : top + 50])
        hashes.add(sha256(sink.commit()))
    assert len(hashes) == 1


def test_overviews_keep_classes_and_ignore_nodata(tmp_path: Path) -> None:
    picture = np.full((1024, 1024), NODATA, np.uint8)
    picture[:, ::2] = 2
    with rasterio.open(write(tmp_path / "semantic.tif", picture, UTM, rows=512)) as file:
        assert set(np.unique(file.read(1, out_shape=(512, 512)))) == {2}


def test_what_was_not_written_is_nodata(tmp_path: Path) -> None:
    with SemanticSink(tmp_path / "semantic.tif", (600, 700), UTM, CLASSES) as sink:
        sink.write((slice(0, 5), slice(0, 700)), np.ones((5, 700), np.uint8))
        path = sink.commit()
    with rasterio.open(path) as file:
        assert (file.read(1)[5:] == NODATA).all() and (file.read(1)[:5] == 1).all()


def test_without_commit_the_earlier_file_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "semantic.tif", labels(64, 64), UTM, rows=64)
    before = sha256(path)
    with pytest.raises(RuntimeError, match="boom"), SemanticSink(path, (64, 64), UTM, CLASSES) as sink:
        sink.write((slice(0, 64), slice(0, 64)), np.zeros((64, 64), np.uint8))
        raise RuntimeError("boom")
    assert [p.name for p in tmp_path.iterdir()] == ["semantic.tif"] and sha256(path) == before


@pytest.mark.parametrize("share", [0.2, 0.45, 0.65, 0.8, 0.95])
def test_a_file_without_room_is_an_error_never_a_hole(tmp_path: Path, share: float) -> None:
    """A limit on file size stands for the full disk. GDAL alone writes nodata, or half a file, and says nothing."""
    picture = np.random.default_rng(0).integers(0, 3, (1100, 1100)).astype(np.uint8)
    path = write(tmp_path / "semantic.tif", picture, UTM, rows=400)
    before, size = sha256(path), path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    new = tmp_path / "new"
    new.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), hard))
    try:
        with pytest.raises(InputError, match=r"^\S*/semantic\.tif: [^\n]*is the disk full\?$") as caught:
            write(new / "semantic.tif", picture, UTM, rows=400)
        assert "partial" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sha256(path) == before
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "semantic.tif"]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with SemanticSink(tmp_path / "semantic.tif", (64, 64), UTM, CLASSES) as sink:
        for array in (np.zeros((5, 64), np.uint8), np.zeros((4, 64), np.int64), np.full((4, 64), 3, np.uint8)):
            with pytest.raises(ValueError, match="expected"):
                sink.write((slice(0, 4), slice(0, 64)), array)
    with pytest.raises(InputError, match=r"semantic\.tif: expected an existing folder"):
        SemanticSink(tmp_path / "missing" / "semantic.tif", (64, 64), UTM, CLASSES)


def test_no_warning_for_a_scene_without_crs(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotGeoreferencedWarning)
        write(tmp_path / "semantic.tif", labels(64, 64), None, rows=64)
