"""One measurement in a process of its own: how long a bundle takes for a piece of ground, and how much memory."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import torch

from pipelines.assembly import predict_in_memory
from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions
from pipelines.predictor import Predictor
from pipelines.promotion.outputs import settled
from pipelines.sources import open_for

REPEATS = 2  # the first also warms up


def probe(
    pipe: Any, bundle: str, path: str, window: tuple[tuple[int, int], ...], machine: PredictOptions, threads: int
) -> None:
    """Send `("cost", (seconds, peak bytes above the start))`, or `("error", what)`."""
    try:
        torch.set_num_threads(threads)
        pipe.send(("cost", _cost(bundle, path, window, machine)))
    except Exception:  # noqa: BLE001 - sent to the parent, which raises it
        pipe.send(("error", traceback.format_exc(limit=-3)))
    finally:
        pipe.close()


def _cost(folder: str, path: str, window: tuple[tuple[int, int], ...], machine: PredictOptions) -> tuple[float, int]:
    idle = _status("VmRSS")
    bundle = load_bundle(folder)
    predictor = Predictor(bundle.build(), bundle.adapter, settled(bundle, machine))
    on_gpu = predictor.device.type == "cuda"
    best = float("inf")
    with open_for(path, bundle.adapter) as source:
        view = source.view(tuple(slice(*part) for part in window))
        for _ in range(REPEATS):
            started = time.perf_counter()
            predict_in_memory(view, predictor, bundle.thresholds)
            if on_gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else max(0, _status("VmHWM") - idle)
    return best, peak


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; a fork's own peak, which getrusage's maximum is not."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
