"""The crowns demo over three seeds: mask model against U-Net, the U-Net at the better of two learning rates.

Same encoder weights, crops, augmentation and wall-clock for both; scored after stitching on the held-out place.
`unet_best_learning_rate` is the one with the best mean foreground IoU; the rows of both are there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.record import ROOT, write_result
from pipelines.config import RunConfig, load_config
from pipelines.experiments import train

CONFIG = ROOT / "flows" / "demos" / "crowns.yaml"
SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3)
KEYS = ("foreground_iou", "iou", "f1_50", "box_f1_50", "pq", "ap50")


def main() -> None:
    config = load_config(CONFIG)
    mask, unet, trivial = [], {rate: [] for rate in RATES}, {}
    for seed in SEEDS:
        for number, rate in enumerate(RATES):
            metrics = _run(config, seed, rate, with_mask_model=number == 0)
            unet[rate].append(_row(seed, metrics["baseline"]["unet"]))
            if number == 0:
                mask.append(_row(seed, metrics))
                trivial = metrics["baseline"]["trivial"]
            print(f"seed {seed} unet rate {rate}: {unet[rate][-1]}", flush=True)
        print(f"seed {seed} mask model: {mask[-1]}", flush=True)
    best = max(RATES, key=lambda rate: mean(row["foreground_iou"] for row in unet[rate]))
    values = {
        "seeds": list(SEEDS),
        "minutes": config.train.minutes,
        "mask_model": mask,
        "unet": {str(rate): rows for rate, rows in unet.items()},
        "unet_best_learning_rate": best,
        "trivial": trivial,
        "means": {
            "mask_model": _means(mask),
            "unet_at_best_rate": _means(unet[best]),
            "best_trivial_foreground_iou": max(row["foreground_iou"] for row in trivial.values()),
        },
    }
    print(write_result("demo_seeds", CONFIG, values))


def _run(config: RunConfig, seed: int, rate: float, with_mask_model: bool) -> dict[str, Any]:
    """One training of both networks; where the mask model is known already, the U-Net takes its place."""
    assert config.baseline is not None
    baseline = config.baseline.model_copy(update={"learning_rate": rate})
    update: dict[str, Any] = {"baseline": baseline}
    if not with_mask_model:
        options = config.train.model_copy(
            update={"learning_rate": rate, "backbone_multiplier": baseline.backbone_multiplier}
        )
        model = config.model.model_copy(update={"preset": baseline.preset, "overrides": baseline.overrides})
        update = {"baseline": None, "train": options, "model": model}
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(config.model_copy(update=update), Path(folder), seed=seed).metrics
    if not with_mask_model:
        metrics = {"baseline": {"unet": metrics, **metrics["baseline"]}}
    return metrics


def _row(seed: int, metrics: dict[str, Any]) -> dict[str, Any]:
    training = metrics["training"]
    facts = {key: training[key] for key in ("steps", "seconds", "learning_rate")}
    return {"seed": seed, **{key: metrics[key] for key in KEYS if key in metrics}, **facts}


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {key: round(mean(row[key] for row in rows), 4) for key in KEYS if key in rows[0]}
