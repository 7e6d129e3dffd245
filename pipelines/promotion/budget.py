"""Rule `budget`: seconds and peak memory for the same ground within the policy's factors of the champion's.

Each measurement is a process of its own, forked from a small server that has imported what is needed and has computed
nothing, so neither model finds the other's memory or warm caches. The two models take turns; of the turns the best
counts, because whatever else runs on the machine only ever adds.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.promotion.policy import Policy, Verdict
from pipelines.promotion.probe import probe

log = logging.getLogger(__name__)

MORE_TURNS = 2  # where the candidate is over its budget: a busy moment is no fault of the model's
PATIENCE_S = 1800


@dataclass(frozen=True)
class Ground:
    """What is predicted: a window of a scene; or a study (`pipelines.volumes.source.VolumePath`), then all of it."""

    path: Any
    window: tuple[tuple[int, int], ...]

    @property
    def megapixels(self) -> float:
        """Or megavoxels."""
        return math.prod(stop - start for start, stop in self.window) / 1e6


@dataclass(frozen=True)
class Cost:
    """Of one model for one piece of ground: the best seconds, and the least peak above an idle process, bytes."""

    seconds: float
    peak_bytes: int

    def better(self, other: Cost) -> Cost:
        return Cost(min(self.seconds, other.seconds), min(self.peak_bytes, other.peak_bytes))


def measure(candidate: Bundle, champion: Bundle, ground: Ground, machine: PredictOptions) -> tuple[Cost, Cost]:
    """The cost of both: the champion before and after the candidate, for a machine that gets busier or calmer."""
    before = _one(champion, ground, machine)
    mine = _one(candidate, ground, machine)
    return mine, before.better(_one(champion, ground, machine))


def check_budget(
    candidate: Bundle, champion: Bundle | None, ground: Ground, machine: PredictOptions, policy: Policy
) -> Verdict:
    """The candidate's cost within the policy of the champion's; without a champion it is measured and recorded."""
    if champion is None:
        mine = _one(candidate, ground, machine)
        return Verdict("budget", True, _shown(mine, ground), _numbers(mine, None, ground))
    mine, theirs = measure(candidate, champion, ground, machine)
    for _ in range(MORE_TURNS):
        if not _faults(mine, theirs, policy):
            break
        again = measure(candidate, champion, ground, machine)
        mine, theirs = mine.better(again[0]), theirs.better(again[1])
    faults = _faults(mine, theirs, policy)
    says = "; ".join(faults) or f"{_shown(mine, ground)}; the champion {_shown(theirs, ground)}"
    return Verdict("budget", not faults, says, _numbers(mine, theirs, ground))


def _faults(mine: Cost, theirs: Cost, policy: Policy) -> list[str]:
    faults = []
    if mine.seconds > policy.slower * theirs.seconds:
        times = mine.seconds / theirs.seconds
        faults.append(
            f"slower: {mine.seconds:.2f} s, the champion {theirs.seconds:.2f} s ({times:.2f} times, allowed "
            f"{policy.slower:g})"
        )
    allowed = policy.fatter * theirs.peak_bytes + policy.memory_slack_mb * 2**20
    if mine.peak_bytes > allowed:
        faults.append(
            f"fatter: peak {_mib(mine.peak_bytes)} MiB, the champion {_mib(theirs.peak_bytes)}, allowed {_mib(allowed)}"
        )
    return faults


def _one(bundle: Bundle, ground: Ground, machine: PredictOptions) -> Cost:
    """Measure in a fresh process."""
    mine, its = _server().Pipe(duplex=False)
    arguments = (its, str(bundle.folder), ground.path, ground.window, machine, torch.get_num_threads())
    process = _server().Process(target=probe, args=arguments, name="maskbridge-probe", daemon=True)
    process.start()
    its.close()
    try:
        if not mine.poll(PATIENCE_S):
            raise RuntimeError(f"{bundle.folder}: no measurement after {PATIENCE_S} s")
        kind, value = mine.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{bundle.folder}: the measuring process died with exit code {process.exitcode}") from None
    finally:
        mine.close()
        if process.is_alive():
            process.join(5)
            process.kill()
    if kind == "error":
        raise RuntimeError(f"{bundle.folder}: could not be measured: {value}")
    log.debug("%s: %.2f s, %d bytes", bundle.folder, *value)
    return Cost(*value)


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.promotion.warm"])
    return context


def _shown(cost: Cost, ground: Ground) -> str:
    what = "megapixels" if len(ground.window) == 2 else "megavoxels"
    return f"{ground.megapixels / cost.seconds:.2f} {what} a second, peak {_mib(cost.peak_bytes)} MiB"


def _mib(size: float) -> int:
    return round(size / 2**20)


def _numbers(mine: Cost, theirs: Cost | None, ground: Ground) -> dict[str, Any]:
    numbers: dict[str, Any] = {"megapixels": ground.megapixels}
    for name, cost in (("candidate", mine), ("champion", theirs)):
        if cost is not None:
            numbers[name] = {"seconds": round(cost.seconds, 4), "peak_bytes": cost.peak_bytes}
    return numbers
