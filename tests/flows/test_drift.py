"""Scenes unlike the training data are told of, by an event and a table; nothing is trained."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from prefect.client.orchestration import get_client
from prefect.events.filters import EventFilter, EventNameFilter

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from flows.evaluate_model import tell_scores
from flows.retrain_when_drifting import DRIFTED, retrain_when_drifting
from pipelines.drift.bands import DriftLimits, bands_of, drifted
from tests.models import tiny_bundle

TRAINED = {"red": (100.0, 10.0), "green": (80.0, 10.0), "blue": (60.0, 10.0)}


def adapter() -> DomainAdapter:
    channels = [Channel(name, (n,), offset=m, scale=s) for n, (name, (m, s)) in enumerate(TRAINED.items(), start=1)]
    return DomainAdapter("drift", ChannelSet(tuple(channels)), ClassSet((Class("a"),)))


def put(path: Path, seed: int, shift: float = 0.0, spread: float = 1.0) -> str:
    """A scene like the training data, but for its green band."""
    random = np.random.default_rng(seed)
    bands = [random.normal(mean, std, (64, 64)) for mean, std in TRAINED.values()]
    bands[1] = 80 + shift * 10 + (bands[1] - 80) * spread
    with rasterio.open(path, "w", "GTiff", 64, 64, 3, dtype="float32") as file:
        file.write(np.stack(bands).astype(np.float32))
    os.utime(path, (time.time() - 3600,) * 2)
    return str(path)


def test_bands_are_compared_one_by_one(tmp_path: Path) -> None:
    usual = [put(tmp_path / f"{n}.tif", n) for n in range(3)]
    limits = DriftLimits()
    rows = bands_of(usual, adapter())
    assert len(rows) == 9 and max(row.shift for row in rows) < 0.1 and not drifted(rows, limits)
    moved = [put(tmp_path / f"moved{n}.tif", n, shift=1.5) for n in range(2)]
    rows = bands_of(moved, adapter())
    assert drifted(rows, limits) == ["green"] and not drifted(rows, DriftLimits(shift=2.0))
    assert {round(row.shift, 1) for row in rows if row.band == "green"} == {1.5}
    assert drifted(bands_of([put(tmp_path / "wide.tif", 1, spread=2.5)], adapter()), limits) == ["green"]
    assert drifted(bands_of([put(tmp_path / "flat.tif", 1, spread=0.0)], adapter()), limits) == ["green"]
    assert not drifted(bands_of([*usual, *moved], adapter()), limits), "two of five scenes are not the half"


def test_an_adapter_without_statistics_is_named(tmp_path: Path) -> None:
    window = ChannelSet((Channel("red", (1,), offset=50.0, scale=50.0, clip=(0.0, 100.0)),))
    with pytest.raises(InputError, match="knows no statistics"):
        bands_of([put(tmp_path / "a.tif", 1)], DomainAdapter("ct", window, ClassSet((Class("a"),))))


def events(name: str) -> list:
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_events(EventFilter(event=EventNameFilter(name=[name])), limit=10).events
            if found:
                return found
            time.sleep(0.2)
    return []


def test_drift_is_told_and_not_acted_on(tmp_path: Path) -> None:
    bundle, folder = tiny_bundle(tmp_path / "bundle", adapter()), tmp_path / "scenes"
    folder.mkdir()
    state = retrain_when_drifting(str(bundle), str(folder), return_state=True)
    assert state.is_completed() and state.result()["scenes"] == 0
    put(folder / "a.tif", 1)
    state = retrain_when_drifting(str(bundle), str(folder), return_state=True)
    assert state.name == "Completed" and state.result()["drifted"] == []
    usual = state.result()["number"]
    put(folder / "a.tif", 1, shift=3)
    state = retrain_when_drifting(str(bundle), str(folder), return_state=True)
    assert state.name == "Drifted" and state.result()["drifted"] == ["green"]
    assert usual >= 0 and state.result()["number"] >= 0, "what the network makes of it is told too"
    (told,) = events(DRIFTED)
    assert told.payload["drifted"] == ["green"] and told.payload["config"] is None
    assert told.resource["prefect.resource.id"] == "maskbridge.model.unregistered"


def test_scores_of_registered_versions_are_told() -> None:
    assert not tell_scores("a/folder", {"pq": 0.5}, "")
    assert tell_scores("models:/roads/7", {"pq": 0.51234, "baseline": {"unet": {}}, "scored_on": "x"}, "abc")
    (told,) = events("maskbridge.evaluated")
    assert told.resource["prefect.resource.id"] == "maskbridge.model.roads"
    assert told.payload == {
        **{"name": "roads", "version": 7, "model": "models:/roads/7", "scores": {"pq": 0.5123}, "data_digest": "abc"},
    }
