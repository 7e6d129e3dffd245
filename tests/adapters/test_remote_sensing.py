"""Ready adapters on the bands sensors deliver, and channel statistics against numpy."""

import numpy as np
import pytest

from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.remote_sensing import fit_channels, landsat, panchromatic, rgb_aerial, rgbn, sentinel2
from pipelines.sources import open_source

CLASSES = ClassSet((Class("tree"),))


class TestBands:
    def test_sentinel2_by_each_naming(self):
        adapter = sentinel2(CLASSES, ("B02", "B04", "B8A", "B11"))
        stac = ["coastal", "blue", "green", "red", "nir", "nir narrow", "swir16"]
        gdal = ["B4, central wavelength 665 nm", "B2, central wavelength 490 nm", "B8A, ...", "B11, ..."]
        assert adapter.channels.select(stac) == (1, 3, 5, 6)
        assert adapter.channels.select(gdal) == (1, 0, 2, 3)
        with pytest.raises(InputError, match=r"sentinel2: unknown band 'B4'; known are B01"):
            sentinel2(CLASSES, ("B4",))

    def test_landsat_numbers_depend_on_the_sensor(self):
        bands = [f"SR_B{i}" for i in range(1, 8)]
        assert landsat(CLASSES, sensor="oli").channels.select(bands) == (1, 2, 3, 4, 5, 6)
        assert landsat(CLASSES, sensor="tm").channels.select(bands) == (0, 1, 2, 3, 4, 6)
        for bad in ({"sensor": "msi"}, {"bands": ("thermal",)}):
            with pytest.raises(InputError, match=r"unknown sensor 'msi'|has no band 'thermal'"):
                landsat(CLASSES, **bad)

    def test_nameless_landsat_stack_is_refused(self):
        with pytest.raises(InputError, match="no band 'blue'"):
            landsat(CLASSES).channels.select([f"band{i}" for i in range(1, 7)])

    def test_pictures(self):
        assert rgb_aerial(CLASSES).channels.select(["band1", "band2", "band3", "band4"]) == (0, 1, 2)
        assert rgbn(CLASSES).channels.select(["band1", "band2", "band3", "band4"]) == (0, 1, 2, 3)
        assert panchromatic(CLASSES).channels.select(["gray"]) == (0,)
        assert panchromatic(CLASSES, name="dsm", tile=256, overlap="free").name == "dsm"


class TestStatistics:
    def test_valid_pixels_of_the_data_set(self, make_geotiff):
        """Mean and spread of the valid pixels; nodata and a few glints do not count."""
        random = np.random.default_rng(0)
        array = np.stack([random.normal(m, s, (300, 400)) for m, s in ((1000, 50), (3000, 200))]).astype(np.int16)
        array[:, :100] = -9999
        array[:, 150, ::40] = 30000  # 0.01 % glints
        path = make_geotiff(array, nodata=-9999, descriptions=["a", "b"])
        wanted = ChannelSet((Channel("b"), Channel("a")))
        with open_source(path, wanted) as source:
            fitted = fit_channels([source], wanted, windows=20, size=128)
            again = fit_channels([source], wanted, windows=20, size=128)
        assert fitted == again and fitted.names == ("b", "a")
        assert [c.offset for c in fitted] == pytest.approx([3000, 1000], rel=0.01)
        assert [c.scale for c in fitted] == pytest.approx([200, 50], rel=0.05)
        assert all(c.clip[1] < 5000 for c in fitted)

    def test_whole_small_pictures_exactly(self, make_geotiff):
        array = np.random.default_rng(1).integers(0, 200, (3, 50, 60), np.uint8)
        channels = rgb_aerial(CLASSES).channels
        with open_source(make_geotiff(array), channels) as source:
            fitted = fit_channels([source], channels, windows=1, tail=0.0)
        assert [c.offset for c in fitted] == pytest.approx(array.mean(axis=(1, 2)), rel=1e-5)
        assert [c.scale for c in fitted] == pytest.approx(array.std(axis=(1, 2)), rel=1e-5)
        assert all(c.clip is None for c in fitted)

    def test_sources_count_by_area_and_imputed_bands_are_left(self, make_geotiff):
        channels = ChannelSet((Channel("gray", (1,)), Channel("nir", (), 5.0, 2.0, None, "mean")))
        paths = [make_geotiff(np.full((h, 100), v, np.uint8), f"{v}.tif") for h, v in ((300, 10), (100, 50))]
        sources = [open_source(p, channels) for p in paths]
        fitted = fit_channels(sources, channels, windows=40, size=100, tail=0.0)
        assert fitted[0].offset == pytest.approx(20) and fitted[1] == channels[1]

    def test_constant_band(self, make_geotiff, caplog):
        channels = ChannelSet((Channel("gray"),))
        with open_source(make_geotiff(np.full((20, 20), 7, np.uint8)), channels) as source:
            fitted = fit_channels([source], channels)
        assert (fitted[0].offset, fitted[0].scale) == (7, 1) and "constant" in caplog.text

    def test_nothing_valid(self, make_geotiff):
        channels = ChannelSet((Channel("gray"),))
        with (
            open_source(make_geotiff(np.zeros((20, 20), np.int16), nodata=0), channels) as source,
            pytest.raises(InputError, match=r"scene.tif: no valid pixel of channel 'gray'"),
        ):
            fit_channels([source], channels)

    def test_naip(self, shared_data):
        channels = rgbn(CLASSES).channels
        with open_source(shared_data / "satellite/naip/2010.tif", channels) as source:
            fitted = fit_channels([source], channels)
            array, valid = source.read()
        normalised = fitted.normalise(array)[:, valid]
        assert np.abs(normalised.mean(axis=1)).max() < 0.1 and np.abs(normalised.std(axis=1) - 1).max() < 0.1
