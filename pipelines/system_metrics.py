"""CPU, memory, disk, network and accelerator while a run goes on, as MLflow's own monitors measure them.

MLflow's thread over them sends by itself and ends at the first failure; here the numbers go to a callback.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

INTERVAL_S = 10.0
VARIABLE = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"  # seconds, as MLflow reads it
PREFIX = "system/"

log = logging.getLogger(__name__)


class Monitor:
    """Calls `take({"system/…": value})` every interval, and once more at `finish`."""

    def __init__(self, take: Callable[[dict[str, float]], None]) -> None:
        self._take = take
        self._monitors = _monitors()
        self._interval = float(os.environ.get(VARIABLE) or INTERVAL_S)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="maskbridge-system-metrics")
        self._thread.start()

    def finish(self) -> None:
        """One last sample, and no more."""
        self._end.set()
        self._thread.join(timeout=5.0)

    def _watch(self) -> None:
        while True:
            last = self._end.wait(self._interval)
            values: dict[str, float] = {}
            for monitor in self._monitors:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self._take({PREFIX + key: value for key, value in values.items()})
            if last:
                return


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        found.append(GPUMonitor())
    except Exception as error:  # noqa: BLE001 - without a GPU or its library it raises what it likes
        log.debug("no accelerator is watched: %s", error)
    return found
