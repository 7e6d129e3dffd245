"""run.json: what was run, on what, with which versions, how long, how large, and the hashes of what came out."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.provenance import versions
from pipelines.sinks.folder import atomic_write, sha256

if TYPE_CHECKING:  # training takes the stopwatch and the versions from here, and needs no scene
    from pipelines.assembly import Assembled
    from pipelines.scene import ScenePlan


@dataclass
class Stopwatch:
    """Seconds per named stage, in the order they ran. `speed`: what a scene's run says of batch and reading."""

    seconds: dict[str, float] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


def write_manifest(
    path: Path, plan: ScenePlan, source: Any, scene: Assembled, watch: Stopwatch, notes: list[str], lost_pixels: int
) -> None:
    """Write run.json beside the outputs it hashes; it is the last file of a scene's folder.

    `lost_pixels`: pixels that could not be read; the command line makes an exit code of it.
    """
    crs = source.geometry.crs
    manifest = {
        "version": version("maskbridge"),
        "model": {"name": plan.reference, "version": plan.model_version, "sha256": plan.model_sha256},
        "source": {
            "name": plan.name,
            "sha256": plan.source_sha256,
            "shape": list(plan.shape),
            "crs": None if crs is None else crs.to_string(),
        },
        "shards": len(plan.shards),
        "threads": plan.threads,
        "parameters": plan.settled.model_dump(mode="json"),
        "timings_s": watch.seconds,
        "speed": watch.speed,
        "peak_rss_bytes": peak_rss_bytes(),
        "objects": len(scene.objects),
        "ambiguous_links": scene.ambiguous_links,
        "lost_pixels": lost_pixels,
        "outputs": {p.name: sha256(p) for p in sorted(path.parent.iterdir()) if p.is_file()},
        "warnings": notes,
        "versions": versions(),
        "host": {
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "run": plan.run,
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(manifest, indent=2) + "\n")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
