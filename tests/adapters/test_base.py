"""The adapter: stable JSON, inputs that invalid pixels cannot touch, overlap policies against brute force."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Annotation, DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.overlap import resolve
from adapters.remote_sensing import landsat, panchromatic, rgb_aerial, rgbn, sentinel2
from maskformer.masks import MaskSet

CLASSES = ClassSet((Class("tree", values=(1,)), Class("water", "stuff", values=(2,), colour="#0000ff")), (9,))
READY = [make(CLASSES) for make in (rgb_aerial, rgbn, panchromatic, sentinel2, landsat)]
FULL = replace(
    READY[0], overlap="layered", covers=True, resolution=0.1, spacing=(3.0, 1.0, 1.0), tile=256, tile_overlap=32
)


class TestJson:
    @pytest.mark.parametrize("adapter", [*READY, FULL], ids=lambda a: a.name)
    def test_round_trip_and_stable_text(self, adapter, tmp_path):
        loaded = DomainAdapter.load(adapter.save(tmp_path / "adapter.json"))
        assert loaded == adapter and hash(loaded) == hash(adapter)
        assert loaded.to_json() == adapter.to_json() == (tmp_path / "adapter.json").read_text("utf-8")
        assert [p.name for p in tmp_path.iterdir()] == ["adapter.json"]

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"overlap": "both"}, "overlap: expected one of exclusive, layered, free, found 'both'"),
            ({"tile": 0}, "tile: expected a whole number from 1, found 0"),
            ({"tile": 64, "tile_overlap": 64}, r"tile_overlap: expected less than tile \(64\), found 64"),
            ({"covers": "yes"}, "covers: expected a bool, found 'yes'"),
            ({"spacing": [1, 2]}, "spacing: expected three lengths"),
            ({"resolution": -1}, "resolution: expected a number above 0, found -1"),
            ({"version": 2}, "version: expected one of 1, found 2"),
            ({"chanels": []}, "unknown key 'chanels'; .*did you mean 'channels'"),
            ({"channels": 3}, "channels: expected a list, found int"),
        ],
    )
    def test_errors_name_file_and_key(self, tmp_path, changes, fault):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({**READY[0].to_dict(), **changes}))
        with pytest.raises(InputError, match=f"a.json: .*{fault}"):
            DomainAdapter.load(path)

    def test_unreadable(self, tmp_path):
        with pytest.raises(InputError, match=r"gone.json: cannot read"):
            DomainAdapter.load(tmp_path / "gone.json")
        (tmp_path / "a.json").write_text("{")
        with pytest.raises(InputError, match=r"a.json: expected an adapter in JSON"):
            DomainAdapter.load(tmp_path / "a.json")


class TestInputs:
    @given(seed=st.integers(0, 1000), fill=st.sampled_from([0, 1, 255, -32768, np.nan, np.inf]))
    def test_what_invalid_pixels_hold_does_not_matter(self, seed, fill):
        random = np.random.default_rng(seed)
        adapter = panchromatic(CLASSES)
        array = random.normal(500, 300, (1, 9, 11)).astype(np.float32)
        valid = random.random((9, 11)) > 0.4
        filled = np.where(valid, array, np.float32(fill))
        result = adapter.inputs(filled, valid)
        assert np.array_equal(result, adapter.inputs(array, valid))
        assert result.dtype == np.float32 and np.all(result[:, ~valid] == 0)
        assert np.array_equal(result[:, valid], adapter.channels.normalise(array)[:, valid])

    def test_holes_in_one_band_become_zero(self):
        array = np.full((3, 4, 4), 100.0)
        array[1, 2, 2] = np.nan
        result = READY[0].inputs(array, np.ones((4, 4), bool))
        assert np.isfinite(result).all() and result[1, 2, 2] == 0


@st.composite
def mask_sets(draw):
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    count = draw(st.integers(0, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dense = random.random((count, height, width)) < draw(st.floats(0, 1))
    scores = random.choice([0.1, 0.5, 0.5, 0.9], count)
    return MaskSet.from_dense(dense, random.integers(0, 3, count), scores)


def brute_force(objects, overlap):
    """Pixel by pixel: the claimants, of whom the highest score stays, the earlier one on a tie."""
    dense = objects.to_dense()
    if overlap == "free":
        return objects
    for pixel in np.ndindex(*objects.shape):
        claimants = [i for i in range(len(objects)) if dense[i][pixel]]
        for group in (
            [claimants]
            if overlap == "exclusive"
            else [[i for i in claimants if objects.labels[i] == c] for c in range(3)]
        ):
            for loser in sorted(group, key=lambda i: (-objects.scores[i], i))[1:]:
                dense[loser][pixel] = False
    kept = dense.any(axis=tuple(range(1, dense.ndim)))
    return MaskSet.from_dense(dense[kept], objects.labels[kept], objects.scores[kept])


class TestOutputs:
    @given(objects=mask_sets(), overlap=st.sampled_from(["exclusive", "layered", "free"]))
    def test_equals_brute_force(self, objects, overlap):
        assert resolve(objects, overlap) == brute_force(objects, overlap)

    @given(objects=mask_sets())
    def test_resolved_once_is_resolved(self, objects):
        for overlap in ("exclusive", "layered"):
            once = resolve(objects, overlap)
            assert resolve(once, overlap) == once
        assert (resolve(objects, "exclusive").to_dense().sum(axis=0) <= 1).all()

    def test_volume(self):
        random = np.random.default_rng(3)
        objects = MaskSet.from_dense(random.random((5, 3, 4, 6)) < 0.5, random.integers(0, 3, 5), random.random(5))
        for overlap in ("exclusive", "layered"):
            assert resolve(objects, overlap) == brute_force(objects, overlap)

    def test_through_the_adapter(self):
        objects = MaskSet.from_dense(np.ones((2, 3, 3), bool), [0, 1], [0.3, 0.8])
        assert replace(FULL, overlap="exclusive").outputs(objects).labels.tolist() == [1]
        assert len(FULL.outputs(objects)) == 2


class TestTargets:
    """What the loss may look at."""

    OBJECTS = MaskSet.from_dense(np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], bool), [0, 1])

    @pytest.mark.parametrize(("covers", "expected"), [(False, [1, 0, 1, 1]), (True, [1, 0, 1, 0])])
    def test_valid_ignore_and_unlabelled(self, covers, expected):
        ignore = np.array([[0, 1, 0, 0]], bool)
        target = replace(FULL, covers=covers).targets(Annotation(self.OBJECTS, ignore), np.ones((1, 4), bool))
        assert target.valid.int().tolist() == [expected]
        assert target.labels.tolist() == [0, 1]
        looked_at = np.array([expected], bool)
        assert np.array_equal(target.masks.numpy() & looked_at, self.OBJECTS.to_dense() & looked_at)

    def test_nodata(self):
        valid = np.array([[1, 1, 0, 1]], bool)
        assert READY[0].targets(Annotation(self.OBJECTS), valid).valid.int().tolist() == valid.astype(int).tolist()
        assert valid.tolist() == [[True, True, False, True]]  # not changed


def test_adapters_do_not_import_torch():
    code = "import sys, adapters.remote_sensing; print([m for m in ('torch', 'rasterio') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_channel_sets_are_part_of_the_adapter():
    changed = READY[0].with_channels(ChannelSet((Channel("x"),)))
    assert changed != READY[0] and changed.channels.names == ("x",)
