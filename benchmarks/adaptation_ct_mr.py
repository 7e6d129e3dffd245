"""Adaptation without labels from CT to MR: soft-tissue sarcoma, the same tumours in another kind of picture, fold 0.

A model learned on the CT of four patients meets the T1 MR of the other three. The strategies see these three volumes
alone. Upper bound: the source model trained on with the MR labels of the four. Both models are weak (Dice about 0.3 by
`sarcoma_ct` and `sarcoma_mr`), so what there is to carry over is small; the table says what comes across.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, config_hash, write_result
from benchmarks.volume_adaptation import EFFORT, TRIALS, Ground, trained_on, trials
from pipelines.bundle import load_bundle
from pipelines.config import RunConfig, load_config
from pipelines.experiments import train

CT, MR = (ROOT / "configs" / "medical" / f"sarcoma-{kind}.yaml" for kind in ("ct", "mr"))
DATA = ROOT.parent / "shared" / "data" / "medical" / "sarcoma"
STEPS = 300


def main() -> None:
    if not DATA.exists():
        print(f"adaptation_ct_mr: skipped, there is no {DATA}")
        return
    folder = work_folder()
    done_file = folder / "trials.json"
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.exists() else {}
    source = source_model(folder)
    for kind, path in (("CT", CT), ("MR", MR)):
        rows = done.setdefault(kind, {})
        config = fold(path)
        best = None if kind == "CT" else lambda: trained_on(fold(MR), source, folder / "supervised")
        for name, row in trials(Ground(load_bundle(source), config, best), rows):
            rows[name] = row
            done_file.write_text(json.dumps(done, indent=1))
            print(kind, name, {key: row[key] for key in row if key != "notes"}, flush=True)
    values = {"settings": {"steps": EFFORT.steps}, "targets": done, "table": table(done)}
    print("\n".join(values["table"]))
    print(write_result("adaptation_ct_mr", CT, {"configs": {str(MR.relative_to(ROOT)): config_hash(MR)}, **values}))


def work_folder() -> Path:
    root = Path(os.environ.get("MASKBRIDGE_BENCH_CACHE") or tempfile.gettempdir())
    folder = root / f"maskbridge-adaptation-ct-mr-{config_hash(CT)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fold(path: Path) -> RunConfig:
    config = load_config(path)
    return config.model_copy(update={"split": config.split.model_copy(update={"fold": 0}), "baseline": None})


def source_model(folder: Path) -> Path:
    if not (folder / "source" / "bundle").exists():
        config = fold(CT)
        steps = config.train.model_copy(update={"minutes": None, "steps": STEPS})
        train(config.model_copy(update={"train": steps}), folder / "source")
    return folder / "source" / "bundle"


def table(done: dict[str, Any]) -> list[str]:
    """Markdown: Dice on the patients that no model learned from; the difference to source only with its interval."""
    lines = ["| | CT | MR | difference on MR (95 %) |", "|---|---|---|---|"]
    for name in ("source only", *TRIALS, "supervised"):
        cells = []
        for kind in ("CT", "MR"):
            row = done[kind].get(name, {})
            cells.append(f"{row['dice']:.3f}" if "dice" in row else "refused" if "refused" in row else "")
        change = done["MR"].get(name, {}).get("difference")
        shown = f"{change['mean']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" if change else ""
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {shown} |")
    return lines


if __name__ == "__main__":
    main()
