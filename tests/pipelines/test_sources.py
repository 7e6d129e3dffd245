"""Sources against arrays that are known: values, valid pixels, windows, views, workers, and bad files."""

import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adapters.channels import Channel, ChannelSet
from adapters.errors import InputError
from pipelines.sources import describe, open_source, unpack
from pipelines.sources.base import Geometry

UTM = "EPSG:32617"
NORTH_UP = Affine(0.5, 0, 400_000, 0, -0.5, 3_000_000)


def picture(bands=3, height=90, width=130, dtype=np.uint8, seed=0):
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=(bands, height, width)).astype(dtype)
    return random.integers(1, 120, (bands, height, width)).astype(dtype)


@pytest.fixture
def temporary(tmp_path_factory, monkeypatch):
    """A folder of its own for what is unpacked, to see that nothing stays."""
    folder = tmp_path_factory.mktemp("unpacked")
    monkeypatch.setattr(unpack.tempfile, "tempdir", str(folder))
    return folder


class TestReading:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
    @pytest.mark.parametrize("tiled", [True, False])
    def test_values_shape_and_geometry(self, make_geotiff, dtype, tiled):
        array = picture(dtype=dtype)
        with open_source(make_geotiff(array, crs=UTM, transform=NORTH_UP, tiled=tiled)) as source:
            values, valid = source.read((slice(5, 80), slice(70, 130)))
            assert source.shape == (90, 130)
            assert source.dtype == values.dtype == np.dtype(dtype)
            assert np.array_equal(values, array[:, 5:80, 70:130])
            assert valid.shape == (75, 60) and valid.all()
            assert source.geometry.transform == NORTH_UP
            assert source.geometry.crs.to_epsg() == 32617

    @given(data=st.data())
    def test_view_of_view_reads_the_same_place(self, make_geotiff, data):
        array = picture()

        def part(height, width):
            r, c = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
            return (
                slice(r, data.draw(st.integers(r + 1, height))),
                slice(c, data.draw(st.integers(c + 1, width))),
            )

        with open_source(make_geotiff(array, crs=UTM, transform=NORTH_UP)) as source:
            outer = part(*source.shape)
            view = source.view(outer)
            inner = part(*view.shape)
            deep = view.view(inner)
            assert np.array_equal(deep.read()[0], array[:, *outer][:, *inner])
            assert deep.origin == (outer[0].start + inner[0].start, outer[1].start + inner[1].start)
            row, column = deep.origin
            assert deep.geometry.transform @ (0, 0) == NORTH_UP @ (column, row)
            deep.close()
            view.close()  # a view leaves the file open for the others
            assert np.array_equal(source.read()[0], array)

    def test_window_outside_is_refused(self, make_geotiff):
        with open_source(make_geotiff(picture())) as source:
            for window in [(slice(0, 91), slice(5)), (slice(-1, 5), slice(5)), (slice(5, 5), slice(5))]:
                with pytest.raises(ValueError, match="not inside"):
                    source.read(window)

    def test_without_crs_and_with_rotation(self, make_geotiff):
        with open_source(make_geotiff(picture(), "plain.tif")) as source:
            assert source.geometry == Geometry(None, Affine.identity())
            assert not source.geometry.georeferenced
        turned = Affine.translation(10, 20) @ Affine.rotation(30) @ Affine.scale(2, -3)
        with open_source(make_geotiff(picture(), "turned.tif", crs=UTM, transform=turned)) as source:
            assert source.geometry.transform.almost_equals(turned)
            corners = [turned @ c for c in ((0, 0), (130, 0), (0, 90), (130, 90))]
            xs, ys = zip(*corners)
            assert source.geometry.bounds(source.shape) == pytest.approx((min(xs), min(ys), max(xs), max(ys)))

    def test_scale_and_offset_are_noted_not_applied(self, make_geotiff):
        array = picture(2, dtype=np.int16)
        path = make_geotiff(array, scales=[0.1, 2], offsets=[5, -1], descriptions=["a", "b"])
        with open_source(path, ChannelSet((Channel("b"), Channel("a")))) as source:
            assert (source.scales, source.offsets) == ((2.0, 0.1), (-1.0, 5.0))
            assert np.array_equal(source.read()[0], array[::-1])

    def test_vrt(self, make_geotiff, tmp_path):
        array = picture(1)
        path = make_geotiff(array)
        vrt = tmp_path / "scene.vrt"
        vrt.write_text(
            '<VRTDataset rasterXSize="50" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">{path.name}</SourceFilename><SourceBand>1</SourceBand>'
            '<SrcRect xOff="10" yOff="20" xSize="50" ySize="40"/><DstRect xOff="0" yOff="0" xSize="50" ySize="40"/>'
            "</SimpleSource></VRTRasterBand></VRTDataset>"
        )
        with open_source(vrt) as source:
            assert np.array_equal(source.read()[0], array[:, 20:60, 10:60])


