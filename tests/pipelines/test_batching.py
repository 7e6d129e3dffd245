"""The batch that nobody asked for: by time on a processor, by memory elsewhere, kept with the shards."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import batching
from pipelines.batching import Trial, choose_by_memory, choose_by_time, read_trial, settle_batch
from pipelines.cli import run
from pipelines.config import PredictOptions
from pipelines.prediction import predict_scene
from pipelines.scene import ScenePlan, plan_scene
from pipelines.shard_file import read_tiles
from pipelines.shards import predict_shard
from pipelines.work_folder import work_folder
from tests.models import adapter, tiny_bundle

OPTIONS = PredictOptions(tile=64, overlap=16, score=0.05, min_area=1, device="cpu", precision="fp32", shard_tiles=4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", adapter(channels=("red", "green", "blue")))


@pytest.fixture
def scene(make_geotiff: Callable[..., Path]) -> Path:
    return make_geotiff(np.random.default_rng(0).integers(1, 255, (3, 200, 200)).astype(np.uint8), crs="EPSG:32617")


def sleeping(seconds: Callable[[int], float]) -> Callable[[int], None]:
    return lambda count: time.sleep(seconds(count))


def test_a_processor_takes_more_while_a_tile_gets_quicker() -> None:
    trial = choose_by_time(sleeping(lambda n: 0.02 + 0.01 * max(n, 4)), 64, lambda: 0.0, 1e9)
    assert trial.batch == 16 or trial.batch == 8 or trial.batch == 4
    assert list(trial.seconds_a_tile)[:3] == ["1", "2", "4"]
    flat = choose_by_time(sleeping(lambda n: 0.02 * n), 64, lambda: 0.0, 1e9)
    assert flat.batch == 1 and list(flat.seconds_a_tile) == ["1", "2"] and "less than 10%" in flat.why


def test_neither_memory_nor_the_scene_is_exceeded() -> None:
    free = sleeping(lambda n: 0.004)
    assert choose_by_time(free, 4, lambda: 0.0, 1e9).batch == 4
    trial = choose_by_time(free, 64, lambda: 100.0, 900.0)
    assert trial.batch == 4 and "memory" in trial.why


@pytest.mark.parametrize(("free", "batch"), [(1e9, 32), (900, 4), (260, 1)])
def test_elsewhere_memory_decides(free: float, batch: int) -> None:
    ran: list[int] = []
    trial = choose_by_memory(ran.append, 32, lambda: 50.0 + 100.0 * ran[-1], free)
    assert trial.batch == batch and ran == [1, 2]


def test_a_small_scene_has_no_trial(scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "choose_by_time", lambda *_: pytest.fail("a trial"))
    speed = json.loads((predict_scene(scene, bundle, tmp_path, OPTIONS) / "run.json").read_text())["speed"]
    assert speed["batch"] == 1 and "too small" in speed["why"]


def large(scene: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> ScenePlan:
    """A plan for which a trial pays."""
    monkeypatch.setattr(batching, "TILES_A_STEP", 2)
    return plan_scene(scene, bundle, OPTIONS)


def test_what_was_found_is_kept_with_the_shards(
    scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = large(scene, bundle, monkeypatch)
    work, found = work_folder(plan, tmp_path), iter([Trial(4, "first"), Trial(2, "second")])
    monkeypatch.setattr(batching, "choose_by_time", lambda *_: next(found))
    first = settle_batch(plan, work)
    assert first.settled.batch == 4 and first.key == plan.key, "the shards' place does not hang on a clock"
    assert settle_batch(plan, work).batch == 4
    (work / "batch.json").unlink()
    assert settle_batch(plan, work).batch == 2


def test_another_run_of_the_same_plan_was_first(
    scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = large(scene, bundle, monkeypatch)
    work = work_folder(plan, tmp_path)

    def meanwhile(*_: object) -> Trial:
        (work / "batch.json").write_text(json.dumps({"batch": 8, "why": "theirs"}))
        return Trial(2, "mine")

    monkeypatch.setattr(batching, "choose_by_time", meanwhile)
    assert settle_batch(plan, work).batch == 8 and read_trial(work) == Trial(8, "theirs")
    assert sorted(path.name for path in work.iterdir()) == ["batch.json"]


def test_the_trial_is_of_real_tiles(scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = large(scene, bundle, monkeypatch)
    settled = settle_batch(plan, work_folder(plan, tmp_path))
    trial = read_trial(work_folder(plan, tmp_path))
    assert trial is not None and trial.batch == settled.batch and trial.seconds_a_tile["1"] > 0


def test_the_batch_moves_no_object(scene: Path, bundle: Path, tmp_path: Path) -> None:
    """Shards of batch 1 and 4: the same objects, scores to the last digits of float32."""
    found = []
    for batch in (1, 4):
        plan = plan_scene(scene, bundle, OPTIONS.model_copy(update={"batch": batch}))
        work = work_folder(plan, tmp_path / str(batch))
        predict_shard(plan, 0, work)
        shapes = [plan.grid.tiles[index].shape for index in plan.shards[0]]
        found.append([result.objects for result in read_tiles(work / "shard-0000.npz", shapes)])
    one, four = found
    assert sum(map(len, one)) > 0
    for single, batched in zip(one, four, strict=True):
        assert (single.labels == batched.labels).all()
        assert np.array_equal(single.runs, batched.runs) and np.array_equal(single.offsets, batched.offsets)
        assert np.abs(single.scores - batched.scores).max(initial=0) < 1e-5


def test_a_batch_that_was_given_is_kept(scene: Path, bundle: Path, tmp_path: Path) -> None:
    plan = plan_scene(scene, bundle, OPTIONS.model_copy(update={"batch": 3}))
    assert settle_batch(plan, tmp_path).settled.batch == 3 and read_trial(tmp_path) is None
    assert plan.key != plan_scene(scene, bundle, OPTIONS).key


@pytest.mark.parametrize("batch", ["0", "many", "-1"])
def test_the_command_says_what_a_batch_may_be(
    scene: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: str
) -> None:
    code = run(["predict", str(bundle), str(scene), "--out", str(tmp_path), "--batch", batch])
    assert code == 2 and "expected auto or a number" in capsys.readouterr().err
