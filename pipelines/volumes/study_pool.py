"""Studies in processes of this machine: each worker loads the model once and takes one study after the other.

Reading, resampling and writing use one processor, the network uses several: two workers keep the machine busier than
one. A worker that is killed (for its memory, say) costs the study it was at, which is tried once more.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.bundle import REGISTRY
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.source import VolumePath
from pipelines.volumes.studies import Batch, BatchRules, StudyRow, predict_one, volume_predictor, write_summary
from pipelines.worker_pool import Worker, answering, end, follow_the_parent, give, start

log = logging.getLogger(__name__)
ATTEMPTS = 2  # at a study whose worker dies
HOUSES = ("adapters", "maskformer", "pipelines")  # whose log lines hold no name of a study

Answer = tuple[StudyRow, list[str]]


@dataclass(frozen=True)
class Processes:
    """How many workers; `threads`: processors of a forward pass in each, by default all (as without workers)."""

    workers: int = 2
    threads: int | None = None


@dataclass(frozen=True)
class _Work:
    """What a worker is told once."""

    paths: Sequence[VolumePath]
    model: str
    out: Path
    options: VolumeOptions
    rules: BatchRules
    threads: int | None
    level: int


def predict_in_processes(
    paths: Sequence[VolumePath],
    model: str | Path,
    out: str | Path,
    options: VolumeOptions,
    rules: BatchRules,
    processes: Processes,
) -> Batch:
    """`predict_studies` with several workers: the same files, the rows in the order of `paths`.

    model: a reference; an alias is looked up once, so that all workers load one version. InputError where it cannot be
    loaded. `rules.on_progress` is told of studies, `rules.on_study` in the order in which they come to their end.
    """
    quiet = replace(rules, on_progress=None, on_study=None, summary=False)
    level = logging.getLogger(HOUSES[-1]).getEffectiveLevel()
    work = _Work(tuple(paths), _pinned(str(model)), Path(out), options, quiet, processes.threads, level)
    rows: dict[int, StudyRow] = {}
    waiting, deaths = deque(range(len(paths))), Counter[int]()
    crew = [start(_serve, work) for _ in range(min(processes.workers, len(paths)))]
    if rules.on_progress:
        rules.on_progress("studies", 0, len(paths))
    try:
        while len(rows) < len(paths):
            for worker in crew:
                if worker.number is None and waiting:
                    give(worker, waiting.popleft())
            for worker in answering(crew):
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    code, number = end(worker), worker.number
                    crew[crew.index(worker)] = start(_serve, work)
                    if number is None:
                        continue  # it died idle
                    deaths[number] += 1
                    if deaths[number] < ATTEMPTS:
                        log.warning("study %d is tried again: its process died", rules.first + number)
                        waiting.appendleft(number)
                        continue
                    kind, value = "done", _killed(rules.first + number, code)
                if kind == "log":
                    logging.getLogger(value[0]).log(value[1], value[2])
                elif kind == "input":
                    raise InputError(value)
                else:
                    _through(worker, value, rows, rules, len(paths))
    finally:
        _dismiss(crew)
        batch = Batch(tuple(rows[number] for number in sorted(rows)))
        if rules.summary and rows:
            write_summary(Path(out) / "summary.csv", batch)
    return batch


def _through(worker: Worker, answer: Answer, rows: dict[int, StudyRow], rules: BatchRules, total: int) -> None:
    """A study came to its end."""
    row, notes = answer
    rows[row.study] = row
    worker.number = None
    log.info("study %d: %s %s", row.study, row.status, row.reason or row.folder)
    if rules.on_study:
        rules.on_study(row, notes)
    if rules.on_progress:
        rules.on_progress("studies", len(rows), total)


def _killed(study: int, code: int | None) -> Answer:
    what = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    reason = f"its process died {ATTEMPTS} times ({what}), perhaps for its memory: fewer workers need less"
    return StudyRow(study, "failed", reason=reason), []


def _dismiss(crew: Sequence[Worker]) -> None:
    for worker in crew:
        worker.pipe.close()  # an idle one ends by itself
        if worker.number is not None:
            worker.process.terminate()
    for worker in crew:
        end(worker)


def _pinned(model: str) -> str:
    """The version an alias stands for now."""
    if not model.startswith(REGISTRY):
        return model
    from pipelines.registry import resolve

    return resolve(model).reference


def _serve(pipe: Any, work: _Work) -> None:
    """A worker's life: places in the list of paths come in, answers go out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a Ctrl-C all processes hear; the parent decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=follow_the_parent, daemon=True).start()
    for house in HOUSES:
        logging.getLogger(house).setLevel(work.level)
        logging.getLogger(house).addHandler(_ToParent(pipe))
    predictor = None
    while True:
        try:
            place = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if predictor is None:
                predictor = _predictor(work)
        except InputError as error:  # the model's, or the options'; a study's own is in its row
            pipe.send(("input", str(error)))
            return
        pipe.send(("done", predict_one(work.paths[place], predictor, work.out, work.rules.first + place, work.rules)))


def _predictor(work: _Work) -> Any:
    import torch

    if work.threads:
        torch.set_num_threads(work.threads)
    return volume_predictor(work.model, work.options)


def _leave(number: int, frame: Any) -> None:
    """End as if by itself, so that what was unpacked and half written is removed."""
    sys.exit(128 + number)


class _ToParent(logging.Handler):
    """Log lines go to the parent, which knows where the user wants them."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the parent is gone, and nobody is left to be told
            self.pipe.send(("log", (record.name, record.levelno, record.getMessage())))
