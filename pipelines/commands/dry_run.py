"""`maskbridge predict --dry-run`: what a scene would take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pipelines.config import PredictOptions


def foresee(source: str, model: str, out: Path, options: PredictOptions, who: dict[str, Any]) -> None:
    """Print what predicting `source` would take; the time comes from one tile, tried."""
    from pipelines.commands.progress import clock
    from pipelines.executors import ExecutorOptions
    from pipelines.prediction import forecast
    from pipelines.scene import plan_scene

    plan = ExecutorOptions(**who).settle(plan_scene(source, model, options))
    cost = forecast(plan, out)
    settled = plan.options
    height, width = plan.shape
    kept = f", {cost.finished_shards} of {cost.shards} shards are there already" if cost.finished_shards else ""
    typer.echo(
        f"{source} → {out / plan.stem}\n"
        f"  scene    {height} × {width} px\n"
        f"  tiles    {cost.tiles} of {settled.tile} px, overlap {settled.overlap} px{kept}\n"
        f"  memory   about {cost.memory_bytes / 2**30:.1f} GiB\n"
        f"  disk     about {cost.disk_bytes / 2**20:.0f} MiB, {free_bytes(out) / 2**30:.0f} GiB free\n"
        f"  time     about {clock(cost.seconds)}"
    )


def free_bytes(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
