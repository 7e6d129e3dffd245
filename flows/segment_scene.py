"""One scene as one Prefect run: plan → shards, some to a task run → stitch, blend and write.

A task is twenty seconds of work or more, and a scene has at most two hundred of them, so that Prefect's overhead does
not count and a retry costs little. Arrays never pass between tasks; shards lie on disk, hashed, and one that is there
already is found instead of computed. On several machines a Dask cluster computes the shards, under one task.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import Bar, show_run, show_scene
from flows.runs import begin, is_bad_luck, pinned, root_run, sweep_after
from flows.runtime import POLL_S, task_runs
from pipelines.annotations.options import LabelOptions
from pipelines.config import PredictOptions, WriteOptions
from pipelines.executors import ExecutorOptions
from pipelines.manifest import Stopwatch
from pipelines.scene import ScenePlan

TASK_S = 20.0  # a task has at least so much work: Prefect's own share is 3 to 100 ms a task
MOST_TASKS = 195  # of shards; with planning and finishing a scene has fewer than 200 task runs
SHARDS = re.compile(r"predict-shards-(?P<first>\d+)-(?P<last>\d+)")

RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [2, 10, 60],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_bad_luck,
    "cache_policy": NO_CACHE,
}


@task(name="plan-scene", **RETRIED)
def plan(
    source: str,
    model: str,
    options: PredictOptions,
    labels: str | None,
    label_options: LabelOptions,
    write: WriteOptions,
) -> ScenePlan:
    from pipelines.scene import plan_scene

    return plan_scene(source, model, options, labels, label_options, write)


@task(name="predict-shards", task_run_name="predict-shards-{first}-{last}", **RETRIED)
def some_shards(plan: ScenePlan, first: int, last: int, work: str) -> State[int]:
    """Shards `first` to `last`. Completed as `Computed`, or as `Found` where all were there and whole."""
    from pipelines.executors import threads
    from pipelines.shards import predict_shard

    with threads(plan.threads):
        computed = sum(predict_shard(plan, number, Path(work)) for number in range(first, last + 1))
    return Completed(name="Computed" if computed else "Found", data=computed)


@task(name="predict-shards", task_run_name="predict-shards-0-{last}", **RETRIED)
def all_shards(plan: ScenePlan, last: int, work: str, executor: ExecutorOptions) -> State[int]:
    """All shards by an executor that has workers of its own."""
    from pipelines.executors import run_shards

    bar, computed, done = Bar("scene", plan.stem), 0, 0

    def on_shard(number: int, was_computed: bool) -> None:
        nonlocal computed, done
        computed, done = computed + was_computed, done + 1
        bar.to(done, last + 1)

    run_shards(plan, Path(work), executor, on_shard)
    return Completed(name="Computed" if computed else "Found", data=computed)


@task(name="finish-scene", **RETRIED)
def finish(plan: ScenePlan, work: str, out: str, seconds: dict[str, float], overwrite: bool) -> str:
    from pipelines.prediction import finish_scene

    return str(finish_scene(plan, Path(work), Path(out), Stopwatch(seconds), overwrite=overwrite))


def _run_name() -> str:
    """`segment-<scene>`: the path would fill the page."""
    return f"segment-{Path(runtime.flow_run.parameters['source']).stem}"


# (Prefect types its own runner too narrowly for its own parameter.)
RUNNER: Any = ThreadPoolTaskRunner(max_workers=1)


# One task at a time: the model's own threads fill the machine, and two models would only share it.
@flow(
    name="segment-scene",
    flow_run_name=_run_name,
    task_runner=RUNNER,
    on_cancellation=[sweep_after],
    on_crashed=[sweep_after],
)
def segment_scene(
    source: str,
    model: str,
    out: str,
    options: PredictOptions = PredictOptions(),  # noqa: B008  (frozen)
    labels: str | None = None,
    label_options: LabelOptions = LabelOptions(),  # noqa: B008
    write: WriteOptions = WriteOptions(),  # noqa: B008
    executor: ExecutorOptions = ExecutorOptions(),  # noqa: B008
    overwrite: bool = False,
    keep_shards: bool = False,
) -> str:
    """Predict `source` with `model` (bundle folder or `models:/name@alias`) into `out/<stem>/`.

    The same steps, options and bytes as `maskbridge predict`. A run that was killed and is started again goes on from
    its finished shards, with the model version it began with, and writes one folder. With `keep_shards` the shards
    stay in `out/.shards`, and a later run of the same plan finds them.
    """
    from pipelines.batching import settle_batch
    from pipelines.prediction import check_room, written_by_the_run
    from pipelines.tracked import predict_tracked
    from pipelines.work_folder import held

    begin()
    watch, version = Stopwatch(), pinned(model)
    with watch.stage("plan"):
        planned = executor.settle(plan(source, version, options, labels, label_options, write))
    planned = planned.model_copy(update={"run": root_run(), "reference": model})
    check_room(planned, out)
    key = f"{root_run()}-{planned.key[:16]}"  # resumed, it goes on in its own run of MLflow
    with held(planned, out) as work, predict_tracked(version, planned.stem, key=key) as tracked:
        folder = written_by_the_run(planned, out)
        if folder is None:  # else it was killed after its last file
            with watch.stage("batch"):
                planned = settle_batch(planned, work.path)
            with watch.stage("predict"):
                _predict(planned, work.path, executor)
            folder = Path(finish(planned, str(work.path), out, watch.seconds, overwrite))
        tracked.wrote(folder)
        show_scene(folder, planned.stem)
        if tracked.run_id:
            show_run(tracked.run_id, "scene", planned.stem)
        work.release(discard=not keep_shards)
    return str(folder)


def _predict(plan: ScenePlan, work: Path, executor: ExecutorOptions) -> None:
    """All shards, in tasks."""
    if executor.kind != "serial":
        all_shards(plan, len(plan.shards) - 1, str(work), executor)
        return
    bar = Bar("scene", plan.stem)
    for numbers in _portions(len(plan.shards), work):
        some_shards.submit(plan, numbers[0], numbers[-1], str(work)).result()
        bar.to(numbers[-1] + 1, len(plan.shards))


def _portions(count: int, work: Path) -> Iterator[range]:
    """Which shards make a task. The first is one alone; what it took says how many the others have."""
    from pipelines.shards import shard_seconds

    yield range(1)
    size = portion(count - 1, shard_seconds(0, work))
    for first in range(1, count, size):
        yield range(first, min(first + size, count))


def portion(count: int, seconds: float | None) -> int:
    """How many of `count` shards of so many seconds make a task."""
    by_time = math.ceil(TASK_S / max(seconds, 1e-3)) if seconds is not None else 1
    return max(1, min(by_time, count), math.ceil(count / (MOST_TASKS - 1)))


def shard_states(flow_run: UUID, folder: Path, timeout_s: float = 60.0) -> list[str]:
    """State names of the task runs behind `folder` that had shards, in their order: `Computed` or `Found`.

    Waits until Prefect has recorded them all, which can be seconds after the flow's end.
    """
    shards = json.loads((folder / "run.json").read_text())["shards"]
    deadline = time.monotonic() + timeout_s
    while True:
        runs = {run.name: run for run in task_runs(flow_run)}
        mine = sorted(
            (int(named["first"]), int(named["last"]), run.state)
            for name, run in runs.items()
            if (named := SHARDS.fullmatch(name))
        )
        seen = sum(last + 1 - first for first, last, _ in mine)
        if seen == shards and all(state is not None and state.is_final() for *_, state in mine):
            return [str(state.name) for *_, state in mine if state is not None]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{seen} of {shards} shards of {flow_run} are recorded after {timeout_s:.0f} s")
        time.sleep(POLL_S)