class TestChannels:
    def test_by_description_name_and_index(self, make_geotiff):
        array = picture(4)
        path = make_geotiff(array, descriptions=["B02", "B03", "B04", "near infrared"])
        wanted = ChannelSet((Channel("red", ("B4",)), Channel("B2"), Channel("nir", ("nope", 4))))
        with open_source(path, wanted) as source:
            assert source.channels == ("red", "B2", "nir")
            assert np.array_equal(source.read()[0], array[[2, 0, 3]])

    def test_colour_interpretation_beats_order(self, make_geotiff):
        array = picture(3)
        path = make_geotiff(array, colorinterp=["blue", "green", "red"], photometric="minisblack")
        rgb = ChannelSet((Channel("red", (1,)), Channel("green", (2,)), Channel("blue", (3,))))
        with open_source(path, rgb) as source:
            assert np.array_equal(source.read()[0], array[::-1])

    def test_missing_band_names_the_file_and_its_bands(self, make_geotiff):
        path = make_geotiff(picture(2), descriptions=["green", "swir"])
        with pytest.raises(InputError, match=r"scene.tif: no band 'nir'.*the bands are green, swir"):
            open_source(path, ChannelSet((Channel("green"), Channel("nir", ("B08", 5)))))

    @pytest.mark.parametrize(("impute", "value"), [("mean", 87.4), ("zero", 0.0)])
    def test_imputed_band(self, make_geotiff, impute, value):
        array = picture(1)
        channels = ChannelSet((Channel("nir", (), 87.4, 31.0, None, impute), Channel("gray", (1,))))
        with open_source(make_geotiff(array), channels) as source:
            values, _ = source.read()
            assert values.dtype == source.dtype == np.float32
            assert source.imputed == (True, False)
            assert np.all(values[0] == np.float32(value))
            assert np.array_equal(values[1], array[0])
            if impute == "mean":
                assert np.all(channels.normalise(values)[0] == 0)


