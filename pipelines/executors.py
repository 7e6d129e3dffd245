"""Where a scene's shards are computed: one after the other, in processes of this machine, or on a Dask cluster.

All three call the same function, `shards.predict_shard`, with the same plan, and leave the same files: the choice moves
no byte. A shard that fails is tried again, bad input is not; a worker that is killed costs the shard it was at.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipelines.config import Strict
from pipelines.scene import ScenePlan

log = logging.getLogger(__name__)

OnShard = Callable[[int, bool], None]  # (number, whether it was computed; else found)
OnTile = Callable[[], None]
ATTEMPTS = 3  # at one shard, before its error is the run's


class ExecutorOptions(Strict):
    """Who computes the shards. `threads` is part of the plan: equal threads give equal bytes everywhere."""

    kind: Literal["serial", "process", "dask"] = "serial"
    workers: int | None = Field(None, gt=0, description="processes; default: processors / threads, at least 2")
    threads: int | None = Field(None, gt=0, description="CPU threads of a forward pass; default: this machine's")
    address: str | None = Field(None, description="dask: the scheduler, tcp://host:8786; default: one on this machine")

    @model_validator(mode="after")
    def _fits(self) -> ExecutorOptions:
        if self.address is not None and self.kind != "dask":
            raise ValueError("an address goes with the dask executor only")
        if self.address is not None and self.workers is not None:
            raise ValueError("give either `workers` or the address of a cluster that has its own")
        if self.kind == "serial" and self.workers not in (None, 1):
            raise ValueError("the serial executor has one worker; `process` and `dask` have several")
        return self

    def settle(self, plan: ScenePlan) -> ScenePlan:
        """The plan with this executor's number of threads."""
        return plan if self.threads is None else plan.model_copy(update={"threads": self.threads})

    def count(self, plan: ScenePlan) -> int:
        """Worker processes on this machine."""
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.workers or max(2, processors // plan.threads)
        if workers * plan.threads > processors and plan.options.device == "cpu":
            log.warning(
                "%d workers of %d threads share %d processors; --threads %d gives each its own",
                *(workers, plan.threads, processors, max(1, processors // workers)),
            )
        return min(workers, len(plan.shards))


def run_shards(
    plan: ScenePlan,
    work: Path,
    options: ExecutorOptions,
    on_shard: OnShard | None = None,
    on_tile: OnTile | None = None,
) -> None:
    """Compute the shards of `plan` that `work` lacks. `on_tile` is called by the serial executor only.

    Raises InputError for bad input at once; RuntimeError where a shard failed `ATTEMPTS` times.
    """
    told = on_shard or (lambda number, computed: None)
    if options.kind == "serial":
        _one_after_the_other(plan, work, told, on_tile)
        return
    left = _without_the_finished(plan, work, told)
    if not left:
        return
    if options.kind == "process":
        from pipelines.worker_pool import run_in_processes

        run_in_processes(plan, work, left, options.count(plan), told)
    else:
        from pipelines.dask_pool import run_on_dask

        run_on_dask(plan, work, left, options, told)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Use `number` CPU threads for forward passes within the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_after_the_other(plan: ScenePlan, work: Path, told: OnShard, on_tile: OnTile | None) -> None:
    from pipelines.shards import predict_shard

    with threads(plan.threads):
        for number in range(len(plan.shards)):
            told(number, predict_shard(plan, number, work, on_tile))


def _without_the_finished(plan: ScenePlan, work: Path, told: OnShard) -> Sequence[int]:
    from pipelines.shards import is_finished

    left = []
    for number in range(len(plan.shards)):
        if is_finished(plan, number, work):
            told(number, False)
        else:
            left.append(number)
    return left
