"""inspect: says what a file or model is, and what would fail; unknown files are named for what they look like."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.remote_sensing import rgb_aerial
from pipelines import cli
from pipelines.inspection import inspect_thing, render

MakeGeotiff = Callable[..., Path]
FOUR_BANDS = DomainAdapter(
    "four",
    ChannelSet(tuple(Channel(name) for name in ("red", "green", "blue", "nir"))),
    ClassSet((Class("tree", values=("Tree", 1)), Class("water", "stuff"))),
    tile=64,
    tile_overlap=16,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import tiny_bundle

    folder = tmp_path_factory.mktemp("model") / "bundle"
    metrics = {"heldout": {"pq": 0.41, "per_class": {"tree": {"pq": 0.5}}}}
    return tiny_bundle(folder, FOUR_BANDS, metrics=metrics, thresholds={"score": 0.35})


def picture(bands: int, side: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (bands, side, side), np.uint8)


def test_a_scene(make_geotiff: MakeGeotiff) -> None:
    path = make_geotiff(picture(3), crs="EPSG:32617", nodata=0, descriptions=("red", "green", "blue"))
    found = inspect_thing(str(path))
    assert found["kind"] == "scene (GTiff)"
    text = render(found)
    assert text.splitlines()[0] == f"{path}: scene (GTiff)"
    for said in ("96 × 96 px", "EPSG:32617", "red", "uint8", "nodata 0", "DEFLATE"):
        assert said in text, said
    assert not found["notes"]
    assert json.loads(json.dumps(found))["bands"][0]["names"][0] == "red"


def test_what_a_scene_lacks_is_noted(make_geotiff: MakeGeotiff) -> None:
    text = render(inspect_thing(str(make_geotiff(picture(1)))))
    assert "no CRS: results are in pixel coordinates" in text
    assert "neither nodata nor mask" in text


def test_would_a_model_run_on_a_scene(make_geotiff: MakeGeotiff, bundle: Path) -> None:
    names = ("red", "green", "blue", "nir")
    # A fourth unnamed 8-bit band would be taken for transparency by the writer, not for near infrared.
    good = make_geotiff(picture(4), "good.tif", descriptions=names, photometric="minisblack")
    found = inspect_thing(str(good), model=str(bundle))
    assert found["model"]["runs"] and found["model"]["tiles"] == 4
    poor = make_geotiff(picture(3), "poor.tif", descriptions=names[:3])
    found = inspect_thing(str(poor), model=str(bundle))
    assert not found["model"]["runs"]
    (problem,) = found["problems"]
    assert "poor.tif: no band 'nir'" in problem and "red, green, blue" in problem
    assert f"problem  {problem}" in render(found)


def test_a_bundle(bundle: Path) -> None:
    found = inspect_thing(str(bundle))
    assert found["kind"] == "a model bundle"
    assert found["scores"] == {"heldout.pq": 0.41}  # overall; the file has them per class
    assert found["model"]["backbone"] == "tf_efficientnet_lite0" and found["model"]["num_classes"] == 2
    text = render(found)
    for said in ("nir", "tree", "thing, in labels: Tree, 1", "stuff", "0.35", "64 px, overlap 16 px", found["sha256"]):
        assert said in text, said
    # A training's folder holds its bundle: that is what is meant.
    assert inspect_thing(str(bundle.parent))["sha256"] == found["sha256"]


def test_a_damaged_bundle_is_told(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "bundle.json").write_text((bundle / "bundle.json").read_text())
    (broken / "weights.safetensors").write_bytes(b"not these")
    with pytest.raises(InputError, match=r"broken.*damaged"):
        inspect_thing(str(broken))


def test_labels(tmp_path: Path) -> None:
    square = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
    feature = {
        "type": "Feature",
        "properties": {"kind": "oak"},
        "geometry": {"type": "Polygon", "coordinates": [square]},
    }
    path = tmp_path / "trees.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature, feature]}))
    found = inspect_thing(str(path))
    assert found["kind"] == "labels (polygons)" and found["count"] == 2
    assert "oak" in render(found)


def test_an_adapter_file(tmp_path: Path) -> None:
    path = rgb_aerial(ClassSet((Class("tree"),))).save(tmp_path / "adapter.json")
    found = inspect_thing(str(path))
    assert found["kind"] == "an adapter" and "tree" in render(found)


def test_a_config_and_its_missing_files(tmp_path: Path) -> None:
    adapter = rgb_aerial(ClassSet((Class("tree"),))).to_dict()
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {"adapter": adapter, "data": [{"source": "gone.tif", "labels": "sample:crowns/x.xml"}], "name": "r"}
        )
    )
    found = inspect_thing(str(path))
    assert found["kind"] == "a run config"
    (problem,) = found["problems"]
    assert problem == f"{tmp_path / 'gone.tif'}: no such file"


def test_a_folder_of_scenes(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    make_geotiff(picture(3), "a.tif")
    make_geotiff(picture(3), "b.tif")
    (tmp_path / "b.csv").touch()
    found = inspect_thing(str(tmp_path))
    assert (found["scenes"], found["labelled"]) == (2, 1)
    assert found["pairs"] == {"a.tif": None, "b.tif": "b.csv"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tif", b"", "empty"),
        ("a.tif", b"%PDF-1.7 and so on", "a PDF"),
        ("a.bin", b"PK\x03\x04 and so on", "a zip archive"),
        ("a.dat", b"nothing that is known", "not a raster"),
        ("a.xml", b"<?xml version='1.0'?><other/>", "an XML file"),
    ],
)
def test_an_unknown_file_is_named_for_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        inspect_thing(str(path))
    assert str(caught.value).startswith(str(path))


def test_nothing_there() -> None:
    with pytest.raises(InputError, match=r"nowhere\.tif: no such file or folder"):
        inspect_thing("nowhere.tif")


def test_the_command_prints_text_or_json(make_geotiff: MakeGeotiff, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_geotiff(picture(1))
    assert cli.run(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(path)
    assert cli.run(["inspect", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: scene")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("satellite/buildings/scene.tif", "scene (GTiff)", "EPSG:3857"),
        ("satellite/buildings/buildings.geojson", "labels (polygons)", "invalid"),
        ("satellite/landsat7/scene_1999.tif", "scene (GTiff)", "nodata -9999"),
        ("satellite/clouds/sentinel2.npz", "scene (npz)", "float32"),
        ("satellite/crowns/osbs24_crowns.csv", "labels (polygons)", "MultiPolygon"),
    ],
)
def test_real_files(name: str, kind: str, said: str, shared_data: Path) -> None:
    found = inspect_thing(str(shared_data / name))
    assert found["kind"] == kind and said in render(found)