class TestValid:
    def test_unsigned_nodata_needs_every_band(self, make_geotiff):
        array = picture(3)
        array[0, :10] = 0  # a dark red is a measurement
        array[:, 20:30] = 0
        expected = np.ones(array.shape[1:], bool)
        expected[20:30] = False
        path = make_geotiff(array, nodata=0)
        with open_source(path) as source:
            assert np.array_equal(source.read()[1], expected)
        with open_source(path, ChannelSet((Channel("red", (1,)),))) as source:  # whatever is selected
            assert np.array_equal(source.read()[1], expected)

    @pytest.mark.parametrize("dtype", ["int16", "float32"])
    def test_sentinel_in_any_band_that_is_read(self, make_geotiff, dtype):
        array = picture(2, dtype=dtype)
        array[1, 3, 4] = -9999
        path = make_geotiff(array, nodata=-9999, descriptions=["a", "b"])
        with open_source(path) as source:
            assert np.argwhere(~source.read()[1]).tolist() == [[3, 4]]
        with open_source(path, ChannelSet((Channel("a"),))) as source:
            assert source.read()[1].all()

    def test_nan_and_infinity(self, make_geotiff):
        array = picture(2, dtype=np.float32)
        array[0, 1, 2], array[1, 5, 6] = np.nan, np.inf
        for name, nodata in (("nan.tif", np.nan), ("none.tif", None)):
            with open_source(make_geotiff(array, name, nodata=nodata)) as source:
                assert np.argwhere(~source.read()[1]).tolist() == [[1, 2], [5, 6]]

    def test_internal_mask(self, make_geotiff):
        valid = np.random.default_rng(1).random((90, 130)) > 0.3
        with open_source(make_geotiff(picture(), valid=valid)) as source:
            window = (slice(10, 60), slice(20, 100))
            assert np.array_equal(source.read(window)[1], valid[window])

    def test_alpha_is_not_a_channel(self, make_geotiff):
        array = picture(4)
        array[3] = np.random.default_rng(2).choice([0, 1, 255], array.shape[1:])
        path = make_geotiff(array, colorinterp=["red", "green", "blue", "alpha"], photometric="rgb")
        with open_source(path) as source:
            values, valid = source.read()
            assert source.channels == ("red", "green", "blue")
            assert np.array_equal(values, array[:3])
            assert np.array_equal(valid, array[3] > 0)

    @given(fill=st.integers(0, 255))
    def test_fill_value_does_not_change_what_is_valid(self, make_geotiff, fill):
        array = picture()  # 1..119
        hole = np.zeros(array.shape[1:], bool)
        hole[30:60, 40:90] = True
        array[:, hole] = fill
        array[0, ~hole] = 121  # no valid pixel is all fill: the other bands are below 120
        with open_source(make_geotiff(array, f"fill{fill}.tif", nodata=fill)) as source:
            assert np.array_equal(source.read()[1], ~hole)

    def test_nodata_the_type_cannot_hold_marks_nothing(self, make_geotiff, tmp_path):
        path = make_geotiff(picture(1))
        vrt = tmp_path / "lying.vrt"
        vrt.write_text(
            '<VRTDataset rasterXSize="130" rasterYSize="90"><VRTRasterBand dataType="Byte" band="1">'
            "<NoDataValue>-9999</NoDataValue><SimpleSource>"
            f'<SourceFilename relativeToVRT="1">{path.name}</SourceFilename></SimpleSource></VRTRasterBand>'
            "</VRTDataset>"
        )
        with open_source(vrt) as source:
            assert source.read()[1].all()


