"""What every committed result says of itself: command, revision, config's hash, machine, versions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.provenance import git_revision, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"


def write_result(name: str, config: Path | None, values: dict[str, Any]) -> Path:
    """Write `results/<name>.json`; with `config`, its path and hash go along, and a test compares them."""
    record: dict[str, Any] = {
        "command": f"python -m benchmarks {name}",
        "revision": git_revision(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
    }
    if config is not None:
        record["config"] = {"path": str(config.relative_to(ROOT)), "sha256": config_hash(config)}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**record, **values}, indent=2) + "\n")
    return path


def config_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def machine() -> str:
    """Processor and cores, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"
