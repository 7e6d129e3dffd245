"""plan: pairs scenes with labels, reads classes and sizes, and writes a config that loads again and trains."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio.transform
import yaml

from adapters.base import DomainAdapter
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.config import load_config
from pipelines.label_census import _read_values, take_census
from pipelines.labelled import LabelledData
from pipelines.pairing import Pair, find_pairs
from pipelines.planning import PlanOptions, choose_policy, declare_channels, plan, write_plan

TRANSFORM = rasterio.transform.Affine(1, 0, 400000, 0, -1, 3280000)
UTM = "EPSG:32617"
MakeGeotiff = Callable[..., Path]


def picture(bands: int = 3, size: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (bands, size, size), np.uint8)


def write_squares(path: Path, count: int = 12, side: int = 20, size: int = 200, crs: str = UTM, **properties) -> Path:
    """`count` squares over the whole scene, as GeoJSON in `crs`."""
    import geopandas
    from shapely import box

    random = np.random.default_rng(1)
    corners = random.integers(0, size - side, (count, 2))
    shapes = [box(400000 + x, 3280000 - y - side, 400000 + x + side, 3280000 - y) for x, y in corners.tolist()]
    columns = {name: [values[i % len(values)] for i in range(count)] for name, values in properties.items()}
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=UTM).to_crs(crs)
    frame.to_file(path, driver="GeoJSON")
    return path


def made(folder: Path, data: Path, labels: list[Path] | None = None, **options) -> dict:
    """Plan, write, and read back: the YAML as a dict, after it has gone through `load_config`."""
    out = folder / "plan.yaml"
    write_plan(plan([data], labels or [], PlanOptions(**options), folder, "crowns"), out, overwrite=True)
    load_config(out)
    return yaml.safe_load(out.read_text())


# --- pairing


def names(pairs: list[Pair]) -> list[tuple[str, str | None]]:
    return [(Path(p.scene).name, Path(p.labels).name if p.labels else None) for p in pairs]


def test_labels_are_found_by_name(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    for name in ("a", "a2", "b", "alone"):
        make_geotiff(picture(size=64), f"{name}.tif")
    for label in ("a.xml", "a2_crowns.csv", "b.geojson", "b-old.geojson", "a.tif.aux.xml", "notes.txt"):
        (tmp_path / label).touch()
    assert names(find_pairs([tmp_path])) == [
        ("a.tif", "a.xml"),
        ("a2.tif", "a2_crowns.csv"),
        ("alone.tif", None),
        ("b.tif", "b.geojson"),
    ]


def test_labels_may_lie_in_a_folder_beside(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    make_geotiff(picture(size=64), "images/x.tif")
    make_geotiff(picture(size=64), "images/y.tif")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "x.geojson").touch()
    assert names(find_pairs([tmp_path])) == [("x.tif", "x.geojson"), ("y.tif", None)]
    assert names(find_pairs([tmp_path / "images"], [tmp_path / "labels"])) == [("x.tif", "x.geojson"), ("y.tif", None)]


def test_label_pictures_are_known_by_content_not_by_name(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    """`road_mask.tif` is a scene (many values), `town.tif` its labels (0 and 255)."""
    make_geotiff(picture(1), "road_mask.tif")
    make_geotiff(np.where(picture(1) > 200, 255, 0).astype(np.uint8), "town.tif")
    assert names(find_pairs([tmp_path])) == [("road_mask.tif", "town.tif")]


def test_one_scene_and_one_label_file_need_no_likeness(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    make_geotiff(picture(), "scene.tif")
    (tmp_path / "buildings.geojson").touch()
    assert names(find_pairs([tmp_path])) == [("scene.tif", "buildings.geojson")]


def test_vectors_are_preferred_because_they_keep_touching_objects_apart(
    tmp_path: Path, make_geotiff: MakeGeotiff
) -> None:
    make_geotiff(picture(), "scene.tif")
    make_geotiff((picture(1) > 128).astype(np.uint8), "scene_mask.tif")
    (tmp_path / "scene_crowns.gpkg").touch()
    assert names(find_pairs([tmp_path])) == [("scene.tif", "scene_crowns.gpkg")]


def test_a_scene_named_alone_finds_only_labels_named_like_it(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    scene = make_geotiff(picture(), "scene.tif")
    (tmp_path / "other.geojson").touch()
    assert names(find_pairs([scene])) == [("scene.tif", None)]
    (tmp_path / "scene.csv").touch()
    assert names(find_pairs([scene])) == [("scene.tif", "scene.csv")]


def test_an_array_file_may_hold_both(tmp_path: Path) -> None:
    path = tmp_path / "clouds.npz"
    np.savez(path, img=picture(6, 32).transpose(1, 2, 0), msk=np.zeros((32, 32), np.uint8))
    assert find_pairs([path]) == [Pair(str(path), f"{path}#msk")]


def test_what_cannot_be_paired_is_said(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    with pytest.raises(InputError, match=r"gone: no such"):
        find_pairs([tmp_path / "gone"])
    with pytest.raises(InputError, match="no picture found"):
        find_pairs([tmp_path])
    make_geotiff(picture(), "a.tif")
    make_geotiff(picture(), "b.tif")
    (tmp_path / "elsewhere").mkdir()
    stray = tmp_path / "elsewhere" / "c.geojson"
    stray.touch()
    with pytest.raises(InputError, match=r"c\.geojson: belongs to none"):
        find_pairs([tmp_path / "a.tif", tmp_path / "b.tif"], [stray])


# --- channels and classes


def test_unnamed_bytes_are_colours() -> None:
    three = declare_channels([("band1", "band2", "band3")], np.dtype(np.uint8))
    assert three.names == ("red", "green", "blue")
    assert three.select(["band1", "band2", "band3"]) == (0, 1, 2)
    four = declare_channels([("red", "green", "blue", "band4")], np.dtype(np.uint8))
    assert four.names == ("red", "green", "blue", "nir")
    assert four.select(["red", "green", "blue", "band4"]) == (0, 1, 2, 3)


def test_other_bands_keep_their_names_and_the_poorest_scene_decides() -> None:
    wide = ("B02", "B03", "B04", "B08", "B11")
    assert declare_channels([wide], np.dtype(np.uint16)).names == wide
    assert declare_channels([wide, wide[:3]], np.dtype(np.uint16)).names == wide[:3]
    assert declare_channels([("band1", "band2", "band3")], np.dtype(np.float32)).names == ("band1", "band2", "band3")


def test_numbers_with_a_stated_meaning_are_taken_by_it() -> None:
    channels = declare_channels([["B04", "B08"]], np.dtype("uint16"), encoded=True)
    assert [c.units for c in channels] == ["physical", "physical"]
    assert declare_channels([["B04"]], np.dtype("uint16"))[0].units == "stored"


def test_classes_come_from_a_column(tmp_path: Path) -> None:
    path = write_squares(tmp_path / "x.geojson", kind=["oak", "oak", "ash"], Label=["tree"])
    assert take_census([str(path)]).classes.names == ("tree",)
    chosen = take_census([str(path)], class_column="kind")
    assert chosen.classes.names == ("oak", "ash")  # the commonest first
    assert chosen.settings["class_column"] == "kind"
    with pytest.raises(InputError, match=r"x\.geojson: no column 'knid'.*did you mean 'kind'"):
        take_census([str(path)], class_column="knid")


def test_no_column_is_one_class(tmp_path: Path) -> None:
    path = write_squares(tmp_path / "buildings.geojson", osm_id=[1, 2, 3])
    assert take_census([str(path)]).classes.names == ("buildings",)
    assert take_census([str(path)], default_class="house").classes.names == ("house",)
    numbered = write_squares(tmp_path / "x17.geojson", osm_id=[1, 2, 3])
    assert take_census([str(numbered)]).classes.names == ("object",)


def test_an_identifier_is_no_class(tmp_path: Path) -> None:
    path = write_squares(tmp_path / "x.geojson", count=60, label=list(range(60)))
    with pytest.raises(InputError, match=r"60 values, more than 40.*--class"):
        take_census([str(path)])


def test_numbers_keep_their_value(tmp_path: Path) -> None:
    path = write_squares(tmp_path / "x.geojson", class_id=[3, 3, 7])
    census = take_census([str(path)])
    assert [(c.name, c.values) for c in census.classes] == [("class 3", (3,)), ("class 7", (7,))]


@pytest.mark.parametrize(
    ("pixels", "nodata", "values", "ignored", "covers", "kind"),
    [
        ({0: 900, 1: 100}, set(), [1], (), False, "thing"),  # a mask: 0 is background
        ({0: 900, 255: 100}, set(), [255], (), False, "thing"),  # the same, as pictures have it
        ({0: 900, 1: 90, 255: 10}, set(), [1], (255,), False, "thing"),  # 255 beside a class: no image
        ({0: 900, 1: 100}, {255}, [1], (255,), False, "thing"),
        ({0: 30, 1: 500, 2: 470}, set(), [1, 2], (0,), True, "stuff"),  # land cover with gaps
        ({0: 99_000, 1: 600, 2: 400}, set(), [1, 2], (0,), True, "stuff"),  # sparse samples of land cover
        ({0: 600, 1: 200, 2: 200}, {0}, [1, 2], (0,), True, "stuff"),  # 0 is nodata: nobody looked there
        ({0: 600, 1: 200, 2: 200}, set(), [1, 2], (), False, "stuff"),
    ],
)
def test_label_rasters_are_read_by_what_their_values_cover(
    pixels: dict[int, int], nodata: set[int], values: list[int], ignored: tuple[int, ...], covers: bool, kind: str
) -> None:
    census = _read_values(pixels, nodata, None)
    assert [c.values for c in census.classes] == [(value,) for value in values]
    assert {c.kind for c in census.classes} == {kind}
    assert census.classes.ignore_values == ignored
    assert census.covers == covers
    assert bool(census.warnings) == (nodata != {0} or covers) or nodata == {255}


def test_object_numbers_are_no_classes(tmp_path: Path) -> None:
    """A raster of 100 values numbers its objects: one class, each value an object."""
    path = tmp_path / "trees.npz"
    numbers = np.zeros((200, 200), np.uint16)
    for index in range(100):
        row, column = 20 * (index // 10), 20 * (index % 10)
        numbers[row : row + 15, column : column + 20] = index + 1  # neighbours touch
    np.savez(path, img=picture().transpose(1, 2, 0), msk=numbers)
    values = made(tmp_path, path)
    assert values["data"] == [{"source": "trees.npz", "labels": "trees.npz#msk", "label_options": {"instances": True}}]
    assert "100 objects" in (tmp_path / "plan.yaml").read_text()
    assert values["model"]["overrides"]["num_queries"] >= 70  # a crop of 128 px touches about 7 × 8 of them


def test_a_raster_without_classes_is_refused() -> None:
    with pytest.raises(InputError, match="no class"):
        _read_values({0: 100}, set(), None)


def test_overlap_follows_the_labels() -> None:
    def masks(*boxes: tuple[int, int], labels: list[int]) -> MaskSet:
        dense = np.zeros((len(boxes), 4, 20), bool)
        for mask, (start, stop) in zip(dense, boxes, strict=True):
            mask[:, start:stop] = True
        return MaskSet.from_dense(dense, labels)

    assert choose_policy([masks((0, 5), (5, 9), labels=[0, 0])], False)[0] == "exclusive"
    policy, why = choose_policy([masks((0, 5), (4, 9), labels=[0, 0])], False)
    assert policy == "free" and "share 4 px" in why
    assert choose_policy([masks((0, 5), (4, 9), labels=[0, 1])], False)[0] == "layered"
    assert choose_policy([masks((0, 5), (4, 9), labels=[0, 1])], True)[0] == "exclusive"
    assert choose_policy([MaskSet.empty((4, 20))], False)[0] == "exclusive"


# --- the whole plan


def test_a_plan_fits_the_data(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    scene = make_geotiff(picture(), crs=UTM, transform=TRANSFORM)
    labels = write_squares(tmp_path / "crowns.geojson", count=40, label=["oak", "ash"])
    values = made(tmp_path, scene, [labels])
    adapter = DomainAdapter.from_dict(values["adapter"])
    assert adapter.classes.names == ("ash", "oak")
    assert adapter.channels.names == ("red", "green", "blue")
    assert adapter.channels[0].offset == pytest.approx(127.5, abs=3)  # uniform 0..255
    assert adapter.channels[0].scale == pytest.approx(73.9, abs=3)
    assert values["train"]["crop"] == adapter.tile == 128  # 4 × 20 px is less than the least
    assert adapter.tile_overlap == 32
    assert values["model"]["overrides"]["num_queries"] >= 20
    assert values["data"] == [{"source": "scene.tif", "labels": "crowns.geojson"}]  # both move with the config
    text = (tmp_path / "plan.yaml").read_text()
    assert "ash: 20 objects" in text and "oak: 20 objects" in text


def test_labels_in_another_crs_give_the_same_plan(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    scene = make_geotiff(picture(), crs=UTM, transform=TRANSFORM)
    here = made(tmp_path, scene, [write_squares(tmp_path / "here.geojson")])
    there = made(tmp_path, scene, [write_squares(tmp_path / "there.geojson", crs="EPSG:4326")])
    assert json.loads((tmp_path / "there.geojson").read_text())["features"][0]["geometry"]["coordinates"][0][0][0] < 0
    for values in (here, there):
        del values["data"], values["adapter"]["classes"]  # file name, and the class named after it
    assert here == there


def test_several_scenes_are_dealt_out_and_unlabelled_ones_named(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    for index in range(4):
        make_geotiff(picture(seed=index), f"s{index}.tif", crs=UTM, transform=TRANSFORM)
        if index:
            write_squares(tmp_path / f"s{index}.geojson")
    values = made(tmp_path, tmp_path)
    assert [item["source"] for item in values["data"]] == ["s1.tif", "s2.tif", "s3.tif"]
    text = (tmp_path / "plan.yaml").read_text()
    assert "3 scenes, dealt out whole" in text and "no labels found for: s0.tif" in text


def test_land_cover_is_stuff(tmp_path: Path) -> None:
    path = tmp_path / "cover.npz"
    cover = np.repeat(np.array([1, 2, 3, 1], np.uint8), 64)[:, None] * np.ones((1, 256), np.uint8)
    np.savez(path, img=picture(6, 256).astype(np.float32).transpose(1, 2, 0), msk=cover)
    values = made(tmp_path, path)
    assert values["predict"]["task"] == "semantic"
    assert values["adapter"]["covers"] and values["adapter"]["overlap"] == "exclusive"
    assert values["data"] == [{"source": "cover.npz", "labels": "cover.npz#msk"}]
    assert values["train"]["crop"] == 256


def test_the_users_word_counts(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    scene = make_geotiff(picture(), crs=UTM, transform=TRANSFORM)
    labels = write_squares(tmp_path / "x.geojson")
    values = made(tmp_path, scene, [labels], preset="maskformer-resnet50", minutes=3, default_class="hut")
    assert values["model"]["preset"] == "maskformer-resnet50" and "weights" not in values["model"]
    assert values["train"]["minutes"] == 3
    assert DomainAdapter.from_dict(values["adapter"]).classes.names == ("hut",)
    with pytest.raises(InputError, match=r"--preset.*did you mean 'maskformer-resnet50'"):
        made(tmp_path, scene, [labels], preset="maskformer-resnet5")


def test_nothing_labelled_is_refused_and_leads_to_predict(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    scene = make_geotiff(picture())
    with pytest.raises(InputError, match=r"scene\.tif: no labels found.*maskbridge predict"):
        plan([scene], [], PlanOptions(), tmp_path)


def test_a_plan_replaces_only_when_told(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    make_geotiff(picture(), crs=UTM, transform=TRANSFORM)
    write_squares(tmp_path / "scene.geojson")
    chosen = plan([tmp_path / "scene.tif"], [], PlanOptions(), tmp_path)
    out = tmp_path / "plan.yaml"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"plan\.yaml: exists already"):
        write_plan(chosen, out)
    assert out.read_text() == "mine"
    write_plan(chosen, out, overwrite=True)
    assert load_config(out).data[0].source == str(tmp_path / "scene.tif")
    with pytest.raises(InputError, match="cannot be written"):
        write_plan(chosen, tmp_path / "nowhere" / "plan.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", "scene.geojson", "plan.yaml"}


@pytest.mark.parametrize("name", ["crowns", "buildings", "clouds", "landsat7"])
def test_real_data_gives_a_config_whose_data_can_be_read(name: str, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "satellite" / name
    out = tmp_path / f"{name}.yaml"
    write_plan(plan([folder], [], PlanOptions(), tmp_path, name), out)
    config = load_config(out)
    with LabelledData(config) as data:
        split = data.split
        assert split.train and split.test
        objects = sum(len(scene.annotations.objects) for scene in data.scenes)
    expected = {"crowns": 279 + 61 + 21, "buildings": 108, "clouds": 3, "landsat7": 30}[name]
    assert objects == pytest.approx(expected, abs=1)


def test_a_plan_trains(tmp_path: Path, make_geotiff: MakeGeotiff) -> None:
    """Two steps of a shrunken model: nothing in a plan is only decoration."""
    import torch

    from pipelines.experiments import train

    torch.set_num_threads(1)  # imported only now, after the fixture that does it
    scene = make_geotiff(picture(), crs=UTM, transform=TRANSFORM)
    write_plan(
        plan([scene], [write_squares(tmp_path / "crowns.geojson", count=40)], PlanOptions(), tmp_path),
        tmp_path / "plan.yaml",
    )
    config = load_config(tmp_path / "plan.yaml")
    small = {**config.model.overrides, "pixel_dim": 32, "mask_dim": 16, "hidden_dim": 32, "num_heads": 2}
    small |= {"decoder_layers": 1, "feedforward_dim": 32}
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"overrides": small, "weights": None}),
            "train": config.train.model_copy(
                update={"minutes": None, "steps": 2, "batch": 1, "workers": 0, "precision": "fp32"}
            ),
            "baseline": None,
        }
    )
    outcome = train(config, tmp_path / "run")
    assert (outcome.bundle / "bundle.json").is_file()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())
