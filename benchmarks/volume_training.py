"""Cross-validation on CT or MR by patient: mask model and per-pixel U-Net, same cases, slices, time; whole volumes, mm.

The shared part of `hippocampus`, `sarcoma_ct` and `sarcoma_mr`, which need ../shared/data and say so where it is not.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import InputError
from benchmarks.record import config_hash, write_result
from pipelines.config import RunConfig, load_config
from pipelines.experiments import train
from pipelines.volumes.cases import gather_cases
from pipelines.volumes.metrics import bootstrap

KEYS = ("dice", "iou", "hd95", "nsd", "lesion_f1", "volume_error_mm3", "relative_volume_error")
NAMES = {"mask_model": "mask model", "unet": "per-pixel U-Net"}


def cross_validate(name: str, path: Path, goal: dict[str, float]) -> None:
    """Train every fold of the config at `path`, print the table, and write `results/<name>.json`."""
    config = load_config(path)
    try:
        gather_cases(config)
    except InputError as error:
        print(f"skipped: the data are not here ({error})")
        return
    values = {"goal": goal, **both_networks(config, path)}
    written = write_result(name, path, values)
    print(table(values))
    print(written)


def both_networks(config: RunConfig, path: Path) -> dict[str, Any]:
    """Train every fold; what is kept of it. An interrupted run goes on; the models stay in the temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"maskbridge-{path.stem}-{config_hash(path)[:8]}"
    metrics = train(config, folder, resume=any(folder.glob("**/checkpoint.pt"))).metrics
    kept = folder.with_name(f"{folder.name}-done")  # the next run begins anew
    shutil.rmtree(kept, ignore_errors=True)
    folder.rename(kept)
    print(f"models: {kept}")
    both = {"mask_model": metrics, "unet": metrics["baseline"]["unet"]}
    return {
        "minutes": config.train.minutes,
        "steps": {"mask_model": config.train.steps, "unet": config.baseline and config.baseline.steps},
        "patients": metrics["counts"]["patients"],
        "tolerance_mm": metrics["tolerance_mm"],
        "load_average": round(os.getloadavg()[2], 1),  # beyond the number of cores, others were at work too
        **{key: scores_of(one) for key, one in both.items()},
        "dice_mask_model_minus_unet": paired(both["mask_model"], both["unet"]),
    }


def scores_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one network: means and 95 % intervals over patients, by class, by patient and by fold."""
    return {
        **{key: metrics[key] for key in KEYS},
        "intervals": metrics["intervals"],
        "per_class": metrics["per_class"],
        "dice_per_patient": dice_per_patient(metrics),
        "folds": metrics["folds"],
    }


def dice_per_patient(metrics: dict[str, Any]) -> dict[str, float]:
    """Mean Dice over classes of each patient (a hash)."""
    found: dict[str, list[float]] = {}
    for case in metrics["per_case"]:
        known = [row["dice"] for row in case["scores"].values() if row["dice"] is not None]
        found.setdefault(case["patient"], []).append(float(np.mean(known)))
    return {patient: round(float(np.mean(values)), 4) for patient, values in sorted(found.items())}


def paired(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """Mean difference of Dice patient by patient, with its bootstrap interval."""
    mine, theirs = dice_per_patient(first), dice_per_patient(second)
    found = bootstrap(np.array([mine[patient] - theirs[patient] for patient in mine]))
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def table(values: dict[str, Any]) -> str:
    """Rows for benchmarks/README.md."""
    lines = [
        f"| | class | Dice (95 %) | IoU | HD95, mm | NSD at {values['tolerance_mm']:g} mm | lesion F1 | volume |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, name in NAMES.items():
        one = values[key]
        low, high = one["intervals"]["dice"]
        rows = [("all", {**one, "dice_text": f"{one['dice']:.3f} ({low:.3f}-{high:.3f})"})]
        for label, row in one["per_class"].items():
            low, high = row["dice"]["interval"]
            means = {score: row[score]["mean"] for score in KEYS}
            rows.append((label, {**means, "dice_text": f"{means['dice']:.3f} ({low:.3f}-{high:.3f})"}))
        for label, row in rows:
            lines.append(
                f"| {name} | {label} | {row['dice_text']} | {row['iou']:.3f} | {row['hd95']:.2f} | {row['nsd']:.3f} "
                f"| {row['lesion_f1']:.2f} | {100 * row['relative_volume_error']:+.0f} % |"
            )
    return "\n".join(lines)
