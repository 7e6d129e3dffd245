"""The flow does what the command does: same bytes, shards in task runs, a lost shard computed again alone."""

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import geopandas
import numpy as np
import pytest
from affine import Affine
from PIL import Image

from flows import segment_scene as flow_module
from flows.runs import PROCESS_LABEL, process_label
from flows.runtime import final_task_runs
from flows.segment_scene import MOST_TASKS, portion, segment_scene, shard_states
from pipelines import shards
from pipelines.config import PredictOptions
from pipelines.executors import ExecutorOptions
from pipelines.prediction import predict_scene, written_by_the_run
from pipelines.scene import plan_scene
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
    assert len(states) == 2 and set(states) == {"Computed"}

    files = sorted((tmp_path / "flow" / ".shards").rglob("shard-*.npz"))
    files[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    again, states = run(scene, bundle, tmp_path / "flow", overwrite=True, keep_shards=True)
    assert states == ["Found", "Computed"], "the first shard alone, and the others in one task"
    assert {path: path.stat().st_mtime_ns for path in before} == before and files[1].exists()
    assert again == by_flow and digests(again) == digests(by_command)
    _, states = run(scene, bundle, tmp_path / "flow", overwrite=True)
    assert set(states) == {"Found"} and not (tmp_path / "flow" / ".shards").exists()


def test_bad_input_fails_the_run_with_the_readable_line(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.tif"
    text.write_text("not a raster")
    state = segment_scene(str(text), str(bundle), str(tmp_path / "out"), OPTIONS, return_state=True)
    assert state.is_failed() and "notes.tif" in str(state.result(raise_on_failure=False))
    assert not (tmp_path / "out").exists()
    (planning,) = final_task_runs(state.state_details.flow_run_id, 1)
    assert planning.run_count == 1, "bad input is not tried again"


def test_bad_luck_is_tried_again_and_costs_no_byte(
    scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of shard 1 fails once, in the middle: its task is tried again, and what was whole is found."""
    by_command = predict_scene(scene, bundle, tmp_path / "command", OPTIONS)
    real, asked = shards.predict_shard, []

    def unlucky(plan, number: int, work: Path) -> bool:
        asked.append(number)
        if asked == [0, 1]:
            raise OSError("the disk is away for a moment")
        return real(plan, number, work)

    monkeypatch.setattr(shards, "predict_shard", unlucky)
    # At once instead of after ten seconds.
    monkeypatch.setattr(flow_module, "some_shards", flow_module.some_shards.with_options(retry_delay_seconds=0))
    by_flow, states = run(scene, bundle, tmp_path / "flow")
    assert asked[:3] == [0, 1, 1] and set(states) == {"Computed"}
    assert digests(by_flow) == digests(by_command)


def test_processes_under_one_task_give_the_same_bytes(scene: Path, bundle: Path, tmp_path: Path) -> None:
    by_command = predict_scene(scene, bundle, tmp_path / "command", OPTIONS, executor=ExecutorOptions(threads=1))
    together, states = run(
        scene, bundle, tmp_path / "flow", executor=ExecutorOptions(kind="process", workers=1, threads=1)
    )
    assert states == ["Computed"] and digests(together) == digests(by_command)


def test_what_a_run_shows(scene: Path, bundle: Path, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client

    folder, _ = run(scene, bundle, tmp_path / "out")
    run_id = json.loads((folder / "run.json").read_text())["host"]["run"]
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(run_id))
        assert flow_run.labels[PROCESS_LABEL] == process_label()
        shown = {a.key: a for a in client.read_artifacts() if str(a.flow_run_id) == run_id}
    assert shown["scene-scene-progress"].data == 100
    address = shown["scene-scene-preview"].data
    picture = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    assert picture.size == (170, 130)
    rows = {row["what"]: row["value"] for row in json.loads(shown["scene-scene-numbers"].data)}
    found = len(geopandas.read_parquet(folder / "objects.parquet"))
    assert rows["objects"] == rows["objects: a"] == found > 0
    assert "report.html" in shown["scene-scene-report"].data


def test_a_task_is_long_and_a_scene_has_few(scene: Path) -> None:
    assert portion(40, 30.0) == 1, "a shard of half a minute is a task"
    assert portion(40, 4.0) == 5, "five of four seconds are one"
    assert portion(40, 0.001) == 40
    for count in (1, 194, 195, 5000):
        size = portion(count, 60.0)
        assert 1 + -(-count // size) <= MOST_TASKS
    assert portion(3, None) == 1


def test_a_run_that_is_repeated_writes_no_second_folder(scene: Path, bundle: Path, tmp_path: Path) -> None:
    """Killed between its last file and its last word, a run is started again."""
    folder = predict_scene(scene, bundle, tmp_path, OPTIONS)
    planned = plan_scene(scene, bundle, OPTIONS).model_copy(update={"run": "this one"})
    assert written_by_the_run(planned, tmp_path) is None
    manifest = json.loads((folder / "run.json").read_text())
    manifest["host"]["run"] = "this one"
    (folder / "run.json").write_text(json.dumps(manifest))
    assert written_by_the_run(planned, tmp_path) == folder
    assert written_by_the_run(planned.model_copy(update={"source_sha256": "another"}), tmp_path) is None


def test_every_parameter_is_in_the_form_with_its_description() -> None:
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(segment_scene).model_dump_for_openapi()
    assert set(schema["properties"]) >= {"source", "model", "out", "options", "labels", "overwrite"}
    assert "tile" in schema["definitions"]["PredictOptions"]["properties"]
