"""A registered model as others use it: loaded with pickles forbidden, served by MLflow, asked for one image."""

import base64
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image

from adapters.errors import InputError
from adapters.medical import ct
from pipelines import tracking
from pipelines.bundle import load_bundle
from pipelines.model_card import CARD
from pipelines.serving import answers
from pipelines.serving.answers import Answerer, decoded
from tests.models import adapter, tiny_bundle
from tests.pipelines.mlflow_service import Service, free_port

PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
CAUGHT_ALL = {"thresholds": {"score": 0.0, "semantic": 0.0}}


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def noise(side: int = 96) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rgb = adapter(2, ("red", "green", "blue"), tile=64, tile_overlap=16)
    return tiny_bundle(tmp_path_factory.mktemp("b") / "squares", rgb, **CAUGHT_ALL)


@pytest.fixture(scope="module")
def answer(bundle: Path) -> Answerer:
    return Answerer(load_bundle(bundle))


@pytest.fixture
def geotiff(make_geotiff: Callable[..., Path]) -> str:
    path = make_geotiff(np.moveaxis(noise(), -1, 0), crs="EPSG:32617", transform=PLACE)
    return base64.b64encode(path.read_bytes()).decode()


def check(collection: dict[str, Any], crs: str | None) -> list[Any]:
    """The answer's layout; returns its polygons."""
    json.dumps(collection, allow_nan=False)
    assert (collection["type"], collection["crs"]) == ("FeatureCollection", crs)
    assert (collection["width"], collection["height"]) == (96, 96)
    assert collection["features"]
    for feature in collection["features"]:
        assert feature["type"] == "Feature" and int(feature["id"]) > 0
        properties = feature["properties"]
        assert properties["class"] in "ab" and 0 <= properties["score"] <= 1
        assert properties["class_id"] == "ab".index(properties["class"]) + 1
    return [shapely.geometry.shape(feature["geometry"]) for feature in collection["features"]]


def test_an_image_gives_what_predict_gives_in_pixels(answer: Answerer, bundle: Path, tmp_path: Path) -> None:
    from pipelines.config import PredictOptions
    from pipelines.prediction import predict_scene

    pixels = noise()
    found = answer(png(pixels))
    polygons = check(found, None)
    assert all(shapely.box(0, 0, 96, 96).covers(polygon) for polygon in polygons)
    assert [p.area for p in polygons] == [f["properties"]["area_px"] for f in found["features"]]
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    folder = predict_scene(tmp_path / "scene.png", bundle, tmp_path / "out", PredictOptions(device="cpu"))
    import geopandas

    table = geopandas.read_parquet(folder / "objects.parquet")
    assert [str(one) for one in table["id"]] == [feature["id"] for feature in found["features"]]
    assert all(a.equals(b) for a, b in zip(table.geometry, polygons, strict=True))


def test_a_georeferenced_image_gives_its_own_coordinates(answer: Answerer, geotiff: str) -> None:
    found = answer(geotiff)
    polygons = check(found, "EPSG:32617")
    place = shapely.box(500_000, 4_000_000 - 48, 500_048, 4_000_000)
    assert all(place.covers(polygon) for polygon in polygons)
    assert [p.area for p in polygons] == pytest.approx([f["properties"]["area_m2"] for f in found["features"]])


def test_parameters_change_the_answer(answer: Answerer) -> None:
    image = f"data:image/png;base64,{png(noise())}"
    everything = answer(image, {"score": 0.0, "min_area": 0})["features"]
    assert answer(image, {"score": 1.0})["features"] == []
    areas = sorted(feature["properties"]["area_px"] for feature in everything)
    fewer = answer(image, {"score": 0.0, "min_area": int(areas[0]) + 1})["features"]
    assert 0 < len(fewer) < len(everything) and all(f["properties"]["area_px"] > areas[0] for f in fewer)


@pytest.mark.parametrize(
    ("image", "params", "fault"),
    [
        (None, {}, "image: expected the base64 text"),
        ("", {}, "image: expected the base64 text"),
        ("&&&", {}, "image: is not base64"),
        (base64.b64encode(b"GIF89a....").decode(), {}, "image: neither PNG, JPEG nor TIFF"),
        (base64.b64encode(b"<VRTDataset></VRTDataset>").decode(), {}, "image: neither PNG"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode(), {}, "image.png: "),
        (png(noise()[:, :, 0]), {}, "image.png: "),
        (png(noise()), {"score": 2.0}, "score: expected 0 to 1, got 2"),
        (png(noise()), {"min_area": -1}, "min_area: expected 0 or more"),
    ],
)
def test_wrong_input_is_one_readable_line(answer: Answerer, image: Any, params: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError) as caught:
        answer(image, params)
    assert str(caught.value).startswith(fault) and "\n" not in str(caught.value) and "/tmp" not in str(caught.value)


