"""Serial, processes, Dask: one shard function and one set of bytes, whoever dies on the way."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from affine import Affine
from pydantic import ValidationError

from adapters.errors import InputError
from pipelines import worker_pool
from pipelines.config import PredictOptions
from pipelines.executors import ExecutorOptions, run_shards
from pipelines.prediction import finish_scene, predict_scene
from pipelines.scene import ScenePlan, plan_scene
from pipelines.shards import is_finished
from pipelines.work_folder import work_folder
from tests.models import adapter, tiny_bundle

OPTIONS = PredictOptions(tile=64, overlap=16, score=0.05, min_area=1, device="cpu", precision="fp32", shard_tiles=3)
PLACE = Affine(0.5, 0, 400_000, 0, -0.5, 3_300_000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", adapter(channels=("red", "green", "blue")))


@pytest.fixture
def scene(make_geotiff: Callable[..., Path]) -> Path:
    picture = np.random.default_rng(0).integers(0, 255, (3, 300, 170)).astype(np.uint8)
    return make_geotiff(picture, crs="EPSG:32617", transform=PLACE)


@pytest.fixture
def plan(scene: Path, bundle: Path) -> ScenePlan:
    return ExecutorOptions(threads=1).settle(plan_scene(scene, bundle, OPTIONS))


def digests(folder: Path) -> dict[str, str]:
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ("semantic.tif", "objects.parquet")}


def shard_bytes(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(work.glob("shard-*.npz"))}


def children() -> list[psutil.Process]:
    """Worker processes of this one that hold a model: the others (semaphore trackers) are small."""
    return [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def test_processes_give_the_bytes_of_one_though_one_is_killed(plan: ScenePlan, tmp_path: Path) -> None:
    alone, together = work_folder(plan, tmp_path / "alone"), work_folder(plan, tmp_path / "together")
    run_shards(plan, alone, ExecutorOptions())
    told: list[tuple[int, bool]] = []

    def kill_one(number: int, computed: bool) -> None:
        if not told:
            children()[0].kill()
        told.append((number, computed))

    run_shards(plan, together, ExecutorOptions(kind="process", workers=2, threads=1), kill_one)
    assert len(plan.shards) > 4 and sorted(told) == [(number, True) for number in range(len(plan.shards))]
    assert shard_bytes(alone) == shard_bytes(together)
    assert digests(finish_scene(plan, alone, tmp_path / "a")) == digests(finish_scene(plan, together, tmp_path / "b"))
    assert not children(), "no worker outlives the run"


def test_bad_input_ends_the_processes_at_once(plan: ScenePlan, tmp_path: Path) -> None:
    Path(plan.source).unlink()
    with pytest.raises(InputError, match=r"scene\.tif"):
        run_shards(plan, work_folder(plan, tmp_path), ExecutorOptions(kind="process", workers=1))
    assert not children()


def test_a_shard_that_keeps_failing_is_the_runs_error(plan: ScenePlan, tmp_path: Path) -> None:
    changed = plan.model_copy(update={"model_digest": "0" * 64})
    with pytest.raises(RuntimeError, match=rf"(?s)failed {worker_pool.ATTEMPTS} times.*the model changed"):
        run_shards(changed, work_folder(changed, tmp_path), ExecutorOptions(kind="process", workers=1))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as made:
        yield made


def test_dask_gives_the_same_bytes_and_loads_the_model_once_a_worker(
    plan: ScenePlan, tmp_path: Path, cluster: Any
) -> None:
    from distributed import Client

    alone, together = work_folder(plan, tmp_path / "alone"), work_folder(plan, tmp_path / "together")
    run_shards(plan, alone, ExecutorOptions())
    options = ExecutorOptions(kind="dask", address=cluster.scheduler_address)
    run_shards(plan, together, options)
    assert len(shard_bytes(alone)) == len(plan.shards) and shard_bytes(alone) == shard_bytes(together)

    def built() -> tuple[int, int]:
        from pipelines.shards import _predictor

        info = _predictor.cache_info()
        return info.misses, info.hits + info.misses

    with Client(cluster) as client:
        counts = list(client.run(built).values())
    assert [misses for misses, _ in counts] == [1, 1], "the model is loaded once a worker"
    assert sum(calls for _, calls in counts) >= len(plan.shards)
    told: list[bool] = []
    run_shards(plan, together, options, lambda number, computed: told.append(computed))
    assert not any(told), "all are found, and no cluster is asked"


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_costs_its_shard_only(plan: ScenePlan, tmp_path: Path, cluster: Any) -> None:
    alone, together = work_folder(plan, tmp_path / "alone"), work_folder(plan, tmp_path / "together")
    run_shards(plan, alone, ExecutorOptions())
    written: dict[str, int] = {}

    def kill_one(number: int, computed: bool) -> None:
        if not written:
            victim = next(iter(cluster.workers.values()))
            written.update({p.name: p.stat().st_mtime_ns for p in together.glob("shard-*.json")})
            psutil.Process(victim.pid).kill()

    run_shards(plan, together, ExecutorOptions(kind="dask", address=cluster.scheduler_address), kill_one)
    assert shard_bytes(alone) == shard_bytes(together)
    assert written and all((together / name).stat().st_mtime_ns == when for name, when in written.items())


def test_dask_says_what_is_wrong(plan: ScenePlan, tmp_path: Path, cluster: Any) -> None:
    work = work_folder(plan, tmp_path)
    Path(plan.source).unlink()
    with pytest.raises(InputError, match=r"scene\.tif"):
        run_shards(plan, work, ExecutorOptions(kind="dask", address=cluster.scheduler_address))


def test_a_scheduler_that_is_not_there_is_named(
    plan: ScenePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.dask_pool.TIMEOUT_S", 0.5)
    with pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:1: no Dask scheduler answers"):
        run_shards(plan, work_folder(plan, tmp_path), ExecutorOptions(kind="dask", address="tcp://127.0.0.1:1"))


def test_two_runs_of_one_plan_share_the_work_and_both_end_well(scene: Path, bundle: Path, tmp_path: Path) -> None:
    """Started together, each shard is computed once; the first to end does not take the shards from the other."""
    folders: list[Path] = []
    runs = [
        threading.Thread(target=lambda: folders.append(predict_scene(scene, bundle, tmp_path / "out", OPTIONS)))
        for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert sorted(folder.name for folder in folders) == ["scene", "scene-2", "scene-3"]
    assert digests(folders[0]) == digests(folders[1]) == digests(folders[2])
    assert not (tmp_path / "out" / ".shards").exists(), "the last one out cleans up"


def test_a_run_that_ends_leaves_the_shards_to_one_that_goes_on(plan: ScenePlan, tmp_path: Path) -> None:
    from pipelines.work_folder import hold

    first, second = hold(plan, tmp_path), hold(plan, tmp_path)
    run_shards(plan, first.path, ExecutorOptions())
    first.release(discard=True)
    assert all(is_finished(plan, number, second.path) for number in range(len(plan.shards)))
    second.release(discard=True)
    assert not (tmp_path / ".shards").exists()
    again = hold(plan, tmp_path)
    assert again.path.is_dir() and not list(again.path.iterdir())
    again.release(discard=True)


def test_a_shard_in_work_is_waited_for(plan: ScenePlan, tmp_path: Path) -> None:
    from pipelines.shards import predict_shard
    from pipelines.work_folder import alone_with

    work, computed = work_folder(plan, tmp_path), []
    with alone_with(work, 0):
        waiting = threading.Thread(target=lambda: computed.append(predict_shard(plan, 0, work)))
        waiting.start()
        time.sleep(0.3)
        assert not computed and not is_finished(plan, 0, work)
    waiting.join(60)
    assert computed == [True] and is_finished(plan, 0, work)


def test_threads_are_part_of_the_plan(plan: ScenePlan) -> None:
    one, two = (ExecutorOptions(threads=n).settle(plan) for n in (1, 2))
    assert (one.threads, two.threads) == (1, 2) and one.key != two.key
    assert ExecutorOptions().settle(one) == one
    other = one.model_copy(update={"run": "a run", "reference": "models:/x@champion"})
    assert other.key == one.key, "who asked moves no mask"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "tcp://host:1"}, "dask executor only"),
        ({"kind": "dask", "address": "tcp://host:1", "workers": 2}, "has its own"),
        ({"workers": 2}, "serial executor has one worker"),
        ({"kind": "ray"}, "serial"),
    ],
)
def test_what_does_not_fit_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExecutorOptions(**settings)
