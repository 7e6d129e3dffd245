"""Adaptation without labels on real data under shifts of known size: every strategy alone and together.

Buildings at 30 cm (../shared/data): a model learned on the scene's west meets its east in haze (3 seeds), under another
gain, at half the resolution, and as it is. Each strategy sees the shifted east's pixels alone. Beside it: the source
model as it is, and the upper bound, the source model trained on with the labels of the west under the same shift.

An interrupted run goes on where it stopped; the models lie in the work folder (see `buildings_scene`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from adapters.errors import InputError
from benchmarks.buildings_scene import CONFIG, DATA, Case, case_of, supervised, work_folder
from benchmarks.record import write_result
from benchmarks.shifts import BENCHMARKED
from pipelines.adaptation.adapt import Request, apply, subject_of
from pipelines.adaptation.target import Effort, Target
from pipelines.adaptation.verdict import Measured, compare, measured
from pipelines.bundle import load_bundle

EFFORT = Effort(crops=32, steps=40)
UPPER_STEPS = 100
KEYS = ("foreground_iou", "f1_50", "pq")
STATISTICS = ("input_statistics", "norm_statistics")
TRIALS: dict[str, tuple[str, ...]] = {
    "resolution": ("resolution",),
    "input statistics": ("input_statistics",),
    "norm statistics": ("norm_statistics",),
    "style": ("style",),
    "self-training": ("self_training",),
    "default: resolution and both statistics": ("resolution", *STATISTICS),
    "default and self-training": ("resolution", *STATISTICS, "self_training"),
    "default and style": ("resolution", *STATISTICS, "style"),
    "all": ("resolution", *STATISTICS, "style", "self_training"),
}

QUICK = tuple(name for name, steps in TRIALS.items() if not {"style", "self_training"} & set(steps))


def main() -> None:
    if not DATA.exists():
        print(f"adaptation: skipped, there is no {DATA}")
        return
    folder = work_folder()
    done_file = folder / "trials.json"
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.exists() else {}
    cases = [case_of(shift, folder) for shift in BENCHMARKED]
    for names in (QUICK, tuple(TRIALS)):  # what costs seconds first
        for case in cases:
            rows = done.setdefault(case.name, {})
            for name, row in trials(case, folder, rows, names):
                rows[name] = row
                done_file.write_text(json.dumps(done, indent=1))
                print(case.name, name, {key: row[key] for key in row if key != "notes"}, flush=True)
    values = {"settings": {"steps": EFFORT.steps, "upper_steps": UPPER_STEPS}, "shifts": done, "table": table(done)}
    print("\n".join(values["table"]))
    print(write_result("adaptation", CONFIG, values))


def trials(
    case: Case, folder: Path, known: dict[str, Any], names: Sequence[str] = tuple(TRIALS)
) -> Iterator[tuple[str, Any]]:
    """(name, row) of everything that is not known yet."""
    bundle = load_bundle(case.source)
    source = measured(subject_of(bundle), case.held_out)
    if "source only" not in known:
        yield "source only", row_of(source)
    if "supervised" not in known:
        best = subject_of(load_bundle(supervised(case, folder, UPPER_STEPS)))
        yield "supervised", row_of(measured(best, case.held_out))
    for name in names:
        if name in known:
            continue
        request = Request(TRIALS[name], EFFORT, case.learned_from)
        began = time.process_time()
        try:
            subject = apply(subject_of(bundle), Target((case.target,), EFFORT), request)
        except InputError as error:
            yield name, {"refused": str(error)}
            continue
        seconds = round(time.process_time() - began, 1)
        adapted = measured(subject, case.held_out)
        verdict = compare(source, adapted)
        yield (
            name,
            {
                **row_of(adapted),
                "processor_seconds": seconds,
                "better": verdict.better,
                "differences": {key: one.to_dict() for key, one in verdict.differences.items()},
                "notes": subject.notes,
            },
        )


def row_of(found: Measured) -> dict[str, Any]:
    return {key: round(found.scores[key] or 0.0, 4) for key in KEYS}


def recovered(rows: dict[str, Any], name: str, key: str = "foreground_iou") -> float | None:
    """Share of the gap between source and supervised that a trial closes; None where the gap is under 2 points."""
    if "supervised" not in rows:
        return None
    low, high = rows["source only"][key], rows["supervised"][key]
    return (rows[name][key] - low) / (high - low) if high - low > 0.02 and key in rows[name] else None


def table(done: dict[str, Any]) -> list[str]:
    """Markdown: foreground IoU (F1 of objects), and the share of IoU's gap closed; haze is a mean over its seeds."""
    groups: dict[str, list[str]] = {}
    for name in done:
        groups.setdefault(name.partition(",")[0], []).append(name)
    lines = ["| | " + " | ".join(groups) + " |", "|---|" + "---|" * len(groups)]
    for trial in ("source only", *TRIALS, "supervised"):
        cells = []
        for names in groups.values():
            rows = [done[name] for name in names if "foreground_iou" in done[name].get(trial, {})]
            if not rows:
                cells.append("refused" if any("refused" in done[name].get(trial, {}) for name in names) else "not run")
                continue
            iou, f1 = (mean(row[trial][key] for row in rows) for key in KEYS[:2])
            shares = [share for row in rows if (share := recovered(row, trial)) is not None and trial in TRIALS]
            closed = f", {100 * mean(shares):.0f} %" if shares else ""
            cells.append(f"{iou:.3f} ({f1:.2f}){closed}")
        lines.append(f"| {trial} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
