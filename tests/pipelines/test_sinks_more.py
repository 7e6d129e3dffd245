"""What lies beside the class map and the objects: attribute table, style, confidence, layers, STAC item, FlatGeobuf."""

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as xml

import geopandas
import numpy as np
import pyproj
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rio_cogeo import cog_validate
from scipy import ndimage

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.annotations import read_annotations
from pipelines.annotations.options import LabelOptions
from pipelines.config import PredictOptions, WriteOptions
from pipelines.prediction import predict_scene
from pipelines.sinks.attribute_table import write_attribute_table
from pipelines.sinks.confidence import STEPS, ConfidenceSink
from pipelines.sinks.layers import read_layers, write_layers
from pipelines.sinks.redrawing import Outline, redrawn
from pipelines.sinks.stac import footprint, write_item
from pipelines.sinks.style import write_style
from pipelines.sinks.vector import table, write_objects
from pipelines.sources import open_source
from tests.models import adapter, tiny_bundle

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
CLASSES = ClassSet((Class("tree", colour="#00ff10"), Class("wäter & <ice>", "stuff", colour="#0000ff")))
UTM = SimpleNamespace(crs=CRS.from_epsg(32617), transform=Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000))


def discs(count: int = 30, side: int = 600, seed: int = 0) -> MaskSet:
    """Overlapping discs of two classes on a canvas of two rows of blocks."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    places = random.uniform(0, side, (count, 2))
    masks = np.stack([np.hypot(y - a, x - b) < random.uniform(10, 90) for a, b in places])
    return MaskSet.from_dense(masks, random.integers(0, 2, count), random.random(count))


def test_the_attribute_table_is_the_one_gdal_describes(tmp_path: Path) -> None:
    written = write_attribute_table(tmp_path / "semantic.tif", CLASSES, {0: 5, 2: 7})
    assert written.name == "semantic.tif.aux.xml"
    root = xml.parse(written).getroot()
    assert [c.text for c in root.iter("Category")] == ["nothing", "tree", "wäter & <ice>"]
    fields = [(f.findtext("Name"), f.findtext("Usage")) for f in root.iter("FieldDefn")]
    assert fields[:2] == [("Value", "5"), ("Class", "2")]
    rows = [[f.text for f in row] for row in root.iter("Row")]
    assert rows[2] == ["2", "wäter & <ice>", "stuff", "7", "0", "0", "255"]
    assert rows[1][3] == "0"


def test_the_style_has_a_symbol_for_each_class(tmp_path: Path) -> None:
    path = write_style(tmp_path / "objects.qml", CLASSES)
    root = xml.fromstring(path.read_text(encoding="utf-8").split("\n", 1)[1])
    assert root.find("renderer-v2").get("attr") == "class"
    assert [c.get("value") for c in root.iter("category")] == list(CLASSES.names)
    symbols = {s.get("name"): s for s in root.iter("symbol")}
    assert [c.get("symbol") for c in root.iter("category")] == list(symbols)
    colours = [o.get("value") for o in symbols["0"].iter("Option") if o.get("name") == "outline_color"]
    assert colours == ["0,255,16,255"]


def test_confidence_is_the_best_class_to_half_a_percent(tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).random((3, 40, 50)).astype(np.float32)
    valid = np.ones((40, 50), bool)
    valid[:5] = False
    with ConfidenceSink(tmp_path / "confidence.tif", (40, 50), UTM) as sink:
        sink.write_probabilities((slice(0, 40), slice(0, 50)), probabilities, valid)
        path = sink.commit()
    assert cog_validate(path, strict=True)[0]
    with rasterio.open(path) as file:
        values, scale, nodata = file.read(1), file.scales[0], file.nodata
    assert (values[~valid] == nodata).all()
    assert np.abs(values[valid] * scale - probabilities.max(0)[valid]).max() <= 0.5 / STEPS + 1e-6


def test_objects_layers_and_geoparquet_are_the_same_set(tmp_path: Path) -> None:
    """Set → layers → set and set → GeoParquet → set, both equal to the pixel, overlaps and holes included."""
    objects = discs().canonical()
    rgb = adapter(2, channels=("red", "green", "blue"))
    write_objects(tmp_path, objects, UTM, rgb.classes, ("objects.parquet",))
    path = write_layers(tmp_path / "layers.tif", objects, UTM)
    frame = geopandas.read_parquet(tmp_path / "objects.parquet")
    labels, scores = frame["class_id"].to_numpy(np.int64) - 1, frame["score"].to_numpy(np.float32)
    assert read_layers(path, labels, scores) == objects
    with rasterio.open(path) as file:
        assert file.count == len(objects.layers()) > 1
        assert file.crs == UTM.crs and file.transform == UTM.transform
    # Back from the table, as labels of a scene of this place.
    with rasterio.open(
        tmp_path / "scene.tif", "w", "GTiff", 600, 600, 3, UTM.crs, UTM.transform, "uint8", photometric="RGB"
    ) as file:
        file.write(np.ones((3, 600, 600), np.uint8))
    with open_source(tmp_path / "scene.tif") as source:
        options = LabelOptions(class_column="class")
        back = read_annotations(str(tmp_path / "objects.parquet"), source, rgb, options).objects
    assert back.with_scores(np.ones(len(back), np.float32)).same_set(
        objects.with_scores(np.ones(len(objects), np.float32))
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 10_000))
def test_layers_of_any_set(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((count, 9, 7)) < random.uniform(0.05, 0.9)
    masks = masks[masks.any(axis=(1, 2))]
    objects = MaskSet.from_dense(masks, random.integers(0, 2, len(masks))).canonical()
    path = write_layers(tmp_path_factory.mktemp("layers") / "layers.tif", objects, None)
    assert read_layers(path, objects.labels, objects.scores) == objects


def test_layers_with_too_few_labels_are_refused(tmp_path: Path) -> None:
    objects = discs(5)
    path = write_layers(tmp_path / "layers.tif", objects, None)
    with pytest.raises(InputError, match="the table has 2 rows"):
        read_layers(path, objects.labels[:2])


@pytest.mark.parametrize("epsg", [32617, 3857, 4326, 2263])
def test_simplified_outlines_stay_within_the_distance(epsg: int) -> None:
    """In metres on the ground, whatever the CRS' unit; valid, with far fewer corners; the area column untouched."""
    here = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(-74.0, 40.7)
    unit = {4326: 1 / 111_320, 2263: 1 / 0.3048006, 3857: 1 / np.cos(np.radians(40.7)), 32617: 1.0}[epsg]
    place = SimpleNamespace(crs=CRS.from_epsg(epsg), transform=Affine(unit, 0, here[0], 0, -unit, here[1]))
    frame = table(discs(6, 200), place, CLASSES)
    simple = redrawn(frame.geometry, place, Outline(simplify_m=3.0))
    assert simple.is_valid.all()
    corners = [int(shapely.get_num_coordinates(shapes.values).sum()) for shapes in (simple, frame.geometry)]
    assert corners[0] < corners[1] / 3
    moved = shapely.hausdorff_distance(simple.values, frame.geometry.values) / unit
    # Half as far again: see `redrawn`. And a degree of longitude is shorter here than the one `unit` is of.
    assert moved.max() <= 4.5 * (1.4 if epsg == 4326 else 1.01)
    assert moved.max() > 0.5


