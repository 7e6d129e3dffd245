"""Labels of every kind against masks that are known: formats, CRS rules, classes, ignore, repairs, refusals."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.remote_sensing import panchromatic, rgb_aerial
from maskformer.masks import MaskSet
from pipelines.annotations import LabelOptions, describe_labels, read_annotations
from pipelines.annotations.rasterise import rasterise
from pipelines.sources import open_source

UTM = "EPSG:32617"
NORTH_UP = Affine(0.5, 0, 400_000, 0, -0.5, 3_000_000)
SHAPE = (80, 120)
EVERYTHING = (slice(0, SHAPE[0]), slice(0, SHAPE[1]))
HOUSE = ClassSet((Class("house"),))
SEVERAL = ClassSet((Class("house", values=(1,)), Class("road", "stuff", values=(2, "street"))), (9, "unsure"))


def adapter(classes=HOUSE):
    return panchromatic(classes)


@pytest.fixture
def scene(make_geotiff):
    with open_source(make_geotiff(np.ones(SHAPE, np.uint8), "scene.tif", crs=UTM, transform=NORTH_UP)) as source:
        yield source


@pytest.fixture
def plain(make_geotiff):
    """A scene without a CRS."""
    with open_source(make_geotiff(np.ones(SHAPE, np.uint8), "plain.tif")) as source:
        yield source


def on_ground(geometry, transform=NORTH_UP):
    """Pixel coordinates to map coordinates."""
    a, b, c, d, e, f = transform[:6]
    return shapely.transform(geometry, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False)


def burnt(geometry, shape=SHAPE):
    """Reference: the whole canvas at once."""
    return rasterize([geometry], shape, dtype=np.uint8).astype(bool)


def write(path, geometries, columns=None, crs=UTM, **options):
    import geopandas

    frame = geopandas.GeoDataFrame(columns or {}, geometry=list(geometries), crs=crs)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, **options)
    return path


CROSSING = [
    shapely.box(10.2, 10.2, 40.4, 30.7),
    shapely.Polygon([(30.13, 20.21), (90.37, 25.43), (60.59, 70.71)], [[(50, 30), (60, 30), (55.3, 40)]]),
    shapely.MultiPolygon([shapely.box(100, 5, 110, 15), shapely.box(90, 60, 119, 79)]),
]  # no edge runs through a pixel's centre, where the last bit of a coordinate would decide


anywhere = st.tuples(st.floats(-20, 140), st.floats(-20, 100))
# corners and level edges that lie exactly on pixel centres: where the tie rule decides
on_centres = st.tuples(st.integers(-8, 250), st.integers(-8, 170)).map(lambda p: (p[0] / 2, p[1] / 2))


class TestRasterise:
    @given(
        corners=st.lists(
            st.lists(anywhere, min_size=3, max_size=6) | st.lists(on_centres, min_size=3, max_size=8),
            min_size=1,
            max_size=6,
        )
    )
    def test_equals_burning_the_whole_canvas(self, corners):
        """Each object alone in its own box gives the same pixels as GDAL over the whole scene."""
        shapes = [shapely.make_valid(shapely.Polygon(c), method="structure", keep_collapsed=False) for c in corners]
        shapes = [g for g in shapes if g.geom_type in ("Polygon", "MultiPolygon") and not g.is_empty]
        result = rasterise(shapes, np.arange(len(shapes)), SHAPE)
        dense = iter(result.objects.to_dense())
        for geometry, kept in zip(shapes, result.kept):
            expected = burnt(geometry)
            if expected.any():
                assert kept and np.array_equal(next(dense), expected)
            elif kept:  # caught no centre: the pixels it touches
                touched = rasterize([geometry], SHAPE, dtype=np.uint8, all_touched=True).astype(bool)
                found = next(dense)
                assert found.any() and (not touched.any() or np.array_equal(found, touched))
        assert result.objects.labels.tolist() == np.flatnonzero(result.kept).tolist()

    def test_holes_and_nothing(self):
        result = rasterise([shapely.Polygon(), *CROSSING], np.arange(4), SHAPE)
        assert np.array_equal(result.objects.to_dense(), np.stack([burnt(g) for g in CROSSING]))
        assert result.objects.labels.tolist() == [1, 2, 3]
        assert len(rasterise([], np.zeros(0, int), SHAPE).objects) == 0

    def test_tiny_objects_keep_a_pixel(self):
        specks = [shapely.box(5.1, 7.1, 5.3, 7.3), shapely.box(60.6, 50.6, 60.9, 50.9), shapely.box(0, 0, 3, 3)]
        result = rasterise(specks, np.zeros(3, int), SHAPE)
        assert result.tiny == 2 and result.kept.all()
        assert np.argwhere(result.objects[:2].to_dense()).tolist() == [[0, 7, 5], [1, 50, 60]]

    def test_slivers_cut_off_by_the_border_are_outside(self):
        result = rasterise([shapely.box(-30, 10, 0.3, 20), shapely.box(500, 500, 510, 510)], np.zeros(2, int), SHAPE)
        assert not result.kept.any() and result.tiny == 0


class TestVectorFormats:
    @pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.shp", "a.parquet", "a.fgb", "a.csv"])
    def test_the_same_masks_from_each(self, tmp_path, scene, name):
        shapes = [on_ground(g) for g in CROSSING]
        path = tmp_path / name
        if name == "a.csv":
            path.write_text("WKT,note\n" + "".join(f'"{g.wkt}",x\n' for g in shapes))
        else:
            write(path, shapes, {"note": ["x"] * 3})
        found = read_annotations(path, scene, adapter())
        expected = MaskSet.from_dense(np.stack([burnt(g) for g in CROSSING]), [0, 0, 0])
        assert found.objects.same_set(expected)  # a FlatGeobuf is sorted by place
        assert found.ignore is None
        assert found.report["counts"] == {"house": 3} and found.report["repaired"] == 0

    @pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32618"])
    def test_other_crs(self, tmp_path, scene, crs):
        import geopandas

        path = tmp_path / "a.gpkg"
        geopandas.GeoSeries([on_ground(g) for g in CROSSING], crs=UTM).to_crs(crs).to_frame("geometry").to_file(path)
        found = read_annotations(path, scene, adapter())
        expected = np.stack([burnt(g) for g in CROSSING])
        assert np.array_equal(found.objects.to_dense(), expected)
        assert "reprojected from" in found.report["assumption"]

    def test_overlaps_and_windows(self, tmp_path, scene):
        found = read_annotations(write(tmp_path / "a.gpkg", [on_ground(g) for g in CROSSING]), scene, adapter())
        dense = found.objects.to_dense()
        assert (dense.sum(axis=0) == 2).any()
        window = (slice(15, 60), slice(25, 95))
        part = found.read(window)
        expected = dense[:, *window]
        assert np.array_equal(part.objects.to_dense(), expected[expected.any(axis=(1, 2))])

    def test_a_view_of_a_scene(self, tmp_path, scene):
        path = write(tmp_path / "a.gpkg", [on_ground(g) for g in CROSSING])
        window = (slice(15, 60), slice(25, 95))
        found = read_annotations(path, scene.view(window), adapter())
        assert found.objects == read_annotations(path, scene, adapter()).objects.crop(window)

    def test_rotated_scene(self, tmp_path, make_geotiff):
        turned = Affine.translation(400_000, 3_000_000) @ Affine.rotation(33) @ Affine.scale(2, -3)
        path = make_geotiff(np.ones(SHAPE, np.uint8), "turned.tif", crs=UTM, transform=turned)
        labels = write(tmp_path / "a.gpkg", [on_ground(g, turned) for g in CROSSING])
        with open_source(path) as source:
            found = read_annotations(labels, source, adapter()).objects.to_dense()
        assert np.array_equal(found, np.stack([burnt(g) for g in CROSSING]))

    def test_layers(self, tmp_path, scene):
        path = tmp_path / "a.gpkg"
        write(path, [on_ground(CROSSING[0])], layer="first")
        write(path, [on_ground(g) for g in CROSSING], layer="second")
        with pytest.raises(InputError, match=r"a.gpkg: which layer\? There are first, second"):
            read_annotations(path, scene, adapter())
        with pytest.raises(InputError, match=r"no layer 'secnd'.*did you mean 'second'"):
            read_annotations(path, scene, adapter(), LabelOptions(layer="secnd"))
        assert len(read_annotations(path, scene, adapter(), LabelOptions(layer="second")).objects) == 3

    def test_no_objects_is_an_answer(self, tmp_path, scene):
        path = tmp_path / "none.geojson"
        path.write_text('{"type": "FeatureCollection", "features": []}')
        found = read_annotations(path, scene, adapter())
        assert len(found.objects) == 0 and found.read(EVERYTHING).objects.shape == SHAPE


class TestLines:
    def test_buffered_in_metres(self, tmp_path, scene):
        line = shapely.LineString([(10, 40), (110, 40)])
        path = write(tmp_path / "roads.geojson", [on_ground(line)])
        found = read_annotations(path, scene, adapter(), LabelOptions(buffer_m=3.0))  # 6 px of 0.5 m
        expected = burnt(line.buffer(6))
        assert np.logical_xor(found.objects.to_dense()[0], expected).sum() <= 2
        assert found.report["kind"] == "lines"

    @pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
    def test_metres_are_true_in_any_crs(self, tmp_path, make_geotiff, crs):
        """At 60 degrees north a Web Mercator unit is half a metre and a degree of longitude 56 km."""
        from pyproj import Transformer

        x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(10.0, 60.0)
        step = 2.0 if crs == "EPSG:3857" else 1 / 111_320 / np.cos(np.radians(60))
        transform = Affine(step, 0, x, 0, -step * (1 if crs == "EPSG:3857" else 0.5), y)  # pixels of 1 m
        scene = make_geotiff(np.ones(SHAPE, np.uint8), crs=crs, transform=transform)
        line = shapely.LineString([(-10, 40), (130, 40)])
        path = write(tmp_path / "roads.gpkg", [on_ground(line, transform)], crs=crs)
        with open_source(scene) as source:
            found = read_annotations(path, source, adapter(), LabelOptions(buffer_m=10.0)).objects
        assert found.areas[0] == pytest.approx(20 * 120, rel=0.05)

    def test_without_a_width(self, tmp_path, scene, plain):
        line = shapely.LineString([(10, 40), (110, 40)])
        path = write(tmp_path / "roads.geojson", [on_ground(line)])
        with pytest.raises(InputError, match=r"roads.geojson: feature 1: is a line; .*buffer_m"):
            read_annotations(path, scene, adapter())
        (tmp_path / "px.csv").write_text(f'WKT\n"{line.wkt}"\n')
        with pytest.raises(InputError, match=r"metres are unknown without a CRS.*buffer_px"):
            read_annotations(tmp_path / "px.csv", plain, adapter(), LabelOptions(buffer_m=3.0))
        found = read_annotations(tmp_path / "px.csv", plain, adapter(), LabelOptions(buffer_px=4))
        assert np.array_equal(found.objects.to_dense()[0], burnt(line.buffer(4)))


class TestBoxes:
    BOXES = ((10, 12, 31, 40), (25, 30, 60, 50))

    def csv(self, path, boxes=None, names="xmin,ymin,xmax,ymax"):
        path.write_text(f"{names}\n" + "".join(",".join(map(str, b)) + "\n" for b in boxes or self.BOXES))
        return path

    def voc(self, path, size=SHAPE, names=("house", "house"), head=""):
        parts = [
            f"<object><name>{n}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax>"
            f"<ymax>{b[3]}</ymax></bndbox></object>"
            for n, b in zip(names, self.BOXES)
        ]
        path.write_text(
            f"{head}<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{''.join(parts)}"
            "</annotation>"
        )
        return path

    @staticmethod
    def ellipse(box):
        rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        return ((columns - x) / (box[2] - x)) ** 2 + ((rows - y) / (box[3] - y)) ** 2 <= 1

    @pytest.mark.parametrize("kind", ["csv", "voc"])
    @pytest.mark.parametrize("georeferenced", [True, False])
    def test_pixel_boxes(self, tmp_path, scene, plain, kind, georeferenced):
        path = self.csv(tmp_path / "b.csv") if kind == "csv" else self.voc(tmp_path / "b.xml")
        source = scene if georeferenced else plain
        found = read_annotations(path, source, adapter(), LabelOptions(boxes="box"))
        expected = np.zeros((2, *SHAPE), bool)
        for mask, (xmin, ymin, xmax, ymax) in zip(expected, self.BOXES):
            mask[ymin:ymax, xmin:xmax] = True  # half-open: xmax is where the box ends
        assert np.array_equal(found.objects.to_dense(), expected)
        assert found.report["boxes"] == "box" and found.report["coordinates"] == "pixels"
        found = read_annotations(path, source, adapter())
        assert found.report["boxes"] == "ellipse" and "ellipses" in found.report["assumption"]
        for mask, box in zip(found.objects.to_dense(), self.BOXES):
            assert np.logical_xor(mask, self.ellipse(box)).sum() <= 4  # centres that lie on the ellipse
        view = source.view((slice(5, 60), slice(7, 80)))
        assert read_annotations(path, view, adapter()).objects == found.objects.crop((slice(5, 60), slice(7, 80)))

    def test_map_boxes(self, tmp_path, scene):
        shapes = [on_ground(shapely.box(*b)) for b in self.BOXES]
        path = self.csv(tmp_path / "b.csv", [g.bounds for g in shapes], "MinX,MinY,MaxX,MaxY")
        found = read_annotations(path, scene, adapter(), LabelOptions(boxes="box"))
        assert np.array_equal(found.objects.to_dense(), np.stack([burnt(shapely.box(*b)) for b in self.BOXES]))
        assert found.report["coordinates"] == "map"

    def test_rectangles_stay_polygons_unless_told(self, tmp_path, scene):
        path = write(tmp_path / "a.gpkg", [on_ground(shapely.box(*b)) for b in self.BOXES])
        as_drawn = read_annotations(path, scene, adapter())
        assert as_drawn.report["boxes"] is None and "upright rectangles" in as_drawn.report["assumption"]
        assert as_drawn.objects.areas.tolist() == [21 * 28, 35 * 20]
        as_boxes = read_annotations(path, scene, adapter(), LabelOptions(rectangles_are_boxes=True))
        assert as_boxes.report["boxes"] == "ellipse"
        assert as_boxes.objects.areas[0] == pytest.approx(np.pi / 4 * 21 * 28, rel=0.02)

    def test_several_pictures_in_one_file(self, tmp_path, scene):
        rows = [("scene.png", *self.BOXES[0], "house"), ("other.png", *self.BOXES[1], "house")]
        path = self.csv(tmp_path / "b.csv", rows, "image_path,xmin,ymin,xmax,ymax,label")
        found = read_annotations(path, scene, adapter())
        assert len(found.objects) == 1 and found.report["other_pictures"] == 1
        path = self.csv(tmp_path / "b.csv", [("x.png", *rows[0][1:]), rows[1]], "image_path,xmin,ymin,xmax,ymax,label")
        with pytest.raises(InputError, match=r"b.csv: no labels of scene.tif; the file is about other, x"):
            read_annotations(path, scene, adapter())

    def test_refusals(self, tmp_path, scene):
        cases = {
            r"line 3: expected finite numbers": [(1, 2, 3, 4), (1, 2, "nan", 4)],
            r"line 2: expected four numbers for the box, found '1', '2', 'x', '4'": [(1, 2, "x", 4)],
            r"line 2: expected xmin < xmax": [(5, 2, 3, 4)],
            r"line 3: expected 4 values, found 3": [(1, 2, 3, 4), (1, 2, 3)],
        }
        for fault, rows in cases.items():
            with pytest.raises(InputError, match=f"b.csv: {fault}"):
                read_annotations(self.csv(tmp_path / "b.csv", rows), scene, adapter())
        with pytest.raises(InputError, match=r"expected a column WKT.*the columns are a, b"):
            read_annotations(self.csv(tmp_path / "b.csv", [(1, 2)], "a,b"), scene, adapter())
        with pytest.raises(InputError, match=r"labels of a picture of 99 x 80 px, but .*scene.tif has 120 x 80 px"):
            read_annotations(self.voc(tmp_path / "b.xml", (80, 99)), scene, adapter())
        bomb = '<!DOCTYPE annotation [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
        with pytest.raises(InputError, match=r"b.xml: holds a document type"):
            read_annotations(self.voc(tmp_path / "b.xml", head=bomb), scene, adapter())
        (tmp_path / "b.xml").write_text("<annotation><object>")
        with pytest.raises(InputError, match=r"b.xml: not an xml file"):
            read_annotations(tmp_path / "b.xml", scene, adapter())
        with pytest.raises(InputError, match=r"b.xml: column 'name': unknown.*'Car' \(1 objects\).*known are house"):
            read_annotations(self.voc(tmp_path / "b.xml", names=("house", "Car")), scene, adapter())


class TestClasses:
    def test_column_values_ignore_and_stuff(self, tmp_path, scene):
        shapes = [shapely.box(10 * i, 10, 10 * i + 8, 40) for i in range(6)]
        path = write(
            tmp_path / "a.gpkg",
            [on_ground(g) for g in shapes],
            {"class": ["House", "1", "street", "2", "unsure", "0"]},
        )
        found = read_annotations(path, scene, adapter(SEVERAL))
        masks = [burnt(g) for g in shapes]
        assert found.objects.labels.tolist() == [0, 0, 1]  # the roads are one object
        assert np.array_equal(found.objects.to_dense(), np.stack([masks[0], masks[1], masks[2] | masks[3]]))
        assert np.array_equal(found.read(EVERYTHING).ignore, masks[4])
        assert (found.report["ignored"], found.report["background"]) == (1, 1)
        assert found.report["counts"] == {"house": 2, "road": 1}

    def test_sparse_labels(self, tmp_path, scene):
        """outside="ignore": what no label covers is not known; background polygons are."""
        shapes = [shapely.box(10 * i, 10, 10 * i + 8, 40) for i in range(3)]
        path = write(tmp_path / "a.gpkg", [on_ground(g) for g in shapes], {"class": [1, 0, 9]})
        found = read_annotations(path, scene, adapter(SEVERAL), LabelOptions(outside="ignore"))
        spoken = burnt(shapes[0]) | burnt(shapes[1])
        for window in (EVERYTHING, (slice(20, 50), slice(5, 25)), (slice(60, 70), slice(100, 110))):
            assert np.array_equal(found.read(window).ignore, ~spoken[window])

    def test_unknown_value_is_named_with_its_count(self, tmp_path, scene):
        path = write(tmp_path / "a.gpkg", [on_ground(g) for g in CROSSING], {"class": ["shed", "house", "shed"]})
        with pytest.raises(
            InputError, match=r"a.gpkg: column 'class': unknown class value 'shed' \(2 objects\); known are house"
        ):
            read_annotations(path, scene, adapter(SEVERAL))

    def test_which_column(self, tmp_path, scene):
        path = write(
            tmp_path / "a.gpkg", [on_ground(g) for g in CROSSING], {"kind": ["house", None, "road"], "n": [1, 2, 3]}
        )
        read = partial(read_annotations, path, scene, adapter(SEVERAL))
        with pytest.raises(InputError, match=r"which column holds the class\?.*the columns are kind, n"):
            read()
        with pytest.raises(InputError, match=r"no column 'knd'; .*did you mean 'kind'"):
            read(LabelOptions(class_column="knd"))
        with pytest.raises(InputError, match=r"'\(empty\)' \(1 objects\)"):
            read(LabelOptions(class_column="kind"))
        found = read(LabelOptions(class_column="kind", default_class="house"))
        assert sorted(found.objects.labels.tolist()) == [0, 0, 1]
        assert read(LabelOptions(default_class="road")).report["counts"] == {"house": 0, "road": 1}
        with pytest.raises(InputError, match=r"default_class: unknown class 'tree'; known are house"):
            read(LabelOptions(default_class="tree"))


class TestGeometryFaults:
    def test_invalid_is_repaired_and_counted(self, tmp_path, scene):
        bow = shapely.Polygon([(10, 10), (50, 50), (50, 10), (10, 50)])
        flat = shapely.Polygon([(70, 10), (90, 10), (80, 10)])
        path = write(tmp_path / "a.gpkg", [on_ground(g) for g in (bow, CROSSING[0], flat)])
        found = read_annotations(path, scene, adapter())
        assert (found.report["repaired"], found.report["dropped"]) == (2, 1)
        lobes = shapely.union_all(
            [shapely.Polygon([(10, 10), (30, 30), (10, 50)]), shapely.Polygon([(50, 10), (30, 30), (50, 50)])]
        )
        assert np.array_equal(found.objects.to_dense()[0], burnt(lobes))

    def test_nan_empty_and_points_name_file_and_row(self, tmp_path, scene):
        good = on_ground(CROSSING[0]).wkt
        cases = {
            "POLYGON ((0 0, nan 1, 0 1, 0 0))": "line 3: has NaN or infinity",
            "POLYGON EMPTY": "line 3: has no geometry",
            "POINT (1 2)": "line 3: is a point, which covers nothing; give outlines or boxes",
            "POLYGON ((0 0, 1": "line 3: not a geometry in WKT",
        }
        for wkt, fault in cases.items():
            (tmp_path / "a.csv").write_text(f'WKT\n"{good}"\n"{wkt}"\n')
            with pytest.raises(InputError, match=f"a.csv: {fault}"):
                read_annotations(tmp_path / "a.csv", scene, adapter())
        square = [[400000, 2999990], [400010, 2999990], [400010, 2999980], [float("nan"), 0], [400000, 2999990]]
        feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [square]}}
        empty = {"type": "Feature", "properties": {}, "geometry": None}
        crs = {"type": "name", "properties": {"name": UTM}}
        for broken, fault in ((feature, "feature 1: has NaN"), (empty, "feature 1: has no geometry")):
            path = tmp_path / "a.geojson"
            path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [broken]}))
            with pytest.raises(InputError, match=f"a.geojson: {fault}"):
                read_annotations(path, scene, adapter())

    def test_unreadable_files(self, tmp_path, scene):
        for name in ("bad.geojson", "bad.gpkg", "bad.shp", "bad.parquet"):
            (tmp_path / name).write_text("{nothing")
            with pytest.raises(InputError, match=f"{name}: not a"):
                read_annotations(tmp_path / name, scene, adapter())
        (tmp_path / "labels.docx").write_text("x")
        with pytest.raises(InputError, match=r"labels.docx: labels of an unknown kind '.docx'; known are .bmp, .csv"):
            read_annotations(tmp_path / "labels.docx", scene, adapter())
        with pytest.raises(InputError, match=r"gone.gpkg: no such file"):
            read_annotations(tmp_path / "gone.gpkg", scene, adapter())


class TestPlacement:
    def test_labels_elsewhere_name_both_extents(self, tmp_path, scene):
        path = write(tmp_path / "a.gpkg", [shapely.box(500000, 10, 500010, 20)])
        with pytest.raises(
            InputError,
            match=r"do not overlap the scene .*scene.tif: labels x 500000 to 500010, y 10 to 20; "
            r"scene x 400000 to 400060, y 2999960 to 3000000 \(EPSG:32617\)",
        ):
            read_annotations(path, scene, adapter())

    def test_labels_without_crs_over_a_scene_with_one(self, tmp_path, scene):
        for geometry, coordinates in ((on_ground(CROSSING[1]), "map"), (CROSSING[1], "pixels")):
            (tmp_path / "a.csv").write_text(f'WKT\n"{geometry.wkt}"\n')
            found = read_annotations(tmp_path / "a.csv", scene, adapter())
            assert found.report["coordinates"] == coordinates
            assert np.array_equal(found.objects.to_dense()[0], burnt(CROSSING[1]))

    def test_labels_with_crs_over_a_scene_without(self, tmp_path, plain):
        found = read_annotations(write(tmp_path / "a.gpkg", CROSSING), plain, adapter())
        assert np.array_equal(found.objects.to_dense(), np.stack([burnt(g) for g in CROSSING]))
        assert "is not used, because the scene has no CRS" in found.report["assumption"]

    def test_degrees_over_a_scene_without_crs(self, tmp_path, plain):
        path = write(tmp_path / "a.gpkg", [shapely.box(10.1, 50.1, 10.1001, 50.1001)], crs="EPSG:4326")
        with pytest.raises(InputError, match=r"the labels are in degrees \(EPSG:4326\), but .*plain.tif has no CRS"):
            read_annotations(path, plain, adapter())

    def test_partly_outside_is_counted(self, tmp_path, scene):
        path = write(tmp_path / "a.gpkg", [on_ground(g) for g in (CROSSING[0], shapely.box(-50, -50, -10, -10))])
        found = read_annotations(path, scene, adapter())
        assert (found.report["outside"], len(found.objects)) == (1, 1)


def blobs(seed=0, values=(0, 1, 2, 9)):
    """Random class values in patches."""
    random = np.random.default_rng(seed)
    return np.kron(random.choice(values, (20, 30)), np.ones((4, 4), int)).astype(np.uint8)


class TestRasters:
    @pytest.mark.parametrize("connectivity", [4, 8])
    def test_classes_to_objects(self, make_geotiff, scene, connectivity):
        values = blobs()
        path = make_geotiff(values, "labels.tif", crs=UTM, transform=NORTH_UP)
        found = read_annotations(path, scene, adapter(SEVERAL), LabelOptions(connectivity=connectivity))
        structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
        regions, count = ndimage.label(values == 1, structure)
        expected = [regions == i + 1 for i in range(count)] + [values == 2]
        assert found.objects.same_set(MaskSet.from_dense(np.stack(expected), [0] * count + [1]))
        assert np.array_equal(found.read(EVERYTHING).ignore, values == 9)
        window = (slice(3, 50), slice(11, 70))
        assert np.array_equal(found.read(window).ignore, (values == 9)[window])
        assert found.report["background"] == (values == 0).sum()

    def test_ignore_is_not_background(self, make_geotiff, scene):
        """The same zeros: unlabelled when the classes say so, nothing when they do not."""
        path = make_geotiff(blobs(values=(0, 1)), "labels.tif", crs=UTM, transform=NORTH_UP)
        house = Class("house", values=(1,))
        assert read_annotations(path, scene, adapter(ClassSet((house,)))).ignore is None
        ignored = read_annotations(path, scene, adapter(ClassSet((house,), ignore_values=(0,))))
        assert np.array_equal(ignored.read(EVERYTHING).ignore, blobs(values=(0, 1)) == 0)

    def test_nodata_of_the_labels_is_unknown_unless_claimed(self, make_geotiff, scene):
        values = blobs(values=(0, 1))
        path = make_geotiff(values, "labels.tif", crs=UTM, transform=NORTH_UP, nodata=0)
        house = Class("house", values=(1,))
        assert np.array_equal(
            read_annotations(path, scene, adapter(ClassSet((house,)))).read(EVERYTHING).ignore, values == 0
        )
        stated = adapter(ClassSet((house,), background_values=(0,)))
        assert read_annotations(path, scene, stated).ignore is None
        shadow = adapter(ClassSet((house, Class("shadow", "stuff", values=(0,)))))
        assert read_annotations(path, scene, shadow).report["counts"]["shadow"] == 1

    def test_unknown_value(self, make_geotiff, scene):
        values = blobs(values=(0, 1, 7))
        path = make_geotiff(values, "labels.tif", crs=UTM, transform=NORTH_UP)
        with pytest.raises(InputError, match=rf"labels.tif: unknown class value 7 \({(values == 7).sum()} px\); known"):
            read_annotations(path, scene, adapter(SEVERAL))

    def test_instances(self, make_geotiff, scene):
        values = blobs(values=(0, 300, 301, 70000)).astype(np.int32)
        values = np.where(blobs(3) == 1, 70000, np.where(blobs(3) == 2, 301, 0)).astype(np.int32)
        path = make_geotiff(values, "labels.tif", crs=UTM, transform=NORTH_UP)
        found = read_annotations(path, scene, adapter(), LabelOptions(instances=True))
        assert np.array_equal(found.objects.to_dense(), np.stack([values == 301, values == 70000]))
        with pytest.raises(InputError, match="Name it with `default_class`"):
            read_annotations(path, scene, adapter(SEVERAL), LabelOptions(instances=True))

    def test_other_grid_and_crs(self, tmp_path, make_geotiff, scene):
        """Labels at twice the resolution, shifted, covering a part: nearest value; beyond them `outside` says."""
        fine = Affine(0.25, 0, 400_010, 0, -0.25, 2_999_990)
        values = np.kron(blobs()[20:60, 20:100], np.ones((2, 2), int)).astype(np.uint8)
        path = make_geotiff(values, "labels.tif", crs=UTM, transform=fine)
        expected = np.zeros(SHAPE, int)
        expected[20:60, 20:100] = blobs()[20:60, 20:100]
        found = read_annotations(path, scene, adapter(SEVERAL))
        assert np.array_equal(found.objects[found.objects.labels == 1].to_dense()[0], expected == 2)
        assert np.array_equal(found.read(EVERYTHING).ignore, expected == 9)
        found = read_annotations(path, scene, adapter(SEVERAL), LabelOptions(outside="ignore"))
        outside = np.ones(SHAPE, bool)
        outside[20:60, 20:100] = False
        assert np.array_equal(found.read(EVERYTHING).ignore, outside | (expected == 9))

    def test_another_crs_is_reprojected(self, make_geotiff, scene):
        from rasterio.warp import calculate_default_transform, reproject

        values = blobs()
        bounds = scene.geometry.bounds(SHAPE)
        transform, width, height = calculate_default_transform(
            UTM, "EPSG:4326", SHAPE[1], SHAPE[0], *bounds, resolution=0.5e-6
        )
        warped = np.zeros((height, width), np.uint8)
        reproject(values, warped, src_transform=NORTH_UP, src_crs=UTM, dst_transform=transform, dst_crs="EPSG:4326")
        path = make_geotiff(warped, "labels.tif", crs="EPSG:4326", transform=transform)
        found = read_annotations(path, scene, adapter(SEVERAL))
        road = found.objects[found.objects.labels == 1].to_dense()[0]
        assert np.logical_xor(road, values == 2).sum() <= 0.01 * (values == 2).sum()

    def test_elsewhere(self, make_geotiff, scene):
        path = make_geotiff(blobs(), "labels.tif", crs=UTM, transform=Affine.translation(9e4, 0) @ NORTH_UP)
        with pytest.raises(InputError, match=r"labels.tif: the labels do not overlap.*x 490000 .*scene x 400000"):
            read_annotations(path, scene, adapter(SEVERAL))

    def test_without_crs_pixel_for_pixel(self, make_geotiff, scene):
        path = make_geotiff(blobs(), "labels.png", driver="PNG")
        found = read_annotations(path, scene, adapter(SEVERAL))
        assert np.array_equal(found.objects[found.objects.labels == 1].to_dense()[0], blobs() == 2)
        window = (slice(7, 40), slice(9, 80))
        assert (
            read_annotations(path, scene.view(window), adapter(SEVERAL)).report["values"]["2"]
            == (blobs()[window] == 2).sum()
        )
        path = make_geotiff(blobs()[:-4], "small.png", driver="PNG")
        with pytest.raises(InputError, match=r"small.png: expected the size of .*, 120 x 80 px, found 120 x 76"):
            read_annotations(path, scene, adapter(SEVERAL))

    def test_bands_and_fractions(self, make_geotiff, scene):
        place = {"crs": UTM, "transform": NORTH_UP}
        path = make_geotiff(np.stack([blobs(1), blobs(2)]), "two.tif", descriptions=["old", "new"], **place)
        with pytest.raises(InputError, match=r"two.tif: expected one band of labels, found 2 \(old, new\)"):
            read_annotations(path, scene, adapter(SEVERAL))
        for layer in ("new", "2"):
            found = read_annotations(path, scene, adapter(SEVERAL), LabelOptions(layer=layer))
            assert found.report["values"]["2"] == (blobs(2) == 2).sum()
        halves = make_geotiff(np.full(SHAPE, 0.5, np.float32), "half.tif", **place)
        with pytest.raises(InputError, match=r"half.tif: expected whole numbers as class values, found 0.5"):
            read_annotations(halves, scene, adapter(SEVERAL))

    def test_arrays(self, tmp_path, plain):
        np.savez(tmp_path / "l.npz", img=np.zeros((*SHAPE, 3)), msk=blobs()[..., None], other=blobs(1))
        found = read_annotations(tmp_path / "l.npz", plain, adapter(SEVERAL))
        assert found.report["values"]["2"] == (blobs() == 2).sum()
        for name, options in ((f"{tmp_path}/l.npz#other", None), (tmp_path / "l.npz", LabelOptions(layer="other"))):
            found = read_annotations(name, plain, adapter(SEVERAL), options)
            assert found.report["values"]["2"] == (blobs(1) == 2).sum()
        np.savez(tmp_path / "small.npz", msk=np.zeros((5, 5), np.uint8))
        with pytest.raises(InputError, match=r"small.npz: expected the size of"):
            read_annotations(tmp_path / "small.npz", plain, adapter(SEVERAL))
        np.savez(tmp_path / "pickle.npz", msk=np.array([[None]], object))
        with pytest.raises(InputError, match="Python objects"):
            read_annotations(tmp_path / "pickle.npz", plain, adapter(SEVERAL))


class TestDescribe:
    def test_vector_table_and_raster(self, tmp_path, make_geotiff):
        path = write(tmp_path / "a.geojson", CROSSING, {"class": ["house", "house", None]})
        found = describe_labels(path)
        assert (found["kind"], found["count"], found["crs"]) == ("polygons", 3, UTM)
        assert found["columns"] == {"class": {"house": 2, "(empty)": 1}}
        assert found["geometry_types"] == {"MultiPolygon": 1, "Polygon": 2} and found["invalid"] == 0
        found = describe_labels(TestBoxes().csv(tmp_path / "b.csv"))
        assert (found["kind"], found["count"], found["crs"]) == ("boxes", 2, None)
        found = describe_labels(make_geotiff(blobs(), "labels.tif", crs=UTM, transform=NORTH_UP))
        assert found["kind"] == "raster" and found["crs"] == UTM
        assert found["values"] == {str(v): int((blobs() == v).sum()) for v in (0, 1, 2, 9)}
        np.savez(tmp_path / "l.npz", msk=blobs()[..., None])
        assert describe_labels(tmp_path / "l.npz")["values"]["9"] == (blobs() == 9).sum()
        json.dumps(found)


def test_package_is_light():
    code = "import sys, pipelines.annotations; print([m for m in ('rasterio', 'torch', 'shapely') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


class TestRealFiles:
    def test_buildings(self, shared_data):
        """Polygons, one invalid; against the mask that was made from them."""
        folder = shared_data / "satellite/buildings"
        classes = ClassSet((Class("building", values=(1,)),))
        with open_source(folder / "scene.tif") as source:
            found = read_annotations(folder / "buildings.geojson", source, rgb_aerial(classes))
            raster = read_annotations(folder / "mask.tif", source, rgb_aerial(classes))
        assert found.report["repaired"] == 1 and found.report["features"] == 108
        with rasterio.open(folder / "mask.tif") as file:
            mask = file.read(1)
        union = found.objects.to_label_map() > 0
        seen = mask != 255
        overlap = (union & (mask == 1)).sum() / ((union | (mask == 1)) & seen).sum()
        assert overlap > 0.98
        everything = (slice(0, mask.shape[0]), slice(0, mask.shape[1]))
        assert raster.ignore is None if seen.all() else np.array_equal(raster.read(everything).ignore, ~seen)
        assert raster.objects.areas.sum() == (mask == 1).sum()

    def test_crowns_with_overlaps(self, shared_data):
        folder = shared_data / "satellite/crowns"
        crowns = rgb_aerial(ClassSet((Class("crown", values=("Tree",)),)))
        names = "2019_YELL_2_541000_4977000_image_crop"
        cases = [
            (f"{names}.tiff", f"{names}.xml", LabelOptions(), 279, 88, "pixels"),
            ("OSBS_029.tif", "OSBS_029.csv", LabelOptions(), 61, None, "pixels"),
            (
                "osbs24.tif",
                "osbs24_crowns.csv",
                LabelOptions(rectangles_are_boxes=True, default_class="crown"),
                21,
                7,
                "map",
            ),
        ]
        for picture, labels, options, count, pairs, coordinates in cases:
            with open_source(folder / picture) as source:
                found = read_annotations(folder / labels, source, crowns, options)
                boxes = read_annotations(
                    folder / labels, source, crowns, LabelOptions(**{**vars(options), "boxes": "box"})
                )
            assert len(found.objects) == count and found.report["boxes"] == "ellipse"
            assert found.report["coordinates"] == coordinates
            if pairs is not None:
                overlap = np.triu(boxes.objects.intersections(boxes.objects) > 0, 1).sum()
                assert abs(overlap - pairs) <= 3  # counted on the boxes, before they met the pixel grid

    def test_clouds(self, shared_data):
        path = shared_data / "satellite/clouds/sentinel2.npz"
        clouds = ClassSet(
            (
                Class("shadow", "stuff", (0,)),
                Class("land", "stuff", (3,)),
                Class("cloud", "stuff", (4,)),
                Class("snow or water", "stuff", (1, 2)),
            )
        )
        with open_source(path) as source:
            found = read_annotations(path, source, adapter(clouds))
        assert found.objects.areas.sum() == 512 * 512 and found.ignore is None
        assert found.objects.areas[found.objects.labels == 2] == 49597

    def test_sparse_landsat_from_raster_and_polygons(self, shared_data):
        folder = shared_data / "satellite/landsat7"
        names = ("forest", "water", "herbaceous", "barren", "urban")
        classes = ClassSet(tuple(Class(n, "stuff", (i + 1,)) for i, n in enumerate(names)), ignore_values=(0,))
        with open_source(folder / "scene_1999.tif") as source:
            raster = read_annotations(folder / "training_data.tif", source, adapter(classes))
            drawn = read_annotations(
                folder / "training_data.shp", source, adapter(classes), LabelOptions(outside="ignore")
            )
        everything = (slice(0, 250), slice(0, 250))
        known = ~raster.read(everything).ignore
        assert known.sum() == 718
        assert raster.report["values"] == {"0": 61782, "1": 383, "2": 16, "3": 145, "4": 106, "5": 68}
        known_drawn = ~drawn.read(everything).ignore
        assert (known & known_drawn).sum() >= 0.9 * 718

    def test_roads_of_another_place(self, shared_data):
        """The published lines lie 6 km west of the published picture: exactly what must not pass in silence."""
        folder = shared_data / "satellite/roads"
        with open_source(folder / "road_mask_input.tif") as source:
            with pytest.raises(InputError, match=r"sample_roads.geojson: the labels do not overlap the scene"):
                read_annotations(folder / "sample_roads.geojson", source, adapter(), LabelOptions(buffer_m=4))
            roads = ClassSet((Class("road", "stuff", (255,)),))
            found = read_annotations(folder / "sample_road_raster_mask.tif", source, adapter(roads))
        assert len(found.objects) == 1 and found.report["counts"] == {"road": 1}
        assert describe_labels(folder / "sample_roads.geojson")["kind"] == "lines"
