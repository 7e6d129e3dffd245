"""Flows are tested against one throw-away Prefect server a session (7 s to start), never the user's.

Tests with real workers share a second one, of prefect.yaml's deployments. A module of such tests alone says
`OWN_SERVER = True` and does not pay for the first.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from pipelines.sinks.folder import sha256
from tests.flows.broken import COMMAND, FILES, Broken, by_command
from tests.flows.service import Service
from tests.models import adapter, tiny_bundle

os.environ.update(PREFECT_LOGGING_LEVEL="ERROR", PREFECT_LOGGING_TO_API_ENABLED="false")


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    logging.getLogger("prefect").setLevel(logging.ERROR)
    with (
        # 30 s, the default, is too little where two cores also train: 136 s seen.
        prefect_test_harness(server_startup_timeout=300),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),  # 1 s less at the end of every run
    ):
        yield


@pytest.fixture(scope="module", autouse=True)
def _server(request: pytest.FixtureRequest) -> None:
    if not getattr(request.module, "OWN_SERVER", False):
        request.getfixturevalue("prefect_server")


@pytest.fixture(scope="session")
def real_scene(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A real scene where the shared data are: tree crowns, 400 × 400 px; else noise of that size."""
    folder = tmp_path_factory.mktemp("scene")
    with suppress(pytest.skip.Exception):
        real = request.getfixturevalue("shared_data") / "satellite" / "crowns" / "OSBS_029.tif"
        return Path(shutil.copy(real, folder / "crowns.tif"))
    import rasterio

    picture = np.random.default_rng(0).integers(0, 255, (3, 400, 400)).astype(np.uint8)
    place = {"crs": "EPSG:32617", "transform": Affine(0.1, 0, 400_000, 0, -0.1, 3_300_000)}
    with rasterio.open(folder / "crowns.tif", "w", "GTiff", 400, 400, 3, dtype="uint8", **place) as file:
        file.write(picture)
    return folder / "crowns.tif"


@pytest.fixture(scope="session")
def rgb_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rgb = adapter(channels=("red", "green", "blue"), tile=128, tile_overlap=32)
    thresholds = {"score": 0.05, "semantic": 0.3}
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", rgb, thresholds=thresholds)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, rgb_bundle: Path, real_scene: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    scenes = folder / "data" / "scenes"
    scenes.mkdir(parents=True)
    shutil.copy(real_scene, scenes)
    os.utime(scenes / real_scene.name, (time.time() - 3600,) * 2)  # it was there yesterday
    made = Service(folder, MASKBRIDGE_MODEL=str(rgb_bundle))
    try:
        made.start_server()
        made.deploy()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def truth(service: Service, rgb_bundle: Path, real_scene: Path) -> dict[str, str]:
    """Hashes of what an unbroken run of the command leaves."""
    out = service.folder / "command"
    assert by_command(rgb_bundle, real_scene, out, *COMMAND).wait(300) == 0
    return {name: sha256(out / real_scene.stem / name) for name in FILES}


@pytest.fixture
def broken(service: Service, rgb_bundle: Path, real_scene: Path, tmp_path: Path) -> Iterator[Broken]:
    made = Broken(service, rgb_bundle, real_scene, tmp_path / "out")
    yield made
    made.worker.kill()
    made.worker.wait()
