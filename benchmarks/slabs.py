"""Spinal cord, vertebrae and MS lesions by held-out slabs of one subject each: an illustration, not generalisation.

The only subject there is is cut into slabs along one axis, with slices left out in between, and every slab is held out
once, in three folds. A slab looks like its neighbours, so the numbers say that a task can be learned at all.
"""

from __future__ import annotations

import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel

from benchmarks.record import ROOT, config_hash, write_result
from benchmarks.volume_training import both_networks, table
from pipelines.config import RunConfig, load_config

DATA = ROOT.parent / "shared" / "data" / "medical"
CONFIGS = Path(__file__).parent / "slabs_configs"
SLABS = 6
GAP = 2  # slices left out between two slabs: a slice's neighbours are part of its picture


@dataclass(frozen=True)
class Subject:
    """images: a file a channel. axis: of the files, the one across which they are cut."""

    images: dict[str, str]
    labels: str
    axis: int


SUBJECTS = {
    "spinal_cord": Subject({"image": "spinal_cord/t2.nii.gz"}, "spinal_cord/t2_seg-manual.nii.gz", 1),
    "vertebrae": Subject(
        {"image": "vertebrae/sub-ct_label-22_ct.nii.gz"}, "vertebrae/sub-ct_seg-vert_label-22_msk.nii.gz", 2
    ),
    "ms_lesions": Subject(
        {name: f"ms_lesions/patient19_{name}.nii.gz" for name in ("FLAIR", "T1", "T2")},
        "ms_lesions/patient19_lesions.nii.gz",
        2,
    ),
}


def main() -> None:
    if not DATA.is_dir():
        print("skipped: the data are not here (../shared/data/medical)")
        return
    record: dict[str, Any] = {"slabs": SLABS, "slices_left_out": GAP, "note": "one subject each: an illustration"}
    for name, subject in SUBJECTS.items():
        path = CONFIGS / f"{name}.yaml"
        with tempfile.TemporaryDirectory() as folder:
            config = load_config(path)
            item = config.data[0].model_copy(update={"source": str(cut(subject, Path(folder)))})
            record[name] = run(config.model_copy(update={"data": (item,)}), path)
        print(name, table(record[name]), sep="\n")
        write_result("slabs", None, record)


def run(config: RunConfig, path: Path) -> dict[str, Any]:
    """All folds of one subject, both networks."""
    said = {"path": str(path.relative_to(ROOT)), "sha256": config_hash(path)}
    return {"config": said, **both_networks(config, path)}


def cut(subject: Subject, folder: Path) -> Path:
    """The slabs as files and the table that lists them; each is a patient of its own."""
    for name, file in {**subject.images, "labels": subject.labels}.items():
        image: Any = nibabel.load(DATA / file)
        length = image.shape[subject.axis]
        for number in range(SLABS):
            part = slice(number * length // SLABS + (GAP if number else 0), (number + 1) * length // SLABS)
            window = [slice(None)] * 3
            window[subject.axis] = part
            nibabel.save(image.slicer[tuple(window)], folder / f"{number}_{name}.nii.gz")
    columns = (*subject.images, "labels")
    rows = [{"patient": str(n), **{name: f"{n}_{name}.nii.gz" for name in columns}} for n in range(SLABS)]
    with (folder / "slabs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "slabs.csv"


if __name__ == "__main__":
    main()
