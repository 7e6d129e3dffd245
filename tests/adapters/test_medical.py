"""CT and MR adapters: windows, volume statistics, neighbours, rules that travel as JSON."""

from pathlib import Path

import numpy as np
import pytest

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.medical import CT_WINDOWS, ct, fit_volumes, for_volume, mri, slice_inputs
from adapters.volume import SeriesRule, VolumeRules

LIVER = ClassSet((Class("liver", "stuff"), Class("lesion")))


class Volume:
    """A volume in memory; `reads` counts the windows asked for."""

    def __init__(self, array: np.ndarray, kind: str = "dicom") -> None:
        self.array, self.kind, self.path, self.reads = array, kind, "memory", 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    def read(self, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        self.reads += 1
        part = self.array[(slice(None), *window)]
        return part, np.isfinite(part).all(axis=0)


def head(seed: int = 0, shape: tuple[int, int, int] = (30, 32, 34)) -> np.ndarray:
    """Air around a bright body."""
    random = np.random.default_rng(seed)
    values = np.abs(random.normal(0, 2, (1, *shape)))
    values[0, 8:22, 8:24, 8:26] = random.normal(300, 40, (14, 16, 18))
    return values.astype(np.float32)


def test_ct_windows_are_channels_of_one_scan() -> None:
    adapter = ct(LIVER, ("soft tissue", "lung", (0.0, 80.0)), inside={"lesion": "liver"})
    assert adapter.overlap == "layered" and adapter.volume is not None and adapter.volume.series.modality == "CT"
    assert adapter.channels.select([("ct", "image")]) == (0, 0, 0)
    low, high = CT_WINDOWS["lung"]
    scan = np.full((3, 2, 2), [[[low]], [[low]], [[low]]], np.int16)
    scan[:, 0, 0] = 40
    found = adapter.inputs(scan, np.ones((2, 2), bool))
    assert found[:, 0, 0] == pytest.approx([0.0, 2 * (40 - low) / (high - low) - 1, 0.0])
    assert (found[:, 1, 1] == -1).all()
    with pytest.raises(InputError, match="no window 'kidney'; known are soft tissue"):
        ct(LIVER, ("kidney",))
    assert ct(LIVER, {"own": (0, 100)}).channels.names == ("own",)


def test_adapters_travel_as_json(tmp_path: Path) -> None:
    rules = {"orientation": "LPS", "planes": ("axial", "coronal", "sagittal"), "inside": {"lesion": "liver"}}
    series = SeriesRule("CT", "portal|venous", (0.5, 3), 20)
    adapter = ct(LIVER, spacing=(1, 1, 3), context_slices=2, series=series, **rules)
    loaded = DomainAdapter.load(adapter.save(tmp_path / "a.json"))
    assert loaded == adapter and loaded.to_json() == adapter.to_json() and hash(loaded) == hash(adapter)
    assert loaded.volume is not None and loaded.volume.series.thickness == (0.5, 3.0)
    old = {k: v for k, v in adapter.to_dict().items() if k != "volume"}
    assert DomainAdapter.from_dict(old).volume is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"orientation": "RAX"}, "three letters"),
        ({"orientation": "RLA"}, "three letters"),
        ({"planes": ()}, "planes: expected a list"),
        ({"planes": ("oblique",)}, "oblique"),
        ({"planes": ("axial", "axial")}, "named twice"),
        ({"intensity": "slice"}, "intensity"),
        ({"inside": {"lesion": "kidney"}}, "no class 'kidney'"),
        ({"inside": {"lesion": "liver", "liver": "lesion"}}, "inside itself"),
        ({"series": SeriesRule}, "series"),
    ],
)
def test_rules_that_make_no_sense(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ct(LIVER, **values)
    with pytest.raises(InputError, match="least <= most"):
        SeriesRule(thickness=(3, 1))
    with pytest.raises(InputError, match="regular expression"):
        SeriesRule(description="(")
    with pytest.raises(InputError, match="unknown key 'plane'"):
        VolumeRules.from_dict({"plane": "axial"})


def test_mr_intensity_is_the_volumes_never_the_slices() -> None:
    adapter = mri(LIVER)
    values = head()
    fitted = for_volume(adapter, Volume(values)).channels
    assert 250 < fitted[0].offset < 350 and 20 < fitted[0].scale < 60
    image = fitted.normalise(values)
    for gain in (0.01, 37.0):  # a scanner's gain means nothing
        again = for_volume(adapter, Volume(values * np.float32(gain))).channels.normalise(values * np.float32(gain))
        assert np.abs(again - image).max() < 1e-3
    empty = np.zeros((30, 32), bool)
    assert not empty.any() and image[0, 0].max() < image[0, 15].max()  # air stays darker than the body
    spikes = values.copy()
    spikes[0, 10, 10, 10:13] = 1e6
    assert for_volume(adapter, Volume(spikes)).channels[0].scale == pytest.approx(fitted[0].scale, rel=0.05)
    kept = mri(LIVER, intensity="dataset")
    assert for_volume(kept, Volume(values)) is kept


def test_statistics_of_a_data_set() -> None:
    channels = ChannelSet((Channel("t1"), Channel("t2")))
    two = [np.concatenate([head(i), head(i + 9) * 2]) for i in range(2)]
    sources = [Volume(two[0]), Volume(two[1], "nifti")]
    fitted = fit_volumes(sources, channels)
    assert fitted == fit_volumes(sources, channels)
    assert fitted[1].offset == pytest.approx(2 * fitted[0].offset, rel=0.05)
    assert sources[0].reads == 2 * 30 and sources[1].reads == 2 * 34
    nothing = Volume(np.full((1, 4, 4, 4), np.nan, np.float32))
    with pytest.raises(InputError, match="no valid voxel of channel 't1'"):
        fit_volumes([nothing], ChannelSet((Channel("t1"),)))
    flat = fit_volumes([Volume(np.full((1, 4, 4, 4), 7.0, np.float32))], ChannelSet((Channel("t1"),)))
    assert flat[0].offset == 7 and flat[0].scale == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_comes_with_its_neighbours(axis: int) -> None:
    adapter = DomainAdapter("x", ChannelSet((Channel("a"), Channel("b", (), 1.0))), LIVER, context_slices=2)
    values = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    valid = np.ones((5, 6, 7), bool)
    valid[2, 3, 4] = False
    for index in range(values.shape[1 + axis]):
        found = slice_inputs(adapter, values, valid, index, axis)
        assert found.shape == (10, *np.delete(values.shape[1:], axis))
        for k, neighbour in enumerate(range(index - 2, index + 3)):
            place = min(max(neighbour, 0), values.shape[1 + axis] - 1)
            expected = adapter.inputs(values.take(place, 1 + axis), valid.take(place, axis))
            assert np.array_equal(found[2 * k : 2 * k + 2], expected)
    with pytest.raises(ValueError, match="expected a slice from 0"):
        slice_inputs(adapter, values, valid, 99, axis)


def test_real_volumes(shared_data: Path) -> None:
    from pipelines.volumes.source import open_volume

    medical = shared_data / "medical"
    brain = mri(LIVER, ("FLAIR", "T1", "T2"))
    files = sorted((medical / "ms_lesions").glob("patient19_[FT]*.nii.gz"))
    with open_volume(files, brain.channels) as source:
        fitted = for_volume(brain, source)
        array, valid = source.read((slice(60, 120), slice(80, 140), slice(90, 93)))
        picture = slice_inputs(fitted, array, valid, 1, axis=2)
        assert picture.shape == (9, 60, 60) and 0.2 < picture.std() < 2 and np.abs(picture.mean()) < 1.5
    two = ct(LIVER, ("soft tissue", "bone"))
    with open_volume(medical / "dicom" / "sarcoma" / "STS_019", two.channels, rule=two.volume.series) as source:
        assert source.modality == "CT" and "modality MR is not CT" in " ".join(source.notes)
        array, valid = source.read((slice(20, 23), slice(None), slice(None)))
        picture = slice_inputs(two, array, valid, 1)
        assert picture.shape == (6, 134, 136) and np.abs(picture).max() <= 1
