"""Polygons on pixel edges: exact, valid, in place; and the files they are written to."""

import csv
import json
import math
import resource
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.crs import CRS

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.sinks.folder import sha256
from pipelines.sinks.outlines import outlines
from pipelines.sinks.vector import polygons, table, write_objects

CLASSES = ClassSet((Class("tree"), Class("house"), Class("lake", "stuff")))
NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
ROTATED = Affine.translation(1000, 2000) @ Affine.rotation(30) @ Affine.shear(10, 5) @ Affine.scale(2, -3)
COLUMNS = ["id", "class_id", "class", "score", "area_m2", "geometry"]

dense = hnp.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=9).flatmap(
    lambda shape: hnp.arrays(bool, (min(shape[0], 4), *(max(n, 1) for n in shape[1:])))
)


def place(transform: Affine = NORTH_UP, epsg: int | None = 32617) -> SimpleNamespace:
    return SimpleNamespace(crs=CRS.from_epsg(epsg) if epsg else None, transform=transform)


def set_of(masks: np.ndarray) -> MaskSet:
    return MaskSet.from_dense(masks, np.zeros(len(masks), np.int64))


def blobs(count: int = 40, shape: tuple[int, int] = (120, 160), seed: int = 0) -> MaskSet:
    """Discs that overlap, some with holes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    masks = np.zeros((count, *shape), bool)
    for mask in masks:
        r = np.hypot(y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1]))
        mask[:] = (r < rng.uniform(5, 20)) & (r >= rng.choice([0, 3]))
    masks = masks[masks.any(axis=(1, 2))]
    return MaskSet.from_dense(masks, rng.integers(0, 3, len(masks)), rng.random(len(masks)))


@given(dense, st.booleans())
def test_outlines_are_the_mask(masks: np.ndarray, clockwise: bool) -> None:
    """Valid, as large as its pixels, the same mask when drawn again, and the parts GDAL finds."""
    objects = set_of(masks)
    shapes = outlines(objects, clockwise)
    assert shapely.is_valid(shapes).all()
    assert np.array_equal(shapely.area(shapes), objects.areas)
    for shape, mask in zip(shapes, masks, strict=True):
        if not mask.any():
            assert shape.is_empty
            continue
        again = rasterio.features.rasterize([shape], mask.shape, dtype="uint8")
        assert np.array_equal(again, mask)
        found = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
        expected = [shapely.geometry.shape(part) for part, _ in found]
        assert len(expected) == len(shape.geoms)
        assert all(any(part.equals(one) for one in shape.geoms) for part in expected)
        assert all(part.exterior.is_ccw != clockwise for part in shape.geoms)
        assert all(ring.is_ccw == clockwise for part in shape.geoms for ring in part.interiors)


@pytest.mark.parametrize(
    ("picture", "parts", "holes"),
    [
        (["##", "##"], 1, [0]),
        (["#.", ".#"], 2, [0, 0]),  # touch at a corner: two parts
        (["###", "#.#", "###"], 1, [1]),
        (["###.", "#.##", "##.#", ".###"], 1, [2]),  # two holes that meet at a corner
        (["###", "#.#", "#.#"], 1, [0]),  # open to the outside
        (["###", "#.#", "##."], 1, [1]),  # a hole that touches the outside at a corner
        (["####", "#.##", "##.#", "###."], 1, [2]),  # a chain of holes that ends at the outside
        (["#####", "#...#", "#.#.#", "#...#", "#####"], 2, [1, 0]),  # an island in a lake
    ],
)
def test_shapes_by_hand(picture: list[str], parts: int, holes: list[int]) -> None:
    mask = np.array([[c == "#" for c in row] for row in picture])
    for turned in (mask, mask[::-1], mask[:, ::-1], mask.T):  # corners that touch like "/" and like "\\"
        shape = outlines(set_of(turned[None]))[0]
        assert shape.is_valid and shape.area == mask.sum()
        assert len(shape.geoms) == parts
        assert sorted(len(part.interiors) for part in shape.geoms) == sorted(holes)


def test_noise_is_valid() -> None:
    """Half-filled noise: every way in which pixels can touch, hundreds of times."""
    noise = np.random.default_rng(0).random((60, 20, 20)) < np.linspace(0.3, 0.8, 60)[:, None, None]
    shapes = outlines(set_of(noise))
    assert shapely.is_valid(shapes).all()
    assert np.array_equal(shapely.area(shapes), noise.sum(axis=(1, 2)))


@pytest.mark.parametrize("transform", [Affine.identity(), NORTH_UP, ROTATED, Affine(1e-5, 0, 10, 0, -1e-5, 60)])
def test_polygons_in_place(transform: Affine) -> None:
    objects = blobs()
    shapes = polygons(objects, transform)
    assert all(shape.is_valid for shape in shapes)
    pixel = abs(transform.determinant)
    assert np.allclose(shapely.area(shapes) / pixel, objects.areas, rtol=1e-5)
    back = ~transform
    for shape, mask in zip(shapes, objects.to_dense(), strict=True):
        assert shape.geom_type == ("Polygon" if shapely.get_num_geometries(shape) == 1 else "MultiPolygon")
        assert all(part.exterior.is_ccw for part in shapely.get_parts(shape))
        again = rasterio.features.rasterize([shape], mask.shape, transform=transform, dtype="uint8")
        assert np.array_equal(again, mask)
        corner = back @ shape.representative_point().coords[0]
        assert mask[int(corner[1]), int(corner[0])]


def test_thin_object_across_a_scene_is_not_drawn() -> None:
    """A diagonal of 200 000 px would be a picture of 37 GiB."""
    rows = np.arange(200_000)
    runs = np.column_stack([rows, rows, rows + 2])
    shape = outlines(MaskSet((200_000, 200_001), runs, [0, len(rows)], [0]))[0]
    assert shape.area == 400_000 and len(shape.geoms) == 1


def test_files_hold_the_objects_in_canonical_order(tmp_path: Path) -> None:
    objects = blobs()
    paths = write_objects(tmp_path, objects, place(), CLASSES)
    assert [p.name for p in paths] == ["objects.gpkg", "objects.parquet"]
    assert pyogrio.list_layers(paths[0]).tolist() == [["objects", "MultiPolygon"]]
    expected = objects.canonical()
    for frame in (geopandas.read_file(paths[0]), geopandas.read_parquet(paths[1])):
        assert list(frame.columns) == COLUMNS
        assert frame.crs.to_epsg() == 32617
        assert frame["id"].dtype == np.int64 and frame["id"].tolist() == expected.ids.tolist()
        assert frame["class_id"].tolist() == (expected.labels + 1).tolist()
        assert frame["class"].tolist() == [CLASSES.names[i] for i in expected.labels]
        assert np.array_equal(frame["score"].to_numpy(), expected.scores)
        assert np.array_equal(frame["area_m2"], expected.areas * 0.25)
        assert np.allclose(frame.area, frame["area_m2"]) and frame.is_valid.all()
        overlapping = frame.sindex.query(frame.geometry, predicate="overlaps")
        assert overlapping.shape[1] > 0


def test_order_of_objects_changes_no_byte(tmp_path: Path) -> None:
    objects = blobs()
    (tmp_path / "a").mkdir()
    first = write_objects(tmp_path / "a", objects, place(), CLASSES)
    second = write_objects(tmp_path / "b", objects[::-1], place(), CLASSES)
    assert sha256(first[1]) == sha256(second[1])
    one, two = (geopandas.read_file(paths[0]) for paths in (first, second))
    assert one.equals(two)


@pytest.mark.parametrize("epsg", [32617, None])
def test_no_objects_still_make_valid_files(tmp_path: Path, epsg: int | None) -> None:
    objects = MaskSet.empty((10, 10))
    gpkg, parquet = write_objects(tmp_path, objects, place(epsg=epsg), CLASSES)
    columns = [c if epsg else c.replace("_m2", "_px") for c in COLUMNS]
    for frame in (geopandas.read_file(gpkg), geopandas.read_parquet(parquet)):
        assert len(frame) == 0 and list(frame.columns) == columns
    filled = write_objects(tmp_path / "filled", blobs(), place(epsg=epsg), CLASSES)
    assert pyogrio.read_info(gpkg)["dtypes"].tolist() == pyogrio.read_info(filled[0])["dtypes"].tolist()
    empty_schema, schema = (pyarrow.parquet.read_schema(p) for p in (parquet, filled[1]))
    assert empty_schema.equals(schema)
    assert "NaN" not in empty_schema.metadata[b"geo"].decode()
    json.loads(empty_schema.metadata[b"geo"])


def test_without_crs_areas_are_pixels(tmp_path: Path) -> None:
    objects = blobs().canonical()
    for geometry in (None, place(Affine.identity(), epsg=None)):
        for path in write_objects(tmp_path, objects, geometry, CLASSES):
            frame = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
            assert frame.crs is None and "area_m2" not in frame
            assert frame["area_px"].tolist() == objects.areas.tolist()
            assert np.array_equal(frame.area, objects.areas)


def test_a_scene_without_crs_writes_quietly(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_objects(tmp_path, blobs(), None, CLASSES)
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("name", ["objects.gpkg", "objects.parquet"])
def test_a_file_without_room_leaves_the_earlier_one(tmp_path: Path, name: str) -> None:
    """A limit on file size stands for the full disk."""
    at = np.arange(4000)
    runs = np.column_stack([at, at % 7, at % 7 + 1 + at % 13])
    many = MaskSet((4000, 30), runs, np.arange(4001), np.zeros(4000, np.int64), np.random.default_rng(0).random(4000))
    (path,) = write_objects(tmp_path, blobs(), place(), CLASSES, [name])
    before = sha256(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, hard))
    try:
        with pytest.raises(InputError, match=rf"^\S*/{name}: [^\n]*the disk (is )?full"):
            write_objects(tmp_path, many, place(), CLASSES, [name])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sha256(path) == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_real_scene_keeps_its_place(shared_data: Path, tmp_path: Path) -> None:
    """Every crown box of a NEON plot, written and laid over the scene again."""
    scenes = sorted(shared_data.rglob("OSBS_029.tif"))
    if not scenes:
        pytest.skip("OSBS_029.tif not in the shared data")
    with scenes[0].with_suffix(".csv").open() as file:
        rows = [[round(float(row[k])) for k in ("ymin", "xmin", "ymax", "xmax")] for row in csv.DictReader(file)]
    with rasterio.open(scenes[0]) as source:
        geometry, shape, bounds = (
            SimpleNamespace(crs=source.crs, transform=source.transform),
            source.shape,
            source.bounds,
        )
    masks = np.zeros((len(rows), *shape), bool)
    for mask, (top, left, bottom, right) in zip(masks, rows, strict=True):
        mask[top:bottom, left:right] = True
    objects = MaskSet.from_dense(masks, np.zeros(len(rows), np.int64)).canonical()
    for path in write_objects(tmp_path, objects, geometry, CLASSES):
        frame = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
        assert frame.crs.to_epsg() == 32617 and frame.is_valid.all()
        assert shapely.box(*bounds).contains(shapely.box(*frame.total_bounds))
        assert np.allclose(frame["area_m2"], objects.areas * abs(geometry.transform.determinant))
        again = rasterio.features.geometry_mask(frame.geometry[:1], shape, geometry.transform, invert=True)
        assert np.array_equal(again, objects[0].to_dense()[0])


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objects\.shp: expected one of \.gpkg, \.parquet"):
        write_objects(tmp_path, blobs(), place(), CLASSES, names=["objects.shp"])


def test_degenerate_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="transform"):
        table(blobs(), place(Affine(0, 0, 0, 0, 0, 0)), CLASSES)


def test_ids_are_stable_under_scores() -> None:
    objects = blobs()
    again = objects.with_scores(np.linspace(0, 1, len(objects)))
    assert set(table(objects, place(), CLASSES)["id"]) == set(table(again, place(), CLASSES)["id"])
    assert len(set(objects.ids)) == len(objects)
    assert math.isclose(table(objects, place(), CLASSES)["area_m2"].sum(), objects.areas.sum() / 4)


@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("kilobytes", range(40, 120, 16))
def test_a_package_that_lost_its_layer_is_not_passed_off_as_whole(tmp_path: Path, count: int, kilobytes: int) -> None:
    masks = np.zeros((count, 40, 40), bool)
    for index in range(count):
        masks[index, index * 8 : index * 8 + 5, 3:9] = True
    objects = MaskSet.from_dense(masks, np.zeros(count, np.int64))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, hard))
    try:
        write_objects(tmp_path, objects, None, ClassSet((Class("a"),)), names=("objects.gpkg",))
        written = True
    except InputError as error:
        assert "objects.gpkg" in str(error) and "partial" not in str(error)
        written = False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if written:
        assert len(geopandas.read_file(tmp_path / "objects.gpkg", layer="objects")) == count
    else:
        assert not list(tmp_path.iterdir())
