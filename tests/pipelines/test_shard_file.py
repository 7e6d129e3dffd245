"""Shards on disk: what was written comes back to the byte, no data costs nothing, an older format is computed anew."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from maskformer.masks import MaskSet
from pipelines import shards
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.prediction import predict_scene
from pipelines.predictor import TileResult
from pipelines.scene import ScenePlan, plan_scene
from pipelines.shard_file import PACKED, nothing, read_tiles, write_tiles
from pipelines.work_folder import work_path
from tests.models import Oracle, tiny_bundle

CLASSES, SHAPE = 3, (40, 56)


def tile(seed: int, shape: tuple[int, int] = SHAPE, objects: int = 4) -> TileResult:
    """Smooth probabilities as a network gives them, some objects, a corner without data."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(rows * a + columns * b) for a, b in random.uniform(0.02, 0.2, (CLASSES, 2))]
    masks = np.stack([waves[i % CLASSES] > i / 10 for i in range(objects)]) if objects else np.zeros((0, *shape), bool)
    valid = np.ones(shape, bool)
    valid[: seed + 1, :7] = False
    labels = np.arange(objects) % CLASSES
    probabilities = (1 / (1 + np.exp(-4 * np.stack(waves)))).astype(np.float16)
    return TileResult(MaskSet.from_dense(masks, labels, random.random(objects, np.float32)), probabilities, valid)


def test_tiles_come_back_as_they_were(tmp_path: Path) -> None:
    written = [tile(0), nothing(SHAPE, CLASSES), tile(1, objects=0), tile(2, (33, 9)), nothing((33, 9), CLASSES)]
    traits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float16)
    written[3] = replace(written[3], traits=traits)
    odd = np.array([0.0, -0.0, 1.0, 6e-8, np.inf, 0.1], np.float16)  # the file keeps bits, whatever they mean
    written[0].probabilities.reshape(-1)[: len(odd)] = odd
    write_tiles(tmp_path / "a.npz", iter(written), CLASSES)
    found = list(read_tiles(tmp_path / "a.npz", [result.valid.shape for result in written]))
    assert len(found) == len(written)
    for one, other in zip(written, found, strict=True):
        assert one.objects == other.objects and one.objects.shape == other.objects.shape
        assert one.probabilities.tobytes() == other.probabilities.tobytes()
        assert other.probabilities.dtype == np.float16 and other.probabilities.shape == one.probabilities.shape
        assert np.array_equal(one.valid, other.valid)
        assert (one.traits is None) == (other.traits is None)
        assert one.traits is None or (
            other.traits.tobytes() == one.traits.tobytes() and other.traits.dtype == np.float16
        )
    write_tiles(tmp_path / "b.npz", iter(written), CLASSES)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_no_data_costs_nothing_and_the_rest_less_than_it_was(tmp_path: Path) -> None:
    shape = (256, 256)
    write_tiles(tmp_path / "none.npz", iter([nothing(shape, CLASSES)] * 500), CLASSES)
    assert (tmp_path / "none.npz").stat().st_size < 1000
    write_tiles(tmp_path / "some.npz", iter([tile(0, shape)]), CLASSES)
    assert (tmp_path / "some.npz").stat().st_size < PACKED * 2 * CLASSES * shape[0] * shape[1]


def test_tiles_are_written_and_read_one_by_one(tmp_path: Path) -> None:
    """At most one tile of a shard is alive besides the one that is handed over."""
    alive, most = 0, 0

    class Counted(TileResult):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def results() -> Iterator[TileResult]:
        nonlocal alive, most
        for number in range(20):
            made = tile(number % 3)
            alive += 1
            most = max(most, alive)
            yield Counted(made.objects, made.probabilities, made.valid)

    write_tiles(tmp_path / "a.npz", results(), CLASSES)
    assert most <= 2


OPTIONS = PredictOptions(task="semantic", device="cpu", precision="fp32", min_area=1)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Bundle, "build", lambda self, device="cpu": Oracle(1))
    channels, classes = ChannelSet((Channel("value", (1,)),)), ClassSet((Class("a"),))
    return tiny_bundle(
        tmp_path / "bundle", DomainAdapter("d", channels, classes, overlap="exclusive", tile=32, tile_overlap=8)
    )


def scene(path: Path) -> Path:
    values = np.zeros((100, 90), np.uint8)
    values[10:80, 12:32] = 1
    kind = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 100, "width": 90, "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=Affine(1, 0, 5e5, 0, -1, 6e6), **kind) as file:
        file.write(values, 1)
    return path


def test_shards_of_an_older_format_are_told_of_and_computed_anew(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = scene(tmp_path / "s.tif")
    plan = plan_scene(path, bundle, OPTIONS)
    untouched = predict_scene(path, bundle, tmp_path / "untouched", OPTIONS)
    work = shards_of_the_first_format(plan, tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        assert not shards.is_finished(plan, 0, work)
    assert [record.message for record in caplog.records] == [
        f"{work / 'shard-0000.npz'}: written by another version of maskbridge, and computed anew"
    ]
    folder = predict_scene(path, bundle, tmp_path / "out", OPTIONS)
    assert (folder / "semantic.tif").read_bytes() == (untouched / "semantic.tif").read_bytes()


def shards_of_the_first_format(plan: ScenePlan, out: Path) -> Path:
    """As they were before the marker named a format: a hash that agrees, and no `format`."""
    work = work_path(plan, out)
    work.mkdir(parents=True)
    np.savez(work / "shard-0000.npz", probabilities=np.zeros((1, 1, 32, 32), np.float16))
    digest = shards.sha256(work / "shard-0000.npz")
    record = {"key": plan.key, "sha256": digest, "seconds": 1.0, "waited": 0.0, "lost": []}
    (work / "shard-0000.json").write_text(json.dumps(record))
    return work
