"""How well drift's number predicts the loss of quality: chosen on one set of shifts, tested on another.

The buildings model of `python -m benchmarks adaptation`, the scene's east under 14 shifts of kinds (blur, gamma, fading
colours, stripes, coarser pixels) that were not looked at when the number was chosen (on haze, gain and noise).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.buildings_scene import CONFIG, DATA, case_of, source_model, work_folder
from benchmarks.record import write_result
from benchmarks.shifts import CHOSEN_ON, TESTED_ON, Shift
from pipelines.adaptation.adapt import subject_of
from pipelines.adaptation.target import Subject
from pipelines.adaptation.verdict import measured
from pipelines.bundle import load_bundle
from pipelines.drift.features import drift

GOAL = 0.8


def main() -> None:
    if not DATA.exists():
        print(f"drift: skipped, there is no {DATA}")
        return
    folder = work_folder()
    subject = subject_of(load_bundle(source_model(folder)))
    usual = row(subject, CHOSEN_ON[0], folder)
    groups = {}
    for name, shifts in (("chosen on", CHOSEN_ON), ("tested on", TESTED_ON)):
        rows = {shift.name: row(subject, shift, folder) for shift in shifts}
        for one in rows.values():
            one["loss"] = round(usual["foreground_iou"] - one["foreground_iou"], 4)
            one["loss_f1"] = round(usual["f1_50"] - one["f1_50"], 4)
        groups[name] = {"spearman": correlations(rows), "shifts": rows}
        print(name, groups[name]["spearman"], flush=True)
        print("\n".join(table(rows)))
    print(write_result("drift", CONFIG, {"goal": GOAL, **groups}))


def row(subject: Subject, shift: Shift, folder: Path) -> dict[str, Any]:
    """Scores of the source model on the shifted east, and how far its pixels are."""
    case = case_of(shift, folder)
    scores = measured(subject, case.held_out).scores
    found = drift(subject.model, subject.adapter, [case.target])
    return {
        "foreground_iou": round(scores["foreground_iou"] or 0.0, 4),
        "f1_50": round(scores["f1_50"] or 0.0, 4),
        **found.summary(),
    }


def correlations(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's of the number and of its parts with the loss of foreground IoU, and of objects' F1."""
    parts = [key for key in next(iter(rows.values())) if key not in ("foreground_iou", "f1_50", "loss", "loss_f1")]
    return {
        loss: {
            key: round(float(spearmanr([r[key] for r in rows.values()], [r[loss] for r in rows.values()])[0]), 3)
            for key in parts
        }
        for loss in ("loss", "loss_f1")
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
