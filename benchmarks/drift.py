"""How well drift's number predicts the loss of quality: chosen on one set of shifts, tested on others and other data.

Chosen on the buildings model of `python -m benchmarks adaptation` and its scene's east under 25 shifts (haze, gain,
noise, blur, gamma, fading colours, stripes, coarser pixels). Tested on 27 shifts of nine other kinds, on that scene and
on tree crowns with a model of their own, which nobody had looked at when the number was fixed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.buildings_scene import CONFIG, DATA, NONE, case_of, source_model, work_folder
from benchmarks.record import ROOT, config_hash, write_result
from benchmarks.shifts import CHOSEN_ON, TESTED_ON, Shift
from pipelines.adaptation.adapt import subject_of
from pipelines.adaptation.verdict import measured
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import RunConfig, load_config
from pipelines.drift.features import drift
from pipelines.experiments import train
from pipelines.labelled import LabelledData, resolve

GOAL = 0.8
CROWNS = ROOT / "flows" / "demos" / "crowns.yaml"
CROWNS_STEPS = 300
SCORES = ("foreground_iou", "f1_50")
LOSSES = {"loss": "foreground_iou", "loss_f1": "f1_50"}

Draw = Callable[[Shift, Path], tuple[Path, RunConfig]]


@dataclass(frozen=True)
class Ground:
    """A trained model, and its held-out ground under a shift: a file of that alone, and labelled data to score on."""

    bundle: Bundle
    draw: Draw


def main() -> None:
    if not DATA.exists():
        print(f"drift: skipped, there is no {DATA}")
        return
    folder = work_folder()
    done_file = folder / "drift.json"
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.exists() else {}
    grounds = {"buildings": buildings(folder), "crowns": crowns(folder)}
    for name, ground, shifts in (
        ("chosen on: buildings", grounds["buildings"], CHOSEN_ON),
        ("tested on: buildings", grounds["buildings"], (NONE, *TESTED_ON)),
        ("tested on: crowns", grounds["crowns"], (NONE, *TESTED_ON)),
    ):
        rows = done.setdefault(name, {})
        for shift in shifts:
            if shift.name not in rows:
                rows[shift.name] = row(ground, shift)
                done_file.write_text(json.dumps(done, indent=1))
                print(name, shift.name, rows[shift.name], flush=True)
    values = {name: summary(rows) for name, rows in done.items()}
    for name, one in values.items():
        print(name, one["spearman"], *table(one["shifts"]), sep="\n")
    configs = {str(CROWNS.relative_to(ROOT)): config_hash(CROWNS)}
    print(write_result("drift", CONFIG, {"configs": configs, "goal": GOAL, **values}))


def buildings(folder: Path) -> Ground:
    def draw(shift: Shift, _: Path) -> tuple[Path, RunConfig]:
        case = case_of(shift, folder)
        return Path(case.target), case.held_out

    return Ground(load_bundle(source_model(folder)), draw)


def crowns(folder: Path) -> Ground:
    """The demo's crowns, trained for as many steps on any machine; its test part under a shift."""
    config = load_config(CROWNS)
    options = config.train.model_copy(update={"minutes": None, "steps": CROWNS_STEPS, "workers": 0})
    config = config.model_copy(update={"train": options, "baseline": None})
    out = folder / "crowns"
    if not (out / "bundle").exists():
        train(config, out)
    scene, labels = (resolve(one) for one in (config.data[0].source, config.data[0].labels))
    with LabelledData(config) as data:
        (place,) = data.split.test
        source = data.scenes[place.item].source
        pixels, _ = source.read(tuple(slice(0, n) for n in source.shape))

    def draw(shift: Shift, where: Path) -> tuple[Path, RunConfig]:
        inside = (slice(None), *place.window)
        changed = pixels.astype(np.uint8)
        changed[inside] = shift(np.ascontiguousarray(changed[inside]))
        whole = save(changed, where / f"{Path(scene).stem}.tif")
        item = config.data[0].model_copy(update={"source": str(whole), "labels": str(labels)})
        return save(changed[inside], where / "held_out.tif"), config.model_copy(update={"data": (item,)})

    return Ground(load_bundle(out / "bundle"), draw)


def save(pixels: np.ndarray, path: Path) -> Path:
    """(3, H, W) as a GeoTIFF without a place on the ground, as the crowns have none."""
    import rasterio

    count, height, width = pixels.shape
    with rasterio.open(path, "w", "GTiff", width, height, count, dtype="uint8", photometric="RGB") as sink:
        sink.write(pixels)
    return path


def row(ground: Ground, shift: Shift) -> dict[str, Any]:
    """Scores of the source model on the shifted ground, and how far its pixels are."""
    subject = subject_of(ground.bundle)
    with tempfile.TemporaryDirectory() as where:
        target, labelled = ground.draw(shift, Path(where))
        scores = measured(subject, labelled).scores
        found = drift(subject.model, subject.adapter, [str(target)], threshold=subject.thresholds["semantic"])
    return {**{key: round(scores[key] or 0.0, 4) for key in SCORES}, **found.summary()}


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Losses against the ground as it is, which is no shift itself, and the correlations with them."""
    usual = rows[NONE.name]
    shifts = {
        name: {**one, **{loss: round(usual[key] - one[key], 4) for loss, key in LOSSES.items()}}
        for name, one in rows.items()
        if name != NONE.name
    }
    return {"spearman": correlations(shifts), "without a shift": usual, "shifts": shifts}


def correlations(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's of the number and of its parts with the loss of foreground IoU, and of objects' F1."""
    parts = [key for key in next(iter(rows.values())) if key not in (*SCORES, *LOSSES)]
    return {
        loss: {
            key: round(float(spearmanr([r[key] for r in rows.values()], [r[loss] for r in rows.values()])[0]), 3)
            for key in parts
        }
        for loss in LOSSES
    }


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [
        "| shift | number | foreground IoU lost | F1 lost |",
        "|---|---|---|---|",
        *(
            f"| {name} | {one['number']:.3f} | {one['loss']:+.3f} | {one['loss_f1']:+.3f} |"
            for name, one in sorted(rows.items(), key=lambda item: item[1]["number"])
        ),
    ]


if __name__ == "__main__":
    main()
