"""GDAL keeps little while a scene is predicted and written, and as much as before when it is done."""

from pathlib import Path

import pytest
from rasterio._env import get_gdal_config

from pipelines import prediction
from pipelines.prediction import predict_scene
from pipelines.raster_cache import CACHE_BYTES
from tests.pipelines.test_shard_file import OPTIONS, bundle, scene

__all__ = ["bundle"]


def test_the_cache_is_bounded_in_every_stage(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, reading, writing = get_gdal_config("GDAL_CACHEMAX"), [], []
    check = prediction.check_unchanged

    def see(*arguments: object) -> None:
        writing.append(get_gdal_config("GDAL_CACHEMAX"))
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction, "check_unchanged", see)
    predict_scene(
        scene(tmp_path / "s.tif"),
        bundle,
        tmp_path / "out",
        OPTIONS,
        on_progress=lambda *_: reading.append(get_gdal_config("GDAL_CACHEMAX")),
    )
    assert len(reading) > 1 and set(reading) == {CACHE_BYTES} and writing == [CACHE_BYTES]
    assert get_gdal_config("GDAL_CACHEMAX") == before
