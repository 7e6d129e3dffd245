"""Shards in processes of this machine: each worker loads the model once and takes one shard after the other.

The standard library's process pool gives up, and kills all its workers, when one of them is killed (by the kernel, for
its memory, say). Here such a worker is replaced, and only the shard it was at is done again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.scene import ScenePlan

log = logging.getLogger(__name__)

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with torch's and Prefect's threads may hang
ATTEMPTS = 3
STOP_S = 5.0  # for a worker to end by itself


@dataclass
class Worker:
    """A process, the pipe to it, and what it is at: a shard, a study."""

    process: Any
    pipe: Any
    number: int | None = None


def run_in_processes(
    plan: ScenePlan, work: Path, numbers: Sequence[int], workers: int, on_shard: Callable[[int, bool], None]
) -> None:
    """Compute shards `numbers` of `plan` into `work` with `workers` processes.

    InputError from any of them ends the run at once; RuntimeError where a shard failed, or killed its worker,
    `ATTEMPTS` times.
    """
    waiting, failures = deque(numbers), Counter[int]()
    left = len(numbers)
    crew = [start(_serve, plan, work) for _ in range(min(workers, left))]
    try:
        while left:
            for worker in crew:
                if worker.number is None and waiting:
                    give(worker, waiting.popleft())
            for worker in answering(crew):
                number = worker.number
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    crew[crew.index(worker)] = start(_serve, plan, work)
                    kind, value = "error", f"its worker died with exit code {end(worker)}"
                if number is None:
                    continue  # it died idle
                worker.number = None
                if kind == "done":
                    left -= 1
                    on_shard(number, value)
                    continue
                if kind == "input":
                    raise InputError(value)
                failures[number] += 1
                if failures[number] == ATTEMPTS:
                    raise RuntimeError(f"{plan.stem}: shard {number} failed {ATTEMPTS} times: {value}")
                log.warning("%s: shard %d is tried again: %s", plan.stem, number, value)
                waiting.appendleft(number)
    finally:
        for worker in crew:
            worker.pipe.close()  # an idle one ends by itself
            if worker.number is not None:
                worker.process.terminate()
        for worker in crew:
            end(worker)


def start(serve: Callable[..., None], *arguments: Any) -> Worker:
    """A process that runs `serve(pipe, *arguments)`."""
    mine, its = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(its, *arguments), daemon=True, name="maskbridge-worker")
    process.start()
    its.close()  # or its end would never be seen
    return Worker(process, mine)


def give(worker: Worker, number: int) -> None:
    """Send it the number of what to do next."""
    worker.number = number
    try:
        worker.pipe.send(number)
    except (BrokenPipeError, ConnectionResetError):
        log.debug("worker %s died idle; its pipe says so to the next reader", worker.process.pid)


def answering(crew: Sequence[Worker]) -> list[Worker]:
    """Workers with an answer, or dead; waits for the first."""
    ready = connection.wait([worker.pipe for worker in crew])
    return [worker for worker in crew if worker.pipe in ready]


def end(worker: Worker) -> int | None:
    """Wait for its end, kill it where that does not come; its exit code."""
    worker.process.join(STOP_S)
    if worker.process.exitcode is None:
        worker.process.kill()
        worker.process.join()
    return worker.process.exitcode


def _serve(pipe: Any, plan: ScenePlan, work: Path) -> None:
    """A worker's life: shard numbers come in, answers go out, until the pipe closes."""
    from pipelines.shards import predict_shard, warm_up

    threading.Thread(target=follow_the_parent, daemon=True).start()
    warm = False
    while True:
        try:
            number = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if not warm:
                warm_up(plan)
                warm = True
            pipe.send(("done", predict_shard(plan, number, work)))
        except InputError as error:
            pipe.send(("input", str(error)))
        except Exception:  # noqa: BLE001 - sent to the parent, which decides
            pipe.send(("error", traceback.format_exc(limit=-3)))


def follow_the_parent() -> None:
    """In a thread of a worker: end with the parent, however it ends: nobody would take the answers any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