def test_simplification_needs_metres(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need a scene with a CRS"):
        write_objects(tmp_path, discs(2), None, CLASSES, ("objects.parquet",), Outline(simplify_m=1.0))


def turned_houses() -> MaskSet:
    """Houses of 60 by 40 px turned by 20 degrees with ragged edges, one with a court, and a speck."""
    y, x = np.mgrid[:300, :400] + 0.5
    random = np.random.default_rng(0)
    masks = []
    for number, (row, column) in enumerate([(80, 80), (80, 250), (210, 160)]):
        along = np.cos(np.radians(20)) * (x - column) + np.sin(np.radians(20)) * (y - row)
        across = np.cos(np.radians(20)) * (y - row) - np.sin(np.radians(20)) * (x - column)
        ragged = random.normal(0, 0.8, x.shape)
        mask = (abs(along) + ragged < 30) & (abs(across) + ragged < 20)
        masks.append(mask & ~((number == 1) & (abs(along) < 12) & (abs(across) < 8)))
    speck = np.zeros_like(masks[0])
    speck[280:282, 390:393] = True
    return MaskSet.from_dense(np.stack([ndimage.median_filter(mask, 7) for mask in masks] + [speck]), np.zeros(4, int))


@pytest.mark.parametrize("epsg", [32617, 4326])
def test_regular_outlines_have_right_angles(epsg: int) -> None:
    here = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(-81.0, 0.1)
    unit = 0.5 / 111_320 if epsg == 4326 else 0.5
    place = SimpleNamespace(crs=CRS.from_epsg(epsg), transform=Affine(unit, 0, here[0], 0, -unit, here[1]))
    frame = table(turned_houses(), place, CLASSES)
    regular = redrawn(frame.geometry, place, Outline(regularise_m=1.5))
    assert len(regular) == 4 and regular.is_valid.all() and regular.crs == frame.crs
    order = np.argsort(-shapely.area(frame.geometry.values))  # the speck comes last, and may stay as it is
    houses = regular.iloc[order[:3]]
    assert sum(len(shape.interiors) for shape in houses) == 1, "the court stays"
    for shape, pixels in zip(houses, frame.geometry.iloc[order[:3]], strict=True):
        points = np.asarray(shape.exterior.coords)
        edges = np.diff(points, axis=0)
        walls = edges[np.argsort(-np.hypot(*edges.T))[:4]]
        assert len(edges) <= 6 < shapely.get_num_coordinates(pixels) / 10, "four walls, perhaps a corner cut off"
        assert np.abs(np.degrees(np.arctan2(walls[:, 1], walls[:, 0])) % 90 - (90 - 20)).max() < 3
        assert shape.intersection(pixels).area / shape.union(pixels).area > 0.8


def test_flatgeobuf_holds_the_same_features(tmp_path: Path) -> None:
    objects = discs(12)
    write_objects(tmp_path, objects, UTM, CLASSES, ("objects.fgb", "objects.parquet"))
    flat, parquet = geopandas.read_file(tmp_path / "objects.fgb"), geopandas.read_parquet(tmp_path / "objects.parquet")
    assert flat["id"].tolist() == parquet["id"].tolist() and flat.crs == parquet.crs
    assert flat.geometry.geom_equals(parquet.geometry).all()


def test_footprint_across_the_antimeridian_is_in_two_parts() -> None:
    transform = Affine(0.1, 0, 179.0, 0, -0.1, 10.0)
    parts = footprint((10, 20), transform, pyproj.CRS.from_epsg(4326))
    assert parts.geom_type == "MultiPolygon" and len(parts.geoms) == 2
    assert parts.bounds[0] == -180 and parts.bounds[2] == 180
    assert parts.area == pytest.approx(2.0)
    whole = footprint((100, 100), UTM.transform, pyproj.CRS(32617))
    assert whole.geom_type == "Polygon" and shapely.Point(-81.0, 36.14).distance(whole) < 0.01


def test_all_files_of_a_scene_on_request(make_geotiff: object, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scene = make_geotiff(
        random.integers(1, 255, (3, 130, 170)).astype(np.uint8), crs="EPSG:32617", transform=UTM.transform
    )
    with rasterio.open(scene, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2021:06:05 10:11:12")
    bundle = tiny_bundle(tmp_path / "bundle", adapter(channels=("red", "green", "blue")))
    options = PredictOptions(tile=64, overlap=16, score=0.05, min_area=1, device="cpu", precision="fp32")
    every = WriteOptions(flatgeobuf=True, layers=True, confidence=True, stac=True, simplify_m=1.0, regularise_m=1.0)
    folder = predict_scene(scene, bundle, tmp_path / "out", options, write=every)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"objects.fgb", "layers.tif", "confidence.tif", "item.json", "objects.qml", "semantic.tif.aux.xml"}
    item = pystac.Item.from_file(folder / "item.json")
    assert item.datetime.isoformat() == "2021-06-05T10:11:12+00:00" and item.properties["datetime_is"] == "acquisition"
    assert item.properties["proj:code"] == "EPSG:32617"
    assert set(item.assets) == names - {"item.json", "run.json", "objects.qml", "semantic.tif.aux.xml"}
    run = json.loads((folder / "run.json").read_text())
    assert set(run["outputs"]) == names - {"run.json"}
    with rasterio.open(folder / "semantic.tif") as file:
        counted = np.bincount(file.read(1).ravel(), minlength=256)
    table_rows = [[f.text for f in row] for row in xml.parse(folder / "semantic.tif.aux.xml").iter("Row")]
    assert [int(row[3]) for row in table_rows] == counted[: len(table_rows)].tolist()
    plain = predict_scene(scene, bundle, tmp_path / "plain", options)
    assert (plain / "semantic.tif").read_bytes() == (folder / "semantic.tif").read_bytes()


def test_no_item_without_a_place(tmp_path: Path) -> None:
    nowhere = SimpleNamespace(crs=None, transform=Affine.identity())
    assert write_item(tmp_path, "scene", (10, 10), nowhere, {}) is None
    assert not list(tmp_path.iterdir())
