"""The satellite configs as they are, trained and scored end to end: mask model, U-Net and the best trivial answer.

Scores are those of whole held-out places after stitching. A config whose data are not here is left out and named.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from benchmarks.buildings_scene import work_folder
from benchmarks.record import ROOT, config_hash, write_result
from pipelines.config import load_config
from pipelines.experiments import train

CONFIGS = ("buildings", "roads", "satellite/aerial-buildings", "satellite/clouds", "satellite/landsat")
MINUTES = 5.0  # the most a network trains here; the configs may ask for more
SCORES = ("miou", "iou", "foreground_iou", "f1_50", "f1_75", "pq", "ap50", "boundary_iou", "count_mae")


def main() -> None:
    done_file = work_folder() / "satellite.json"  # what an interrupted run has trained is not trained again
    done: dict[str, dict[str, Any]] = json.loads(done_file.read_text()) if done_file.exists() else {}
    left_out: dict[str, str] = {}
    for name in CONFIGS:
        digest = config_hash(ROOT / "configs" / f"{name}.yaml")
        if done.get(name, {}).get("config_sha256") != digest:
            try:
                done[name] = {"config_sha256": digest, **scored(name)}
            except InputError as error:
                left_out[name] = str(error)
                print(f"{name}: left out ({error})", flush=True)
                continue
            done_file.write_text(json.dumps(done))
        print(line(name, done[name]), flush=True)
    scores = {name: done[name] for name in CONFIGS if name not in left_out}
    print(write_result("satellite", None, {"most_minutes": MINUTES, "scores": scores, "left_out": left_out}))


def scored(name: str) -> dict[str, Any]:
    """Train and score one config's two networks."""
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    minutes = min(MINUTES, config.train.minutes or MINUTES)
    with tempfile.TemporaryDirectory() as folder:
        return row(train(config, Path(folder), minutes=minutes).metrics, minutes)


def row(metrics: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Scores of one training's two networks and of the trivial answers, classes apart."""
    unet = metrics["baseline"]["unet"]
    trivial = metrics["baseline"].get("trivial", {})
    best: dict[str, float] = {}
    for answer in trivial.values():
        for key in {"miou", "foreground_iou"} & answer.keys():
            best[key] = max(best.get(key, 0.0), answer[key] or 0.0)
    return {"minutes": minutes, "mask_model": scores(metrics), "unet": scores(unet), "trivial": best}


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    found = {name: metrics[name] for name in SCORES if metrics.get(name) is not None}
    per_class = {name: values["iou"] for name, values in metrics.get("per_class", {}).items()}
    return {**found, "iou_per_class": per_class, "steps": metrics["training"]["steps"]}


def line(name: str, scored: dict[str, Any]) -> str:
    """The row of the table in README.md."""
    mask, unet = scored["mask_model"], scored["unet"]

    def pair(key: str) -> str:
        return " / ".join("" if side.get(key) is None else f"{side[key]:.3f}" for side in (mask, unet)).strip(" /")

    # One class: anything at all is that class.
    trivial = scored["trivial"].get("miou", scored["trivial"].get("foreground_iou", 0.0))
    cells = (
        pair("miou"),
        f"{trivial:.3f}",
        pair("pq"),
        pair("f1_50"),
        pair("boundary_iou"),
        f"{mask['steps']} / {unet['steps']}",
    )
    return f"| `{name}` | {scored['minutes']:g} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