class TestWorkers:
    def test_threads_share_a_source(self, make_geotiff):
        array = picture(3, 200, 200)
        windows = [(slice(r, r + 50), slice(c, c + 50)) for r in range(0, 150, 7) for c in range(0, 150, 13)]
        with open_source(make_geotiff(array)) as source, ThreadPoolExecutor(4) as pool:
            for window, (values, _) in zip(windows, pool.map(source.read, windows)):
                assert np.array_equal(values, array[:, *window])

    def test_another_process_reads_a_pickled_view(self, make_geotiff, tmp_path, temporary):
        array = picture()
        tif = make_geotiff(array)
        png = tmp_path / "scene.png"
        Image.fromarray(np.moveaxis(array, 0, -1)).save(png)
        for path in (tif, png):
            with open_source(path) as source:
                view = source.view((slice(10, 50), slice(20, 70)))
                (tmp_path / "view.pickle").write_bytes(pickle.dumps(view))
                code = (
                    "import pickle, pathlib, sys; view = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes());"
                    "print(int(view.read()[0].astype('int64').sum())); view.close()"
                )
                done = subprocess.run(
                    [sys.executable, "-c", code, str(tmp_path / "view.pickle")], capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr
                assert int(done.stdout) == array[:, 10:50, 20:70].sum(dtype=np.int64)
                assert np.array_equal(source.read()[0], array)  # the worker has removed nothing
        assert not list(temporary.iterdir())

    def test_forked_workers(self, make_geotiff, tmp_path, temporary):
        """Torch's loader forks: a worker must not share the parent's handle, and cleans up what it unpacks itself."""
        array = picture(3, 200, 200)
        png = tmp_path / "scene.png"
        Image.fromarray(np.moveaxis(array, 0, -1)).save(png)
        code = (
            "import multiprocessing, sys, tempfile\n"
            "tempfile.tempdir = sys.argv[1]\n"
            "from pipelines.sources import open_source\n"
            "tif, png = (open_source(p) for p in sys.argv[2:])\n"
            "tif.read()\n"
            "def work(i):\n"
            "    window = (slice(i, i + 50), slice(2 * i, 2 * i + 50))\n"
            "    return all((a == b).all() for a, b in zip(tif.read(window), png.read(window)))\n"
            "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
            "    print(all(pool.map(work, range(60))), tif.read()[1].all())\n"
            "    pool.close(); pool.join()\n"
        )
        command = [sys.executable, "-c", code, str(temporary), str(make_geotiff(array)), str(png)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["True", "True"], done.stderr
        assert not list(temporary.iterdir())


class TestSequentialFormats:
    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    def test_random_crops_of_a_photo(self, tmp_path, temporary, suffix):
        array = np.moveaxis(picture(), 0, -1)
        path = tmp_path / f"photo.{suffix}"
        Image.fromarray(array).save(path, quality=95, subsampling=0)
        expected = np.moveaxis(np.asarray(Image.open(path)), -1, 0)
        with open_source(path) as source:
            assert source.channels == ("red", "green", "blue")
            assert not list(temporary.iterdir()), "opening must not decode"
            values, valid = source.read((slice(60, 90), slice(100, 130)))
            # two JPEG decoders may differ in the last bit of the inverse transform
            assert np.abs(values.astype(int) - expected[:, 60:, 100:]).max() <= (3 if suffix == "jpg" else 0)
            assert valid.all() and len(list(temporary.iterdir())) == 1
        assert not list(temporary.iterdir())

    def test_png_alpha(self, tmp_path, temporary):
        array = np.moveaxis(picture(4), 0, -1)
        array[..., 3] = np.where(np.arange(130) < 40, 0, 200)
        Image.fromarray(array).save(tmp_path / "a.png")
        with open_source(tmp_path / "a.png") as source:
            values, valid = source.read()
            assert values.shape[0] == 3
            assert np.array_equal(valid, array[..., 3] > 0)

    def test_does_not_fill_the_disk(self, tmp_path, temporary, monkeypatch):
        path = tmp_path / "photo.png"
        Image.fromarray(np.moveaxis(picture(), 0, -1)).save(path)
        usage = shutil.disk_usage(tmp_path)._replace(free=unpack.RESERVE + 1000)
        monkeypatch.setattr(unpack.shutil, "disk_usage", lambda _: usage)
        with open_source(path) as source, pytest.raises(InputError, match=r"photo.png: has to be unpacked into"):
            source.read()
        assert not list(temporary.iterdir())

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    def test_truncated(self, tmp_path, temporary, suffix):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(np.moveaxis(picture(), 0, -1)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with open_source(path) as source, pytest.raises(InputError, match=f"cut.{suffix}: cannot be decoded"):
            source.read()
        assert not list(temporary.iterdir())

    def test_removed_at_exit_without_close(self, tmp_path, temporary):
        path = tmp_path / "photo.png"
        Image.fromarray(np.moveaxis(picture(), 0, -1)).save(path)
        code = (
            "import sys, tempfile; tempfile.tempdir = sys.argv[2]\n"
            "from pipelines.sources import open_source; s = open_source(sys.argv[1]); s.read()\n"
            "import os; print(len(os.listdir(sys.argv[2])))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path), str(temporary)], capture_output=True, text=True)
        assert done.stdout.strip() == "1", done.stderr
        assert not list(temporary.iterdir())


class TestArrays:
    @pytest.mark.parametrize(
        ("address", "axes"), [("", "hwc"), ("#img", "hwc"), ("#planes:chw", "chw"), ("#flat", "hw")]
    )
    def test_members(self, tmp_path, temporary, address, axes):
        array = picture(4, 30, 40, np.float32)
        array[0, 2, 3] = np.nan
        path = tmp_path / "scene.npz"
        np.savez_compressed(path, img=np.moveaxis(array, 0, -1), planes=array, flat=array[0], note=np.arange(3))
        with open_source(f"{path}{address}") as source:
            values, valid = source.read((slice(1, 21), slice(2, 32)))
            expected = (array[:1] if axes == "hw" else array)[:, 1:21, 2:32]
            assert source.axes == axes and source.shape == (30, 40)
            assert np.array_equal(values, expected, equal_nan=True)
            assert np.array_equal(valid, np.isfinite(expected).all(axis=0))
            again = pickle.loads(pickle.dumps(source.view((slice(1, 21), slice(2, 32)))))
            assert np.array_equal(again.read()[0], expected, equal_nan=True)
        assert not list(temporary.iterdir())

    def test_band_names_and_selection(self, tmp_path):
        array = picture(3, 20, 30)
        np.savez(tmp_path / "s.npz", data=array, bands=np.array(["blue", "green", "red"]))
        with open_source(tmp_path / "s.npz", ChannelSet((Channel("red"), Channel("blue")))) as source:
            assert np.array_equal(source.read()[0], array[[2, 0]])

    def test_npy(self, tmp_path):
        array = picture(1, 20, 30, np.int16)[0]
        np.save(tmp_path / "s.npy", array)
        with open_source(tmp_path / "s.npy") as source:
            assert np.array_equal(source.read()[0][0], array)

    def test_refusals(self, tmp_path):
        np.savez(tmp_path / "objects.npz", x=np.array([[{}]], object))
        with pytest.raises(InputError, match="Python objects"):
            open_source(tmp_path / "objects.npz")
        np.savez(tmp_path / "two.npz", a=np.zeros((3, 3)), b=np.zeros((3, 3)))
        with pytest.raises(InputError, match=r"which array.*there are a, b"):
            open_source(tmp_path / "two.npz")
        with pytest.raises(InputError, match=r"no array 'c'; there are a, b"):
            open_source(f"{tmp_path}/two.npz#c")
        np.savez(tmp_path / "odd.npz", a=np.zeros((9, 3, 9)))
        with pytest.raises(InputError, match="which axis"):
            open_source(tmp_path / "odd.npz")
        (tmp_path / "text.npz").write_text("no archive")
        with pytest.raises(InputError, match=r"text.npz: not an array file"):
            open_source(tmp_path / "text.npz")


class TestBadFiles:
    def test_table(self, tmp_path, make_geotiff):
        (tmp_path / "text.tif").write_text("not a raster")
        (tmp_path / "empty.tif").write_bytes(b"")
        whole = make_geotiff(picture(3, 300, 300), "whole.tif", compress=None).read_bytes()
        (tmp_path / "cut_header.tif").write_bytes(whole[:100])
        (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3])
        (tmp_path / "nobands.vrt").write_text('<VRTDataset rasterXSize="5" rasterYSize="5"></VRTDataset>')
        (tmp_path / "nopixels.vrt").write_text(
            '<VRTDataset rasterXSize="0" rasterYSize="0"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
        )
        make_geotiff(np.ones((1, 5, 5), np.complex64), "complex.tif")
        faults = {
            "missing.tif": "no such file",
            "text.tif": "not a raster",
            "empty.tif": "empty",
            "cut_header.tif": "not a raster|truncated",
            "cut.tif": "truncated",
            "nobands.vrt": "bands",
            "nopixels.vrt": "not a raster|no pixels",
            "complex.tif": "complex64",
        }
        for name, fault in faults.items():
            for function in (open_source, describe):
                with pytest.raises(InputError) as raised:
                    function(tmp_path / name)
                assert re.search(fault, str(raised.value)), name
                assert name in str(raised.value) and "\n" not in str(raised.value)

    def test_corrupt_block_is_found_when_it_is_read(self, make_geotiff):
        path = make_geotiff(picture(1, 300, 300))
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 3000] = bytes(3000)
        path.write_bytes(bytes(data))
        with open_source(path) as source, pytest.raises(InputError, match=r"scene.tif: cannot be read at rows 0-300"):
            source.read()

    def test_digest(self, make_geotiff):
        path = make_geotiff(picture())
        expected = subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]
        with open_source(path) as source:
            assert source.digest() == expected


def test_no_warning_without_geography(make_geotiff, recwarn):
    with open_source(make_geotiff(picture())) as source:
        source.read()
    assert not [w for w in recwarn if "georeference" in str(w.message).lower()]


def test_package_is_light():
    code = "import sys, pipelines.sources; print([m for m in ('rasterio', 'torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


class TestDescribe:
    def test_geotiff(self, make_geotiff):
        path = make_geotiff(
            picture(2, dtype=np.int16), crs=UTM, transform=NORTH_UP, nodata=-9999, descriptions=["a", "b"], block=32
        )
        found = describe(path)
        assert found["shape"] == [90, 130] and found["dtype"] == "int16" and found["crs"] == UTM
        assert [b["names"][0] for b in found["bands"]] == ["a", "b"]
        assert found["nodata"] == -9999 and found["block"] == [32, 32] and found["tiled"]
        assert found["pixel_size"] == [0.5, 0.5] and found["transform"] == list(NORTH_UP)[:6]
        assert found["bytes_pixels"] == 2 * 90 * 130 * 2 and found["bytes_file"] == Path(path).stat().st_size

    def test_array(self, tmp_path):
        np.savez(tmp_path / "s.npz", img=np.zeros((20, 30, 2), np.float32))
        found = describe(tmp_path / "s.npz")
        assert (found["driver"], found["array"], found["axes"], found["shape"]) == ("npz", "img", "hwc", [20, 30])


class TestRealFiles:
    def test_every_scene(self, shared_data):
        expected = {
            "buildings/scene.tif": ((2048, 3072), ("red", "green", "blue"), "uint8", 3857),
            "crowns/OSBS_029.tif": ((400, 400), ("red", "green", "blue"), "uint8", 32617),
            "crowns/osbs24.tif": ((200, 200), ("band1", "band2", "band3"), "float32", 32617),
            "landsat7/scene_1999.tif": ((250, 250), None, "int16", 32615),
            "naip/2010.tif": ((723, 934), ("band1", "band2", "band3", "band4"), "uint8", 26914),
            "roads/road_mask_input.tif": ((1300, 1300), ("gray",), "uint16", 4326),
        }
        for name, (shape, channels, dtype, epsg) in expected.items():
            with open_source(shared_data / "satellite" / name) as source:
                assert (source.shape, source.dtype.name) == (shape, dtype)
                assert channels is None or source.channels == channels
                assert source.geometry.crs.to_epsg() == epsg
                values, valid = source.read((slice(10, 110), slice(20, 120)))
                assert values.shape == (len(source.channels), 100, 100) and valid.any()

    def test_landsat_bands_by_description(self, shared_data):
        from adapters.classes import Class, ClassSet
        from adapters.remote_sensing import landsat

        adapter = landsat(ClassSet((Class("water"),)), sensor="tm")
        with open_source(shared_data / "satellite/landsat7/scene_1999.tif", adapter.channels) as source:
            bands = open_source(source.path)
            assert np.array_equal(source.read()[0], bands.read()[0][[0, 1, 2, 3, 4, 5]])

    def test_clouds(self, shared_data):
        path = shared_data / "satellite/clouds/sentinel2.npz"
        with open_source(path) as source, np.load(path) as archive:
            assert (source.axes, source.shape, len(source.channels)) == ("hwc", (512, 512), 6)
            assert np.array_equal(source.read()[0], np.moveaxis(archive["img"], -1, 0))
