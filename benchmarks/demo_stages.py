"""Where the demo's ten minutes go: runs it in a fresh folder and prints the seconds of every stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, write_result


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "demo", "crowns"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        total = time.monotonic() - began
        values = {"total_s": round(total, 1), **stages(Path(folder) / "demo-output")}
    for name, seconds in values["stages_s"].items():
        print(f"{name:48}{seconds:10.1f} s")
    print(f"{'all of it':48}{total:10.1f} s")
    print(write_result("demo_stages", ROOT / "flows" / "demos" / "crowns.yaml", values))


def stages(output: Path) -> dict[str, Any]:
    """Seconds per stage as the demo recorded them, and the largest memory a scene's run had seen."""
    demo = json.loads((output / "demo.json").read_text())
    runs = [json.loads(path.read_text()) for path in sorted(output.glob("*/run.json"))]
    seconds = dict(demo["stages_s"])
    for run in runs:
        for name, value in run["timings_s"].items():
            seconds[f"{run['source']['name']}: {name}"] = value
    return {"stages_s": seconds, "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs)}


if __name__ == "__main__":
    main()