def test_too_large_images_are_refused_before_they_are_decoded(
    answer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MOST_PIXELS", 95 * 96)
    with pytest.raises(InputError, match=r"image: 96 x 96 pixels, expected at most 9120"):
        answer(png(noise()))
    monkeypatch.setattr(answers, "MOST_BYTES", 1 << 20)
    with pytest.raises(InputError, match="image: larger than 1 MiB"):
        decoded("A" * (2 << 20))


def test_a_model_of_studies_does_not_answer_images(tmp_path: Path) -> None:
    from adapters.classes import Class, ClassSet

    folder = tiny_bundle(tmp_path / "ct", ct(ClassSet((Class("liver"),)), context_slices=0))
    with pytest.raises(InputError, match="reads CT and MRI studies, not images"):
        Answerer(load_bundle(folder))


# --- registered -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a store with models:/squares@champion, set as this process' store."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MASKBRIDGE_CACHE", str(folder / "cache"))
        patch.setenv("MASKBRIDGE_SPOOL", str(folder / "spool"))
        tracking.register(bundle, "squares", alias="champion")
        yield tracking.default_uri()


def test_the_registered_model_has_what_a_model_needs_and_nothing_to_unpickle(registered: str, bundle: Path) -> None:
    import mlflow
    import yaml

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_REGISTRY_URI", registered)
        folder = Path(mlflow.artifacts.download_artifacts("models:/squares@champion"))
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"MLmodel", "served.py", "requirements.txt", f"artifacts/bundle/{CARD}"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    model = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(model["signature"]["inputs"])[0]["name"] == "image"
    assert {one["name"]: one["default"] for one in json.loads(model["signature"]["params"])} == {
        "score": 0.0, "min_area": 4,
    }  # fmt: skip
    assert model["saved_input_example_info"]
    pinned = (folder / "requirements.txt").read_text().split()
    assert any(line.startswith("torch==") for line in pinned) and all(
        "==" in line and "+" not in line for line in pinned
    )
    assert str(bundle.parent) not in (folder / "MLmodel").read_text(), "a machine's path"


def test_loading_with_pickles_forbidden_answers(registered: str, geotiff: str) -> None:
    import mlflow
    import pandas
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False
    loaded = mlflow.pyfunc.load_model("models:/squares@champion")
    (found,) = loaded.predict(pandas.DataFrame({"image": [geotiff]}), params={"score": 0.0})
    check(found, "EPSG:32617")
    assert found["model"] == {"name": "squares", "sha256": load_bundle("models:/squares@champion").sha256}
    (example,) = loaded.predict(loaded.input_example)
    assert example["width"] == 64


@pytest.mark.parametrize("channels", [("value",), ("blue", "green", "red", "nir")])
def test_the_example_fits_models_of_any_bands(tmp_path: Path, channels: tuple[str, ...]) -> None:
    from pipelines.serving.package import example

    folder = tiny_bundle(tmp_path / "b", adapter(1, channels, tile=64, tile_overlap=16), **CAUGHT_ALL)
    found = Answerer(load_bundle(folder))(example(load_bundle(folder).adapter)["image"][0])
    assert (found["width"], found["height"]) == (64, 64)


@pytest.mark.slow
def test_mlflow_serves_it(registered: str, geotiff: str, tmp_path: Path) -> None:
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/squares@champion"),
        *("--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)),
    ]
    environment = {"MLFLOW_TRACKING_URI": registered, "PYTHONPATH": str(Path(__file__).parents[2])}
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    service = Service(command, f"http://127.0.0.1:{port}/health", tmp_path / "serve.log", environment | path)
    service.start()
    try:
        status, said = ask(port, {"dataframe_records": [{"image": geotiff}], "params": {"score": 0.0}})
        assert status == 200, said
        (found,) = said["predictions"]
        check(found, "EPSG:32617")
        status, said = ask(port, {"inputs": {"image": [png(noise())]}})
        assert status == 200 and check(said["predictions"][0], None)
        for image, fault in (("&&&", "image: is not base64"), (png(noise()[:, :, 0]), "image.png: ")):
            status, said = ask(port, {"dataframe_records": [{"image": image}]})
            assert status == 400 and said["message"].startswith(fault) and "\n" not in said["message"], said
        status, said = ask(port, {"dataframe_records": [{"picture": "x"}]})
        assert status == 400 and "image" in said["message"]
    finally:
        service.stop()


def ask(port: int, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


# --- the card -------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_model_is(tmp_path: Path) -> None:
    rgb = adapter(2, ("red", "green", "blue"), tile=64, tile_overlap=16)
    scores = {"f1_50": 0.5, "miou": 0.25, "per_class": {"a": {"f1_50": 0.75}, "b": {"f1_50": None}}}
    metrics = {"heldout": scores, "baseline": {"unet": {"f1_50": 0.125}, "trivial": {"miou": 0.0625}}}
    places = [{"role": role, "scene": "secret-name.tif", "sha256": role * 8} for role in ("train", "test")]
    provenance = {"name": "squares", "task": "instance", "places": places, "labels": [{"boxes": 3}]}
    card = (tiny_bundle(tmp_path / "b", rgb, metrics=metrics, provenance=provenance) / CARD).read_text()
    assert card.startswith("# Model card: squares\n")
    for heading in ("Intended use", "Classes", "Channels", "Data", "Scores", "Limits"):
        assert f"\n## {heading}\n" in card
    assert "| score | this model | U-Net, same data and time | baseline trivial |" in card
    assert "| f1_50 | 0.500 | 0.125 | - |" in card and "| a | 0.750 |" in card and "| b | - |" in card
    assert "| red | 1 | 0.0 | 1.0 |" in card
    assert "| train | traintraintr | 1 |" in card and "secret-name" not in card
    assert "Learned from boxes" in card and "Scored on 1 file and one seed" in card


def test_the_card_of_a_medical_model_says_research_only_and_names_no_case(tmp_path: Path) -> None:
    from adapters.classes import Class, ClassSet

    cases = [{"role": "test", "sha256": "ab" * 32, "patient": "Doe"}]
    folder = tiny_bundle(
        tmp_path / "ct", ct(ClassSet((Class("liver"),)), context_slices=0), provenance={"cases": cases}
    )
    card = (folder / CARD).read_text()
    assert "Research use only" in card and "Doe" not in card and "not scored" in card


def test_rasterio_reads_the_example_names(tmp_path: Path) -> None:
    from pipelines.serving.package import _image

    (tmp_path / "e.tif").write_bytes(_image(adapter(1, ("blue", "nir"))))
    with rasterio.open(tmp_path / "e.tif") as raster:
        assert raster.descriptions == ("blue", "nir")
