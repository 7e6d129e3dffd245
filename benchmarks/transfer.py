"""Carrying a model over with labels: full, frozen backbone, layer-wise rates and low rank, at equal steps.

From the buildings model of `python -m benchmarks adaptation` (aerial, 30 cm) to tree crowns (airborne, 10 cm), with the
demo's data and split. Beside them a start from the backbone's ImageNet weights, which knows no other scene.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.buildings_scene import DATA, source_model, work_folder
from benchmarks.record import ROOT, write_result
from pipelines.config import RunConfig, load_config
from pipelines.experiments import train

CONFIG = ROOT / "flows" / "demos" / "crowns.yaml"
STEPS, CROP = 120, 192
SEEDS = (0, 1)
RANK = 8
KEYS = ("foreground_iou", "f1_50", "pq")
WAYS: dict[str, dict[str, Any]] = {
    "ImageNet weights": {},
    "full": {},
    "frozen backbone": {"freeze": ("backbone",)},
    "layer decay 0.7": {"layer_decay": 0.7},
    f"low rank {RANK}": {"low_rank": RANK},
}


def main() -> None:
    if not DATA.exists():
        print(f"transfer: skipped, there is no {DATA}")
        return
    folder = work_folder()
    source = source_model(folder)
    done_file = folder / "transfer.json"
    runs: dict[str, list[dict[str, Any]]] = json.loads(done_file.read_text()) if done_file.exists() else {}
    for seed in SEEDS:
        for way in WAYS:
            rows = runs.setdefault(way, [])
            if any(row["seed"] == seed for row in rows):
                continue
            rows.append(run(way, seed, source, folder))
            done_file.write_text(json.dumps(runs, indent=1))
            print(way, rows[-1], flush=True)
    values = {"settings": {"steps": STEPS, "crop": CROP, "seeds": list(SEEDS)}, "runs": runs, "table": table(runs)}
    print("\n".join(values["table"]))
    print(write_result("transfer", CONFIG, values))


def run(way: str, seed: int, source: Path, folder: Path) -> dict[str, Any]:
    """One training; its scores on the held-out quarter and what it cost."""
    config = changed(load_config(CONFIG), way, source)
    began = time.process_time()
    metrics = train(config, folder / "transfer" / f"{way.replace(' ', '-')}-{seed}", seed=seed).metrics
    return {
        "seed": seed,
        **{key: round(metrics[key] or 0.0, 4) for key in KEYS},
        "processor_seconds": round(time.process_time() - began, 1),
    }


def changed(config: RunConfig, way: str, source: Path) -> RunConfig:
    train_options = config.train.model_copy(
        update={"minutes": None, "steps": STEPS, "crop": CROP, "workers": 0, **WAYS[way]}
    )
    model = config.model
    if way != "ImageNet weights":
        # Other channels' scaling and another class: `building` becomes `crown`.
        model = model.model_copy(
            update={"init_from": str(source), "weights": None, "class_map": {"crown": ("building",)}, "overrides": {}}
        )
    return config.model_copy(update={"train": train_options, "model": model, "baseline": None})


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Markdown: means over seeds, and each seed's F1."""
    lines = ["| | foreground IoU | F1 of objects | each seed | PQ | processor s |", "|---|---|---|---|---|---|"]
    for way, rows in runs.items():
        iou, f1, pq, seconds = (mean(row[key] for row in rows) for key in (*KEYS, "processor_seconds"))
        each = ", ".join(f"{row['f1_50']:.2f}" for row in rows)
        lines.append(f"| {way} | {iou:.3f} | {f1:.3f} | {each} | {pq:.3f} | {seconds:.0f} |")
    return lines


if __name__ == "__main__":
    main()
