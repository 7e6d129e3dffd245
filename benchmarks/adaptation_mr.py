"""Adaptation without labels on MR under a coil's bias field of known strength, three seeds: hippocampus, fold 0.

A model learned on 8 patients meets the other 4 behind a smooth field that brightens one side and darkens another, and
as they are. The strategies see the shifted volumes of these 4 alone. Upper bound: the source model trained on with the
labels of the 8 under a field of the same kind.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import ROOT, config_hash, write_result
from benchmarks.volume_adaptation import EFFORT, TRIALS, Ground, trained_on, trials
from pipelines.bundle import load_bundle
from pipelines.config import RunConfig, load_config
from pipelines.experiments import train

CONFIG = ROOT / "configs" / "medical" / "hippocampus.yaml"
DATA = ROOT.parent / "shared" / "data" / "medical" / "hippocampus"
STRENGTH = 0.9  # of the field's logarithm, at most, either way: down to 0.41 or up to 2.5
SEEDS = (0, 1, 2)


def main() -> None:
    if not DATA.exists():
        print(f"adaptation_mr: skipped, there is no {DATA}")
        return
    folder = work_folder()
    done_file = folder / "trials.json"
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.exists() else {}
    bundle = load_bundle(source_model(folder))
    for seed in (None, *SEEDS):
        rows = done.setdefault("none" if seed is None else f"bias field, seed {seed}", {})
        best = None if seed is None else partial(supervised, seed, folder)
        for name, row in trials(Ground(bundle, config_of(seed, folder), best), rows):
            rows[name] = row
            done_file.write_text(json.dumps(done, indent=1))
            print(seed, name, {key: row[key] for key in row if key != "notes"}, flush=True)
    values = {"settings": {"strength": STRENGTH, "steps": EFFORT.steps}, "shifts": done, "table": table(done)}
    print("\n".join(values["table"]))
    print(write_result("adaptation_mr", CONFIG, values))


def work_folder() -> Path:
    root = Path(os.environ.get("MASKBRIDGE_BENCH_CACHE") or tempfile.gettempdir())
    folder = root / f"maskbridge-adaptation-mr-{config_hash(CONFIG)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def config_of(seed: int | None, folder: Path) -> RunConfig:
    """Fold 0 of the config, its volumes behind the field of `seed`."""
    config = load_config(CONFIG)
    where = DATA if seed is None else shifted(seed, folder)
    source = str(where / "images" / "*.nii.gz")
    items = (config.data[0].model_copy(update={"source": source, "labels": "{folder}/../labels/{stem}.nii.gz"}),)
    split = config.split.model_copy(update={"fold": 0})
    return config.model_copy(update={"data": items, "split": split, "baseline": None})


def shifted(seed: int, folder: Path) -> Path:
    """The volumes behind a field of their own each; made once."""
    import nibabel

    out = folder / f"bias-{seed}"
    if (out / "labels").exists():
        return out
    (out / "images").mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted((DATA / "images").glob("*.nii.gz"))):
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj).astype(np.float32) * field(image.shape[:3], 100 * seed + number)
        nibabel.save(nibabel.Nifti1Image(values, image.affine), out / "images" / path.name)
    shutil.copytree(DATA / "labels", out / "labels")
    return out


def field(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """A smooth field: waves of at most half a period over the volume, its logarithm between -STRENGTH and STRENGTH."""
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    logarithm = np.zeros(shape)
    for _ in range(3):
        direction = random.normal(size=3)
        direction /= np.linalg.norm(direction)
        along = sum(d * axis for d, axis in zip(direction, axes, strict=True))
        logarithm += random.uniform(0.5, 1) * np.sin(np.pi / 2 * along + random.uniform(-1, 1))
    logarithm -= logarithm.mean()
    return np.exp(STRENGTH * logarithm / np.abs(logarithm).max()).astype(np.float32)


def source_model(folder: Path) -> Path:
    if not (folder / "source" / "bundle").exists():
        train(config_of(None, folder), folder / "source")
    return folder / "source" / "bundle"


def supervised(seed: int, folder: Path) -> Path:
    return trained_on(config_of(seed, folder), source_model(folder), folder / f"supervised-{seed}")


def table(done: dict[str, Any]) -> list[str]:
    """Markdown: Dice as it is and behind a field, mean over the fields, and the share of the gap closed."""
    fields = [rows for name, rows in done.items() if name != "none"]
    lines = ["| | no field | bias field | of the gap |", "|---|---|---|---|"]
    for name in ("source only", *TRIALS, "supervised"):
        as_it_is = done["none"].get(name, {}).get("dice")
        behind = [rows[name]["dice"] for rows in fields if "dice" in rows.get(name, {})]
        if not behind:
            lines.append(f"| {name} | | refused | |")
            continue
        low, high = (mean(rows[end]["dice"] for rows in fields) for end in ("source only", "supervised"))
        closed = f"{100 * (mean(behind) - low) / (high - low):.0f} %" if name in TRIALS and high > low else ""
        shown = f"{as_it_is:.3f}" if as_it_is is not None else ""
        lines.append(f"| {name} | {shown} | {mean(behind):.3f} | {closed} |")
    return lines


if __name__ == "__main__":
    main()
