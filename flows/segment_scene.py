"""One scene as one Prefect run: plan → shards, each a task run → stitch, blend and write.

A shard is a few rows of tiles: seconds to minutes of work, so that Prefect's overhead of milliseconds a task does
not count and a retry costs little. Arrays never pass between tasks; shards lie on disk, hashed, and one that is
there already is found instead of computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.runtime import final_task_runs
from pipelines.annotations.options import LabelOptions
from pipelines.config import PredictOptions, WriteOptions
from pipelines.manifest import Stopwatch
from pipelines.scene import ScenePlan


@task(name="plan-scene", cache_policy=NO_CACHE)
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


@task(
    name="predict-shard",
    task_run_name="predict-shard-{number}",
    retries=2,
    retry_delay_seconds=[2, 10],
    cache_policy=NO_CACHE,
)
def shard(plan: ScenePlan, number: int, work: str) -> State[bool]:
    """Completed as `Computed`, or as `Found` where the shard's file was there and whole."""
    from pipelines.shards import predict_shard

    computed = predict_shard(plan, number, Path(work))
    return Completed(name="Computed" if computed else "Found", data=computed)


@task(name="finish-scene", cache_policy=NO_CACHE)
def finish(plan: ScenePlan, work: str, out: str, seconds: dict[str, float], overwrite: bool) -> str:
    from pipelines.prediction import finish_scene

    return str(finish_scene(plan, Path(work), Path(out), Stopwatch(seconds), overwrite=overwrite))


def _run_name() -> str:
    """`segment-<scene>`: the path would fill the page."""
    return f"segment-{Path(runtime.flow_run.parameters['source']).stem}"


# (Prefect types its own runner too narrowly for its own parameter.)
RUNNER: Any = ThreadPoolTaskRunner(max_workers=1)


# One shard at a time: the model's own threads fill the machine, and two models would only share it.
@flow(name="segment-scene", flow_run_name=_run_name, task_runner=RUNNER)
def segment_scene(
    source: str,
    model: str,
    out: str,
    options: PredictOptions = PredictOptions(),  # noqa: B008  (frozen)
    labels: str | None = None,
    label_options: LabelOptions = LabelOptions(),  # noqa: B008
    write: WriteOptions = WriteOptions(),  # noqa: B008
    overwrite: bool = False,
    keep_shards: bool = False,
) -> str:
    """Predict `source` with `model` (bundle folder or `models:/name@alias`) into `out/<stem>/`.

    The same steps, options and bytes as `maskbridge predict`. With `keep_shards` the shards stay in
    `out/.shards`, and a later run of the same plan finds them.
    """
    from pipelines.prediction import discard_shards, work_folder

    watch = Stopwatch()
    with watch.stage("plan"):
        planned = plan(source, model, options, labels, label_options, write)
    work = work_folder(planned, out)
    with watch.stage("predict"):
        futures = [shard.submit(planned, number, str(work)) for number in range(len(planned.shards))]
        for future in futures:
            future.result()
    folder = finish(planned, str(work), out, watch.seconds, overwrite)
    if not keep_shards:
        discard_shards(work)
    return folder


def shard_states(flow_run: UUID, folder: Path) -> list[str]:
    """State names of the shard task runs behind `folder`, by shard number: `Computed` or `Found`.

    Waits until Prefect has recorded them all, which can be seconds after the flow's end.
    """
    shards = json.loads((folder / "run.json").read_text())["shards"]
    runs = final_task_runs(flow_run, shards + 2)  # one to plan, one to finish
    mine = [run for run in runs if run.name.startswith("predict-shard-")]
    return [run.state_name or "" for run in sorted(mine, key=lambda run: int(run.name.rpartition("-")[2]))]
