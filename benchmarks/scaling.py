"""One scene on one and on two workers: `python -m benchmarks scaling`. What docs/scale.md plans with.

A scene of real buildings (else noise of its size) through a small trained-size model, one thread a worker, by every
executor; then what comes after the shards, which is one process' work. Rates are of tiles and pixels a second.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, write_result
from pipelines.bundle import save_bundle
from pipelines.config import PredictOptions
from pipelines.executors import ExecutorOptions, run_shards
from pipelines.prediction import finish_scene
from pipelines.scene import ScenePlan, plan_scene
from pipelines.sinks.folder import sha256
from pipelines.work_folder import work_folder

SCENE = "satellite/buildings/scene.tif"  # 2048 × 3072 px, RGB
OPTIONS = PredictOptions(
    tile=512, overlap=64, score=0.5, device="cpu", precision="fp32", shard_tiles=7, task="instance"
)
PRESET = "maskformer-efficientnet-lite0-small"


def scene(folder: Path) -> Path:
    """The shared data's, or noise of its size."""
    shared = Path(os.environ.get("MASKBRIDGE_SHARED_DATA", ROOT.parent / "shared" / "data")) / SCENE
    if shared.exists():
        return shared
    import numpy as np
    import rasterio

    with rasterio.open(folder / "scene.tif", "w", "GTiff", 3072, 2048, 3, dtype="uint8", crs="EPSG:3857") as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 2048, 3072)).astype(np.uint8))
    return folder / "scene.tif"


def bundle(folder: Path, classes: int = 4) -> Path:
    """A model of `classes` things with random weights: what it finds is nothing, what it costs is real."""
    import torch

    from adapters.base import DomainAdapter
    from adapters.channels import Channel, ChannelSet
    from adapters.classes import Class, ClassSet
    from maskformer.config import ModelConfig
    from maskformer.model import build_model

    channels = ChannelSet(tuple(Channel(name, (n,)) for n, name in enumerate(("red", "green", "blue"), start=1)))
    adapter = DomainAdapter("scaling", channels, ClassSet(tuple(Class(f"class {n}") for n in range(classes))))
    torch.manual_seed(0)
    return save_bundle(folder, build_model(ModelConfig.from_preset(PRESET, num_classes=classes)), adapter)


def cpu_seconds() -> float:
    """Of this process and of those it has ended: what a busy neighbour does not change much."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in spent)


def one(plan: ScenePlan, out: Path, options: ExecutorOptions) -> dict[str, Any]:
    """All shards by one executor."""
    work = work_folder(plan, out)
    started, before = time.perf_counter(), cpu_seconds()
    times: list[float] = []
    run_shards(plan, work, options, lambda *_: times.append(time.perf_counter() - started))
    seconds = time.perf_counter() - started
    workers = options.workers or 1
    # From the first shard's end on: without the start of processes and the model's loading, once a worker a run.
    steady = (len(times) - workers) / max(times[-1] - times[workers - 1], 1e-9) if len(times) > workers else None
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds() - before, 1),
        "tiles_per_s": round(len(plan.grid) / seconds, 3),
        "steady_shards_per_s": None if steady is None else round(steady, 4),
        "shard_bytes": sum(p.stat().st_size for p in work.glob("shard-*.npz")),
        "shards_sha256": [sha256(p) for p in sorted(work.glob("shard-*.npz"))],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = ExecutorOptions(threads=1).settle(plan_scene(scene(folder), bundle(folder / "bundle"), OPTIONS))
        rows: dict[str, Any] = {}
        load = os.getloadavg()[0]  # of one that is idle it is near 0; times of a busy machine say little
        for kind, workers in (("serial", 1), ("process", 1), ("process", 2), ("dask", 1), ("dask", 2)):
            options = ExecutorOptions(kind=kind, workers=workers, threads=1)
            rows[f"{kind} {workers}"] = one(plan, folder / f"{kind}-{workers}", options)
        digests = {tuple(row.pop("shards_sha256")) for row in rows.values()}
        assert len(digests) == 1, "every executor gives the same bytes"
        started = time.perf_counter()
        out = finish_scene(plan, work_folder(plan, folder / "serial-1"), folder / "out")
        finish = time.perf_counter() - started
        height, width = plan.shape
        write_result(
            "scaling",
            None,
            {
                "preset": PRESET,
                "scene": {"pixels": height * width, "tiles": len(plan.grid), "shards": len(plan.shards)},
                "classes": 4,
                "threads_per_worker": 1,
                "executors": rows,
                "speedup": {
                    kind: round(rows[f"{kind} 1"]["seconds"] / rows[f"{kind} 2"]["seconds"], 2)
                    for kind in ("process", "dask")
                },
                "load_before": load,
                "finish": {
                    "seconds": round(finish, 1),
                    "megapixels_per_s": round(height * width / finish / 1e6, 2),
                    "output_bytes": sum(p.stat().st_size for p in out.iterdir()),
                },
            },
        )
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
