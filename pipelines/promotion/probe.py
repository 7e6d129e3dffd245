"""One measurement in a process of its own: how long a bundle takes for a piece of ground, and how much memory."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.assembly import predict_in_memory
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import PredictOptions
from pipelines.predictor import Predictor
from pipelines.promotion.outputs import settled
from pipelines.sources import open_for

REPEATS = 2  # the first also warms up


def probe(
    pipe: Any, bundle: str, path: Any, window: tuple[tuple[int, int], ...], machine: PredictOptions, threads: int
) -> None:
    """Send `("cost", (seconds, peak bytes above the start))`, or `("error", what)`."""
    try:
        torch.set_num_threads(threads)
        pipe.send(("cost", _cost(bundle, path, window, machine)))
    except Exception:  # noqa: BLE001 - sent to the parent, which raises it
        pipe.send(("error", traceback.format_exc(limit=-3)))
    finally:
        pipe.close()


def _cost(folder: str, path: Any, window: tuple[tuple[int, int], ...], machine: PredictOptions) -> tuple[float, int]:
    idle = _status("VmRSS")
    best = float("inf")
    with _work(load_bundle(folder), path, window, machine) as (run, on_gpu):
        for _ in range(REPEATS):
            started = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else max(0, _status("VmHWM") - idle)
    return best, peak


@contextmanager
def _work(
    bundle: Bundle, path: Any, window: tuple[tuple[int, int], ...], machine: PredictOptions
) -> Iterator[tuple[Callable[[], Any], bool]]:
    """What is timed, and whether it runs on a GPU."""
    if bundle.adapter.volume is None:
        predictor = Predictor(bundle.build(), bundle.adapter, settled(bundle, machine))
        with open_for(path, bundle.adapter) as source:
            view = source.view(tuple(slice(*part) for part in window))
            yield lambda: predict_in_memory(view, predictor, bundle.thresholds), predictor.device.type == "cuda"
        return
    from pipelines.promotion.volumes.gate import volume_options
    from pipelines.volumes.prediction import VolumeModel, VolumePredictor
    from pipelines.volumes.source import open_volume

    model = VolumeModel(bundle.build(), bundle.adapter, bundle.thresholds, task=bundle.provenance.get("task"))
    volumes = VolumePredictor(model, volume_options(machine))
    with open_volume(path, bundle.adapter.channels, rule=bundle.adapter.volume.series) as study:
        yield lambda: volumes(study), volumes.predictor.device.type == "cuda"


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; a fork's own peak, which getrusage's maximum is not."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
