"""What report.html shows of one predicted scene, gathered from the plan, the bundle and the outputs.

Where the bundle was trained on part of this very file (known by its hash), the held-out part is marked and the
scores taken there are shown; where it was not, the input statistics beside those of the training data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from adapters.channels import ChannelSet
from maskformer.masks import MaskSet
from pipelines.annotations import read_annotations
from pipelines.assembly import Assembled
from pipelines.bundle import Bundle
from pipelines.manifest import Stopwatch, peak_rss_bytes
from pipelines.provenance import versions
from pipelines.report import ReportData, ScoreRow, band_statistics, label_overview, overview, write_report
from pipelines.scene import ScenePlan

# In this order: what is asked first stands first.
SHOWN = (
    *("foreground_iou", "miou", "boundary_iou", "f1_50", "f1_75", "box_f1_50", "pq", "sq", "rq"),
    *("ap", "ap50", "box_ap50", "count_mae"),
)
TRIVIAL_NAMES = {
    "all_background": "trivial: nothing anywhere",
    "all_foreground": "trivial: everything",
    "threshold": "trivial: one tuned threshold",
    "most_common_class": "trivial: the most common class",
}


def write_scene_report(
    folder: Path,
    plan: ScenePlan,
    bundle: Bundle,
    source: Any,
    scene: Assembled,
    watch: Stopwatch,
    notes: list[str],
) -> None:
    """Write `folder/report.html`; `semantic.tif` and `objects.parquet` must be there."""
    classes = bundle.adapter.classes
    picture, scale = overview(source)
    heldout = heldout_window(bundle, plan.source_sha256)
    areas, unit = _areas(folder / "objects.parquet")
    transform, crs = source.geometry.transform, source.geometry.crs
    data = ReportData(
        scene=plan.name,
        model=_model_name(plan),
        date=time.strftime("%Y-%m-%d"),
        shape=plan.shape,
        class_names=classes.names,
        class_colours=classes.colours,
        overview=picture,
        scale=scale,
        objects=scene.objects,
        areas=areas,
        area_unit=unit,
        truth=_truth(plan, bundle, source),
        semantic=label_overview(folder / "semantic.tif"),
        heldout=heldout,
        transform=tuple(transform)[:6] if crs is not None else None,
        crs=None if crs is None else crs.to_string(),
        scores=list(score_rows(bundle)) if heldout else (),
        curves=_curves(bundle) if heldout else {},
        statistics=() if heldout else band_statistics(source, trained_statistics(bundle.adapter.channels)),
        run={
            "parameters": plan.options.model_dump(mode="json"),
            "timings_s": watch.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
            "hashes": {"source": plan.source_sha256, "weights": plan.model_sha256},
            "versions": versions(),
        },
        warnings=notes,
    )
    write_report(folder / "report.html", data)


def heldout_window(bundle: Bundle, source_sha256: str) -> tuple[slice, ...] | None:
    """The part of this file that the bundle was scored on and never trained on; None for any other file."""
    for place in bundle.provenance.get("places", ()):
        if place["role"] == "test" and place["sha256"] == source_sha256:
            return tuple(slice(start, stop) for start, stop in place["window"])
    return None


def score_rows(bundle: Bundle) -> Iterator[ScoreRow]:
    """The model's held-out scores, then the per-pixel network's, then the trivial ones."""
    if "heldout" in bundle.metrics:
        yield _row("mask model", bundle.metrics["heldout"], bundle.provenance["training"])
    baseline = bundle.metrics.get("baseline", {})
    if "unet" in baseline:
        yield _row("per-pixel U-Net", baseline["unet"], baseline["unet"]["training"])
    for key, values in baseline.get("trivial", {}).items():
        yield _row(TRIVIAL_NAMES.get(key, f"trivial: {key}"), values, {})


def trained_statistics(channels: ChannelSet) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the training data by channel name; none for a channel scaled by a fixed window."""
    windows = {c.name for c in channels if c.clip and (sum(c.clip) / 2, c.clip[1] - c.offset) == (c.offset, c.scale)}
    return {c.name: (c.offset, c.scale) for c in channels if c.name not in windows}


def _row(name: str, scores: dict[str, Any], training: dict[str, Any]) -> ScoreRow:
    # With one class the mean over classes is that class, and the table needs its room.
    repeated = {"miou"} if len(scores.get("per_class", {})) == 1 else set()
    metrics: dict[str, Any] = {key: scores[key] for key in SHOWN if key in scores and key not in repeated}
    facts: dict[str, Any] = {key: training[key] for key in ("steps", "learning_rate") if key in training}
    if "seconds" in training:
        facts["minutes"] = round(training["seconds"] / 60, 2)
    return ScoreRow(name, metrics, scores.get("per_class", {}), facts)


def _curves(bundle: Bundle) -> dict[str, Any]:
    curves = {"mask model": bundle.provenance.get("history", [])}
    if bundle.provenance.get("baseline_history"):
        curves["per-pixel U-Net"] = bundle.provenance["baseline_history"]
    return curves


def _truth(plan: ScenePlan, bundle: Bundle, source: Any) -> MaskSet | None:
    if plan.labels is None:
        return None
    return read_annotations(plan.labels, source, bundle.adapter, plan.label_options).objects


def _areas(path: Path) -> tuple[np.ndarray, str]:
    """Areas as the file has them, in canonical order like the objects, and their unit."""
    column = "area_m2" if "area_m2" in parquet.read_schema(path).names else "area_px"
    areas = parquet.read_table(path, columns=[column])[column].to_numpy()
    return areas, "m²" if column == "area_m2" else "px"


def _model_name(plan: ScenePlan) -> str:
    told = plan.model_version is None or plan.reference.endswith(f"/{plan.model_version}")
    return plan.reference if told else f"{plan.reference}, version {plan.model_version}"
