"""Clocks, memory and operations: what the speed benchmarks have in common."""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import ROOT

THREADS = 2


def alternating(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Run every side once untimed, then all in turn, `rounds` times: median and best seconds of each.

    In turn, because this machine's speed drifts by a fifth within a minute; both sides then see the same minutes.
    """
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {
        name: {"median_s": round(statistics.median(each), 4), "best_s": round(min(each), 4)}
        for name, each in seconds.items()
    }


def gigaflops(run: Callable[[], object]) -> float:
    """Operations (2 per multiply-add) of matrix products, convolutions and attention in one run, in 10^9.

    Those that oneDNN's fused linear layers do are counted too, which the counter does not know by itself.
    """
    fused = {torch.ops.mkldnn._linear_pointwise: _linear_operations}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        run()
    return counter.get_total_flops() / 1e9


def _linear_operations(x: torch.Size, weight: torch.Size, *rest: Any, **named: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def matmul_peak(dtype: torch.dtype, sizes: tuple[int, ...] = (512, 1024, 2048, 4096), repeats: int = 5) -> float:
    """The best 10^9 operations a second of square products n x n x n over `sizes`, by PyTorch's product or oneDNN's.

    (On AMD's processors PyTorch's float32 product, which is MKL's, is the slower one.)
    """
    best = 0.0
    for n in sizes:
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        for product in (lambda a=a, b=b: a @ b, lambda a=a, b=b: _through_onednn(a, b)):
            product()
            for _ in range(repeats):
                began = time.perf_counter()
                product()
                best = max(best, 2 * n**3 / (time.perf_counter() - began) / 1e9)
    return best


@torch.no_grad()
def _through_onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def peak_rss_mib() -> float:
    """The largest resident memory this process has had, MiB.

    On Linux from /proc: getrusage would give a child its parent's peak, which fork hands on and exec keeps.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def in_fresh_process(module: str, *arguments: str) -> dict[str, Any]:
    """`python -m MODULE ARGUMENTS`: the JSON on the last line it prints. For memory: a process's peak never falls."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return values
