"""A batch of CT or MRI studies as one Prefect run: a task is a shard of a few studies.

A study that fails does not stop the others: the run ends as `Partial`, and the next one does only what is missing. No
name of a study or a patient is given to Prefect: the run's parameter is the folder that holds them, tasks bear numbers,
and results, which are folders named by hashes, are counted and not stored.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.runs import begin, is_bad_luck, pinned, root_run, sweep_after
from pipelines.volumes.options import VolumeOptions

if TYPE_CHECKING:
    from pipelines.volumes.prediction import VolumePredictor
    from pipelines.volumes.studies import StudyRow


@task(name="plan-studies", cache_policy=NO_CACHE)
def plan(studies: str, shard: int) -> list[list[str]]:
    """The studies of a folder, or of a list (a path a line), in shards."""
    found = studies_of(studies)
    return [found[start : start + shard] for start in range(0, len(found), shard)]


def studies_of(studies: str) -> list[str]:
    """The studies of a folder, or of a text file with a path a line, relative to the file."""
    from adapters.errors import InputError
    from pipelines.volumes.studies import studies_in

    where = Path(studies)
    if where.is_dir():
        return [str(path) for path in studies_in(where)]
    try:
        lines = [line.strip() for line in where.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{studies}: expected a folder of studies, or a text file with a path a line") from error
    found = [str(where.parent / line) for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(f"{studies}: names no study")
    return found


@task(
    name="predict-studies",
    task_run_name="predict-studies-{number}",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=is_bad_luck,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def shard_task(
    number: int, first: int, paths: list[str], model: str, out: str, options: VolumeOptions, overwrite: bool
) -> State[list[StudyRow]]:
    """Completed as `Computed`, as `Found` where every study was there already, or as `Partial` where one failed."""
    from pipelines.volumes.studies import BatchRules, predict_studies

    rules = BatchRules(overwrite=overwrite, summary=False, first=first)
    rows = list(predict_studies(list(paths), _predictor(model, options), out, rules=rules).rows)
    failed = sum(row.status == "failed" for row in rows)
    if failed:
        return Completed(name="Partial", message=f"{failed} of {len(rows)} studies failed", data=rows)
    return Completed(name="Computed" if any(row.status == "done" for row in rows) else "Found", data=rows)


@lru_cache(maxsize=1)
def _predictor(model: str, options: VolumeOptions) -> VolumePredictor:
    """The model, loaded once a run."""
    from pipelines.volumes.studies import volume_predictor

    return volume_predictor(model, options)


@task(name="finish-studies", cache_policy=NO_CACHE)
def finish(rows: list[StudyRow], out: str) -> dict[str, int]:
    """Write `out/summary.csv`; how many studies were done, were there, and failed."""
    from pipelines.volumes.studies import Batch, write_summary

    write_summary(Path(out) / "summary.csv", Batch(tuple(rows)))
    return {status: sum(row.status == status for row in rows) for status in ("done", "there", "failed")}


# (Prefect types its own runner too narrowly for its own parameter.)
RUNNER: Any = ThreadPoolTaskRunner(max_workers=1)


# One shard at a time: the model's own threads fill the machine, and two models would only share it.
@flow(
    name="segment-studies",
    flow_run_name="segment-studies",
    task_runner=RUNNER,
    on_cancellation=[sweep_after],
    on_crashed=[sweep_after],
)
def segment_studies(
    studies: str,
    model: str,
    out: str,
    options: VolumeOptions = VolumeOptions(),  # noqa: B008  (frozen)
    shard: int = 8,
    overwrite: bool = False,
) -> State[dict[str, int]]:
    """Predict every study in the folder `studies` as `maskbridge predict MODEL STUDY … --out OUT` does.

    `studies` is a folder whose entries are studies (NIfTI files, DICOM folders), or a text file with a path a line.
    `shard` studies make a task. The result counts the studies that are `done`, that were `there`, and that `failed`;
    `out/summary.csv` has a line each. With failures the run is `Partial`.
    """
    from pipelines.tracked import predict_tracked

    begin()
    model = pinned(model)
    shards = plan(studies, shard)
    futures = []
    for number, paths in enumerate(shards):
        futures.append(shard_task.submit(number, number * shard + 1, paths, model, out, options, overwrite))
    with predict_tracked(model, Path(studies).name, key=root_run()) as tracked:
        rows: list[Any] = [row for future in futures for row in future.result()]
        for row in rows:
            if row.status == "done":
                tracked.wrote(Path(out) / row.folder)
    counts = finish(rows, out)
    if counts["failed"]:
        return Completed(name="Partial", message=f"{counts['failed']} of {len(rows)} studies failed", data=counts)
    return Completed(data=counts)
