"""The flow does what the command does: same bytes, shards as task runs, a lost shard computed again alone."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from flows.segment_scene import segment_scene, shard_states
from pipelines.config import PredictOptions
from pipelines.prediction import predict_scene
from tests.models import adapter, tiny_bundle

OPTIONS = PredictOptions(tile=64, overlap=16, score=0.05, min_area=1, device="cpu", precision="fp32", shard_tiles=3)
PLACE = Affine(0.5, 0, 400_000, 0, -0.5, 3_300_000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", adapter(channels=("red", "green", "blue")))


@pytest.fixture
def scene(make_geotiff: Callable[..., Path]) -> Path:
    picture = np.random.default_rng(0).integers(0, 255, (3, 130, 170)).astype(np.uint8)
    return make_geotiff(picture, crs="EPSG:32617", transform=PLACE)


def digests(folder: Path) -> dict[str, str]:
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ("semantic.tif", "objects.parquet")}


def run(scene: Path, bundle: Path, out: Path, **settings):
    state = segment_scene(str(scene), str(bundle), str(out), OPTIONS, return_state=True, **settings)
    assert state.is_completed()
    folder = Path(state.result())
    return folder, shard_states(state.state_details.flow_run_id, folder)


def test_same_bytes_as_the_command_and_only_the_lost_shard_again(scene: Path, bundle: Path, tmp_path: Path) -> None:
    by_command = predict_scene(scene, bundle, tmp_path / "command", OPTIONS)
    by_flow, states = run(scene, bundle, tmp_path / "flow", keep_shards=True)
    assert digests(by_flow) == digests(by_command)
    assert len(states) > 2 and set(states) == {"Computed"}

    lost = sorted((tmp_path / "flow" / ".shards").rglob("shard-0001.npz"))
    assert len(lost) == 1
    lost[0].unlink()
    again, states = run(scene, bundle, tmp_path / "flow", overwrite=True)
    assert states.count("Computed") == 1 and states[1] == "Computed" and states.count("Found") == len(states) - 1
    assert again == by_flow and digests(again) == digests(by_command)
    assert not (tmp_path / "flow" / ".shards").exists()


def test_bad_input_fails_the_run_with_the_readable_line(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.tif"
    text.write_text("not a raster")
    state = segment_scene(str(text), str(bundle), str(tmp_path / "out"), OPTIONS, return_state=True)
    assert state.is_failed() and "notes.tif" in str(state.result(raise_on_failure=False))
    assert not (tmp_path / "out").exists()


def test_every_parameter_is_in_the_form_with_its_description() -> None:
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(segment_scene).model_dump_for_openapi()
    assert set(schema["properties"]) >= {"source", "model", "out", "options", "labels", "overwrite"}
    assert "tile" in schema["definitions"]["PredictOptions"]["properties"]
