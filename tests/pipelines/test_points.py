"""Points in, by every format and with every fault: the count is the number of points, their places are kept."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import MultiPoint, Point, mapping

from adapters.classes import Class, ClassSet
from adapters.crowd import crowd
from adapters.errors import InputError
from adapters.points import PointRule
from adapters.remote_sensing import rgb_aerial
from pipelines.annotations import LabelOptions, describe_labels, read_annotations
from pipelines.config import DataItem, load_config
from pipelines.counting_metrics import centroids
from pipelines.sources import open_for
from pipelines.sources.picture import PictureSource

SHAPE = (80, 120)
POINTS = np.array([[30.5, 20.5], [60.5, 40.5], [64.5, 43.5], [90.5, 60.5]])  # their discs lie inside
CROWD = crowd()


@pytest.fixture
def photo(tmp_path):
    return save(np.zeros((*SHAPE, 3), np.uint8), tmp_path / "photo.png")


def save(pixels, path, **settings):
    Image.fromarray(pixels).save(path, **settings)
    return path


def read(path, photo, adapter=CROWD, **options):
    with open_for(photo, adapter) as source:
        return read_annotations(path, source, adapter, LabelOptions(**options))


def places(annotations):
    found = centroids(annotations.objects)
    return found[np.lexsort(found.T)]


def struct(**fields):
    """A 1x1 MATLAB struct."""
    value = np.empty((1, 1), [(name, object) for name in fields])
    for name, item in fields.items():
        value[name][0, 0] = item
    return value


def shanghaitech(points):
    cell = np.empty((1, 1), object)
    cell[0, 0] = struct(location=points, number=np.array([[len(points)]]))
    return {"image_info": cell}


def mall(*frames):
    cell = np.empty((1, len(frames)), object)
    for index, points in enumerate(frames):
        cell[0, index] = struct(loc=points)
    return {"frame": cell, "count": np.array([[len(p)] for p in frames])}


def coco(**item):
    images = [{"id": 1, "file_name": "photo.png"}, {"id": 2, "file_name": "other.png"}, {"id": 3, "file_name": "c.png"}]
    items = [{"image_id": 1, "category_id": 7, **one} for one in item["items"]]
    items.append({"image_id": 2, "category_id": 7, "bbox": [1, 1, 5, 5]})
    return {"images": images, "annotations": items, "categories": [{"id": 7, "name": "person"}]}


def keypoints(x, y):
    return {"keypoints": [x - 3, y, 2, x + 3, y, 1, 0, 0, 0], "bbox": [x - 9, y - 9, 30, 40]}


WRITERS = {
    "list.json": lambda p: json.dumps(p.tolist()),
    "objects.json": lambda p: json.dumps({"points": [{"x": x, "y": y} for x, y in p]}),
    "nwpu.json": lambda p: json.dumps({"img_id": "photo.png", "human_num": len(p), "points": p.tolist()}),
    "keypoints.json": lambda p: json.dumps(coco(items=[keypoints(x, y) for x, y in p])),
    "points.geojson": lambda p: json.dumps(mapping(MultiPoint(p))),
    "xy.csv": lambda p: "x,y\n" + "".join(f"{x},{y}\n" for x, y in p),
    "row.csv": lambda p: "row;column\n" + "".join(f"{y};{x}\n" for x, y in p),
    "wkt.csv": lambda p: "wkt;id\n" + "".join(f"POINT ({x} {y});1\n" for x, y in p),
    "jhu.txt": lambda p: "".join(f"{x} {y} 20 30 1 0\n" for x, y in p),
    "GT_photo.mat": shanghaitech,
    "photo_ann.mat": lambda p: {"annPoints": p},
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_points_back(name, tmp_path, photo) -> None:
    made = WRITERS[name](POINTS)
    path = tmp_path / name
    scipy.io.savemat(path, made) if isinstance(made, dict) else path.write_text(made)
    annotations = read(path, photo)
    np.testing.assert_allclose(places(annotations), POINTS, atol=0.1)
    assert annotations.report["kind"] == "points" and annotations.report["features"] == 4
    assert "discs of 0.3 x the mean distance to the 3 nearest, 2 to 15 px" in annotations.report["assumption"]
    radii = np.sqrt(annotations.objects.areas / np.pi)
    np.testing.assert_allclose(np.sort(radii), np.sort(CROWD.points.radii(POINTS)), rtol=0.05)
    assert describe_labels(path)["count"] >= 1


def test_mall_speaks_of_every_frame(tmp_path) -> None:
    scipy.io.savemat(tmp_path / "mall_gt.mat", mall(POINTS[:1], POINTS, np.zeros((0, 2))))
    for number, count in ((1, 1), (2, 4)):
        photo = save(np.zeros((*SHAPE, 3), np.uint8), tmp_path / f"seq_{number:06d}.jpg")
        assert len(read(tmp_path / "mall_gt.mat", photo).objects) == count


def test_dots_on_black(tmp_path, photo) -> None:
    dots = np.zeros((*SHAPE, 3), np.uint8)
    for x, y in POINTS:
        dots[int(y), int(x), 0] = 255
    path = save(dots, tmp_path / "dots.png")
    np.testing.assert_allclose(places(read(path, photo, dots=True)), POINTS, atol=0.1)


def test_outlines_and_boxes_by_their_centres(tmp_path, photo) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(coco(items=[{"bbox": [x - 4, y - 2, 8, 4]} for x, y in POINTS])))
    as_boxes = read(boxes, photo)
    assert as_boxes.report["boxes"] == "ellipse" and as_boxes.report["other_pictures"] == 1
    np.testing.assert_allclose(places(as_boxes), POINTS, atol=0.2)
    as_points = read(boxes, photo, centres=True)
    assert as_points.report["boxes"] is None and (as_points.objects.areas != as_boxes.objects.areas).all()
    np.testing.assert_allclose(places(as_points), POINTS, atol=0.1)
    outlines = tmp_path / "outlines.json"
    ring = [[x - 4.5, y - 4.5, x + 4.5, y - 4.5, x + 4.5, y + 4.5, x - 4.5, y + 4.5] for x, y in POINTS]
    outlines.write_text(json.dumps(coco(items=[{"segmentation": [r], "bbox": [0, 0, 1, 1]} for r in ring])))
    assert read(outlines, photo).objects.areas.tolist() == [81] * 4
    with pytest.raises(InputError, match="`centres` needs a rule"):
        read(outlines, photo, rgb_aerial(ClassSet((Class("person"),))), centres=True)


def test_a_picture_of_nobody_in_a_file_about_several(tmp_path) -> None:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco(items=[keypoints(20, 20)])))
    empty = save(np.zeros((*SHAPE, 3), np.uint8), tmp_path / "c.png")
    assert len(read(path, empty).objects) == 0
    stranger = save(np.zeros((*SHAPE, 3), np.uint8), tmp_path / "stranger.png")
    with pytest.raises(InputError, match=r"no labels of stranger\.png"):
        read(path, stranger)


def test_points_on_the_ground(make_geotiff, tmp_path) -> None:
    place = Affine(0.5, 0, 400_000, 0, -0.5, 3_000_000)
    scene = make_geotiff(np.zeros((3, *SHAPE), np.uint8), crs="EPSG:32617", transform=place)
    import pyproj

    back = pyproj.Transformer.from_crs(32617, 4326, always_xy=True)
    degrees = [back.transform(*(place @ (x, y))) for x, y in POINTS]
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(Point(d))} for d in degrees]
    path = tmp_path / "people.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    np.testing.assert_allclose(places(read(path, scene)), POINTS, atol=0.1)
    table = tmp_path / "people.csv"
    table.write_text("lon,lat,class\n" + "".join(f"{x!r},{y!r},person\n" for x, y in degrees))
    np.testing.assert_allclose(places(read(table, scene)), POINTS, atol=0.1)


# ---------------------------------------------------------------------- odd points


@given(st.lists(st.tuples(st.integers(-30, 150), st.integers(-30, 110)), max_size=40))
def test_what_is_on_the_picture_is_counted_and_nothing_else(tmp_path_factory, points) -> None:
    folder = tmp_path_factory.mktemp("points")
    photo = save(np.zeros((*SHAPE, 3), np.uint8), folder / "photo.png")
    path = folder / "points.json"
    path.write_text(json.dumps(points))
    inside = [(x, y) for x, y in points if 0 <= x < SHAPE[1] and 0 <= y < SHAPE[0]]
    if inside or not points:
        annotations = read(path, photo)
        assert len(annotations.objects) == len(inside)
        facts = annotations.report["points"] or {"outside": 0, "duplicates": 0}
        assert facts["outside"] == len(points) - len(inside)
        assert facts["duplicates"] == len(inside) - len(set(inside))
        once = read(path, photo, points=PointRule(duplicates="drop"))
        assert len(once.objects) == len(set(inside))
    else:
        with pytest.raises(InputError, match="do not overlap"):
            read(path, photo)
    assert len(read(path, photo, points=PointRule(outside="clip")).objects) == len(points)


def test_odd_points_are_reported(tmp_path, photo, caplog) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps([[5, 5], [5, 5], [500, 5]]))
    with caplog.at_level(logging.WARNING):
        read(path, photo)
    assert "1 points off the picture, 1 at a place that is taken; 1 left out" in caplog.text


def test_overlapping_discs_stay_whole(tmp_path, photo) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps([[50, 40], [53, 40]]))
    objects = read(path, photo, points=PointRule(smallest=6)).objects
    assert (objects.areas > 100).all() and objects.intersections(objects)[0, 1] > 50


def test_ten_thousand_people(tmp_path) -> None:
    photo = save(np.zeros((1000, 1500, 3), np.uint8), tmp_path / "many.png")
    points = np.random.default_rng(0).uniform(0, (1500, 1000), (10_000, 2))
    path = tmp_path / "many.mat"
    scipy.io.savemat(path, {"annPoints": points})
    assert len(read(path, photo).objects) == 10_000


@pytest.mark.parametrize("nobody", [np.zeros((0, 2)), np.zeros((0, 0))])
def test_nobody(tmp_path, photo, nobody) -> None:
    scipy.io.savemat(tmp_path / "a.mat", shanghaitech(nobody))
    scipy.io.savemat(tmp_path / "b.mat", {"annPoints": nobody})
    (tmp_path / "c.json").write_text("[]")
    (tmp_path / "d.csv").write_text("x,y\n")
    (tmp_path / "e.txt").write_text("")
    for name in ("a.mat", "b.mat", "c.json", "d.csv", "e.txt"):
        annotations = read(tmp_path / name, photo)
        assert len(annotations.objects) == 0 and annotations.report["features"] == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.mat", {"density": np.ones((3, 4))}, "no points in a known layout .*density float64 3x4"),
        ("a.mat", {"annPoints": np.ones((3, 4))}, r"'annPoints' is not laid out as expected: .*found float64 3x4"),
        ("a.mat", {"image_info": np.ones((2, 2))}, "'image_info' is not laid out"),
        ("a.mat", {"frame": np.ones((2, 2))}, "'frame' is not laid out as Mall's"),
        ("a.mat", b"MATLAB 5.0 MAT-file, cut" * 9, r"a\.mat: not a \.mat file"),
        ("a.json", '{"people": [[1, 2]]}', "expected points .* keys people"),
        ("a.json", '[[1, "two"]]', "point 1: expected"),
        ("a.json", "[[1, 2], [1, NaN]]", "point 2: expected finite"),
        ("a.json", "{", "not JSON"),
        ("a.csv", "x,y\n1,2\n1,abc\n", "line 3: expected two numbers"),
        ("a.csv", "x,y\n1,inf\n", "line 2: expected finite"),
        ("a.csv", "u,v\n1,2\n", "or x, y, or lon, lat; the columns are u, v"),
        ("a.txt", "12\n", "line 1: expected x and y"),
        ("a.txt", "twelve 3\n", "expected a line of numbers"),
    ],
)
def test_bad_labels_are_one_readable_line(name, content, words, tmp_path, photo) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        scipy.io.savemat(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as caught:
        read(path, photo)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_rule_points_are_refused_with_the_way_out(tmp_path, photo) -> None:
    path = tmp_path / "points.json"
    path.write_text("[[1, 2]]")
    aerial = rgb_aerial(ClassSet((Class("person"),)))
    with pytest.raises(InputError, match=r"covers nothing; .*points: \{\}"):
        read(path, photo, aerial)
    assert len(read(path, photo, aerial, points=PointRule()).objects) == 1


# ---------------------------------------------------------------------- a mask an object


def test_a_folder_of_masks_keeps_overlaps(tmp_path, photo) -> None:
    (tmp_path / "masks").mkdir()
    random = np.random.default_rng(0)
    masks = random.random((5, *SHAPE)) > 0.6
    masks[3] = False
    for number, mask in enumerate(masks):
        save(mask.astype(np.uint8) * 255, tmp_path / "masks" / f"{number}.png")
    annotations = read(tmp_path / "masks", photo)
    assert annotations.report["kind"] == "masks" and annotations.report["dropped"] == 1
    assert describe_labels(tmp_path / "masks") == {"kind": "masks", "path": str(tmp_path / "masks"), "count": 5}
    np.testing.assert_array_equal(annotations.objects.to_dense(), masks[[0, 1, 2, 4]])
    save(np.zeros((5, 5), np.uint8), tmp_path / "masks" / "odd.png")
    with pytest.raises(InputError, match=r"odd\.png: expected the picture's size, 120 x 80 px, found 5 x 5"):
        read(tmp_path / "masks", photo)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no masks in the folder"):
        read(tmp_path / "none", photo)


def test_real_nuclei(shared_data) -> None:
    folders = sorted((shared_data / "counting" / "nuclei").glob("*"))[:3]
    for folder in folders:
        annotations = read(folder / "masks", next((folder / "images").glob("*.png")))
        assert len(annotations.objects) == len(list((folder / "masks").iterdir())) > 0


# ---------------------------------------------------------------------- pictures


def test_pictures_are_seen_as_people_see_them(tmp_path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    upright = np.moveaxis(pixels, -1, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: shown turned by 90 degrees clockwise
    turned = save(np.rot90(pixels).copy(), tmp_path / "turned.png", exif=exif)
    grey = save(pixels[..., 0].copy(), tmp_path / "grey.png")
    deep = save(pixels[..., 0].astype(np.uint16) * 257, tmp_path / "deep.png")
    for path, expected in ((turned, upright), (grey, upright[[0, 0, 0]]), (deep, upright[[0, 0, 0]])):
        with open_for(path, CROWD) as source:
            assert isinstance(source, PictureSource) and source.shape == (40, 60)
            array, valid = source.read()
            np.testing.assert_array_equal(array, expected)
            np.testing.assert_array_equal(source.view((slice(5, 9), slice(7, 20))).read()[0], array[:, 5:9, 7:20])
            assert valid.all() and array.dtype == np.uint8


def test_bad_pictures_are_one_readable_line(tmp_path) -> None:
    save(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8), tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, words in (("cut.jpg", "cannot be decoded"), ("text.png", "not a picture"), ("empty.jpg", "is empty")):
        with pytest.raises(InputError, match=words), open_for(tmp_path / name, CROWD) as source:
            source.read()


# ---------------------------------------------------------------------- patterns in run configs


def test_a_pattern_is_one_scene_a_file(tmp_path) -> None:
    for name in ("b", "a"):
        (tmp_path / name / "images").mkdir(parents=True)
        save(np.zeros((4, 4, 3), np.uint8), tmp_path / name / "images" / f"{name}1.png")
    config = tmp_path / "run.yaml"
    text = 'adapter: x.json\ntrain: {steps: 1}\ndata:\n  - {source: "*/images/*.png", labels: "{folder}/../masks"}\n'
    config.write_text(text + '  - {source: "*/images/a*.png", labels: "gt/GT_{stem}.mat", role: test}\n')
    data = load_config(config).data
    a, b = tmp_path / "a" / "images" / "a1.png", tmp_path / "b" / "images" / "b1.png"
    assert data == (
        DataItem(source=str(a), labels=f"{a.parent}/../masks"),
        DataItem(source=str(b), labels=f"{b.parent}/../masks"),
        DataItem(source=str(a), labels=str(tmp_path / "gt" / "GT_a1.mat"), role="test"),
    )
    config.write_text(text.replace("*.png", "*.tif"))
    with pytest.raises(InputError, match="no file fits this pattern"):
        load_config(config)


def test_a_plan_of_photos_with_points_counts(tmp_path) -> None:
    from pipelines.planning import PlanOptions, plan

    random = np.random.default_rng(0)
    for folder in ("images", "ground-truth"):
        (tmp_path / folder).mkdir()
    for number in range(1, 5):
        pixels = random.integers(0, 256, (96, 128, 3)).astype(np.uint8)
        save(pixels, tmp_path / "images" / f"IMG_{number}.jpg")
        scipy.io.savemat(tmp_path / "ground-truth" / f"GT_IMG_{number}.mat", shanghaitech(POINTS + number))
    made = plan([tmp_path / "images"], [tmp_path / "ground-truth"], PlanOptions(), tmp_path)
    assert [Path(item.labels).name for item in made.config.data] == [f"GT_IMG_{n}.mat" for n in range(1, 5)]
    assert isinstance(made.config.adapter, dict) and made.config.adapter["points"] == PointRule().to_dict()
    assert "LOOK: points are taken for discs" in made.text()
