"""Channels: found by name, description or index; scaled by the data set, never by the tile."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.channels import Channel, ChannelSet, band_key
from adapters.errors import InputError

RGB = ChannelSet((Channel("red", ("r", 1)), Channel("green", ("g", 2)), Channel("blue", ("b", 3))))
finite = st.floats(-1e6, 1e6)
scales = st.floats(-1e6, 1e6).filter(lambda v: abs(v) > 1e-3)
channels = st.builds(
    Channel,
    name=st.text(min_size=1, max_size=8),
    find=st.lists(st.text(min_size=1, max_size=8) | st.integers(1, 20), max_size=3).map(tuple),
    offset=finite,
    scale=scales,
    clip=st.none() | st.tuples(finite, finite).filter(lambda c: c[0] < c[1]),
    impute=st.sampled_from([None, "mean", "zero"]),
)


def test_spellings():
    for one, other in (("B04", "b4"), ("NIR_1", "nir 1"), ("red-edge 1", "Red Edge1"), ("SR_B4", "sr b04")):
        assert band_key(one) == band_key(other)
    for one, other in (("B1", "B10"), ("B8", "B8A"), ("B12", "B2")):
        assert band_key(one) != band_key(other)


class TestSelect:
    @pytest.mark.parametrize(
        ("available", "expected"),
        [
            (["red", "green", "blue"], (0, 1, 2)),
            (["blue", "green", "red"], (2, 1, 0)),  # names before indices
            (["band1", "band2", "band3", "band4"], (0, 1, 2)),
            (["B", "x", "R", "G"], (2, 3, 0)),
            ([("B4, central wavelength 665 nm", "red"), "Green", "BLUE "], (0, 1, 2)),
        ],
    )
    def test_finds(self, available, expected):
        assert RGB.select(available) == expected

    def test_an_index_never_takes_a_band_that_bears_another_name(self):
        """Blue is first, red is missing: index 1 would silently feed blue as red."""
        with pytest.raises(InputError, match=r"photo.tif: no band 'red' .*the bands are blue, green"):
            RGB.select(["blue", "green"], "photo.tif")

    def test_ambiguous(self):
        with pytest.raises(InputError, match=r"'red' could be any of bands 1, 3; the bands are red, green, Red"):
            RGB.select(["red", "green", "Red", "blue"])

    def test_missing_and_imputed(self):
        nir = Channel("nir", ("B08", 4), impute="mean")
        assert ChannelSet((*RGB, nir)).select(["red", "green", "blue"]) == (0, 1, 2, None)
        with pytest.raises(InputError, match=r"no band 'nir' \(also sought as 'B08', band 4\)"):
            ChannelSet((*RGB, Channel("nir", ("B08", 4)))).select(["red", "green", "blue"])


class TestNormalise:
    @given(channel=channels, values=st.lists(st.integers(-30000, 30000), min_size=1, max_size=20))
    def test_formula(self, channel, values):
        array = np.array(values, np.int16)[None, None]
        result = ChannelSet((channel,)).normalise(array)
        wide = array.astype(np.float64)
        if channel.clip is not None:
            wide = np.clip(wide, *channel.clip)
        assert result.dtype == np.float32
        # float32: the offset is rounded once, and so is the result
        slack = 1e-5 + (1e-2 + 2e-7 * abs(channel.offset)) / abs(channel.scale)
        np.testing.assert_allclose(result, (wide - channel.offset) / channel.scale, rtol=1e-4, atol=slack)

    def test_depends_on_no_other_pixel(self):
        """Cutting a tile out before or after makes no difference: nothing is measured on the tile."""
        array = np.random.default_rng(0).integers(0, 4000, (3, 40, 50), np.uint16)
        scaled = ChannelSet(tuple(Channel.window(c.name, 100, 3000) for c in RGB))
        window = (slice(None), slice(3, 20), slice(7, 30))
        assert np.array_equal(scaled.normalise(array[window]), scaled.normalise(array)[window])

    def test_window(self):
        channel = ChannelSet((Channel.window("ct", -160, 240),))
        values = np.array([-1000, -160, 40, 240, 3000], np.int16)[None]
        assert channel.normalise(values).tolist() == [[-1, -1, 0, 1, 1]]

    def test_the_mean_is_exactly_zero(self):
        for offset in (87.4, 0.1, 1234.567):
            channel = Channel("x", offset=offset, scale=31.7, impute="mean")
            filled = np.full((1, 2, 2), channel.fill, np.float32)
            assert np.all(ChannelSet((channel,)).normalise(filled) == 0)

    def test_wrong_number_of_channels(self):
        with pytest.raises(ValueError, match=r"expected 3 channels \(red, green, blue\)"):
            RGB.normalise(np.zeros((4, 5, 5)))


class TestJson:
    @given(st.lists(channels, min_size=1, max_size=4, unique_by=lambda c: band_key(c.name)))
    def test_round_trip(self, items):
        one = ChannelSet(tuple(items))
        assert ChannelSet.from_list(json.loads(json.dumps(one.to_list()))) == one

    @pytest.mark.parametrize(
        ("data", "fault"),
        [
            ([], "expected at least one"),
            ({}, "expected a list, found dict"),
            ([{"name": "a", "ofset": 1}], "unknown key 'ofset'.*did you mean 'offset'"),
            ([{"offset": 1}], "'name' is missing"),
            ([{"name": "a", "scale": 0}], "channel 'a': scale: expected a number other than 0"),
            ([{"name": "a", "scale": "2"}], "channel 'a': scale: expected a finite number, found '2'"),
            ([{"name": "a", "clip": [3, 2]}], r"channel 'a': clip: expected low < high, found \[3.0, 2.0\]"),
            ([{"name": "a", "find": "b"}], "find: expected a list"),
            ([{"name": "a", "find": [0]}], "bands are counted from 1, found 0"),
            ([{"name": "a", "impute": "median"}], "impute: expected one of None, mean, zero, found 'median'"),
            ([{"name": "a"}, {"name": "A"}], "'A' is declared twice"),
        ],
    )
    def test_errors_say_what_was_expected_and_what_is_there(self, data, fault):
        with pytest.raises(InputError, match=fault):
            ChannelSet.from_list(data)
