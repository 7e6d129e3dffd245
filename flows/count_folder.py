"""A folder of pictures as a Prefect run: put on a schedule it sweeps the folder, and counts only what is new.

Records are folders that appear whole, counts.csv is made of them, and one sweep waits for the other, so two at once, or
one that was killed, lose no row and write none twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.artifacts import Bar, show_links, show_table
from flows.runs import begin, is_bad_luck, pinned, sweep_after
from pipelines.config import PredictOptions


@task(
    name="count-pictures",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_bad_luck,
    cache_policy=NO_CACHE,
)
def count_task(model: str, pictures: str, out: str, options: PredictOptions) -> dict[str, Any]:
    from pipelines.picture_runs import pictures_in
    from pipelines.tracked import count_tracked

    if Path(pictures).is_dir() and not pictures_in(Path(pictures)):
        return {"fresh": 0, "pictures": 0, "count": 0, "failed": {}}  # nobody has put one there yet
    bar = Bar("count", pictures)
    run = count_tracked(model, pictures, out, options, on_progress=lambda _, done, total: bar.to(done, total))
    total = sum(record["count"] for record in run.records)
    show_table("count", pictures, [{"what": "pictures", "value": len(run.records)}, {"what": "count", "value": total}])
    show_links("count", pictures, {"report": (run.out / "report.html").absolute().as_uri()})
    return {"fresh": run.fresh, "pictures": len(run.records), "count": total, "failed": run.failed}


def _run_name() -> str:
    """`count-<folder>`: the path would fill the page."""
    return f"count-{Path(runtime.flow_run.parameters['pictures']).name}"


@flow(name="count-folder", flow_run_name=_run_name, on_cancellation=[sweep_after], on_crashed=[sweep_after])
def count_folder(
    model: str,
    pictures: str,
    out: str,
    options: PredictOptions = PredictOptions(),  # noqa: B008  (frozen)
) -> State[dict[str, Any]]:
    """Count the new pictures of a folder as `maskbridge count MODEL PICTURES --out OUT` does.

    The result says how many were `fresh`, how many `pictures` and what `count` there are in all, and which `failed` and
    why; the run is then `Partial`. Every sweep tries those again.
    """
    begin()
    done = count_task(pinned(model), pictures, out, options)
    if done["failed"]:
        first = next(iter(done["failed"].values()))
        return Completed(name="Partial", message=f"{len(done['failed'])} not counted: {first}", data=done)
    return Completed(data=done)
