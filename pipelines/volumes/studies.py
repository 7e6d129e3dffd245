"""Studies from files to files: one, or a night's worth of which a bad one does not stop the others."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.manifest import Stopwatch, peak_rss_bytes
from pipelines.provenance import versions
from pipelines.sinks.folder import OutputFolder, atomic_write, sha256
from pipelines.volumes.prediction import Progress, VolumeModel, VolumeOptions, VolumePredictor, VolumeResult
from pipelines.volumes.sinks import NOTICE
from pipelines.volumes.sinks.nifti import write_labels, write_objects
from pipelines.volumes.sinks.seg import write_seg
from pipelines.volumes.sinks.table import write_table
from pipelines.volumes.source import VolumePath, VolumeSource, open_volume, stem_of

log = logging.getLogger(__name__)
FAILED = 3  # the exit code of a batch in which a study failed


@dataclass(frozen=True)
class StudyRow:
    """One line of a batch's summary; `study` counts from 1. status: `done`, `there` (made before) or `failed`."""

    study: int
    status: str
    folder: str = ""
    objects: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Batch:
    """What became of a batch; `exit_code` is 0, or 3 where a study failed."""

    rows: tuple[StudyRow, ...]

    @property
    def exit_code(self) -> int:
        return FAILED if any(row.status == "failed" for row in self.rows) else 0

    def table(self) -> str:
        """The summary as aligned text; no name of a patient or file but the folders."""
        lines = [("study", "status", "objects", "seconds", "folder or reason")]
        for row in self.rows:
            last = row.reason or row.folder
            lines.append((str(row.study), row.status, str(row.objects), f"{row.seconds:.1f}", last))
        widths = [max(len(line[k]) for line in lines) for k in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[4]]) for line in lines
        )


def predict_volume(
    path: VolumePath,
    model: str | Path | VolumeModel | VolumePredictor,
    out: str | Path,
    options: VolumeOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Predict one volume into `out/<stem>/`; returns that folder. Nothing appears there before all of it is complete.

    The stem is a hash of the voxels' files unless `keep_names`. InputError says in one line what is wrong.
    """
    return _predict(path, _predictor(model, options), Path(out), overwrite, on_progress)[0]


def predict_studies(
    paths: Sequence[VolumePath],
    model: str | Path | VolumeModel | VolumePredictor,
    out: str | Path,
    options: VolumeOptions | None = None,
    *,
    on_progress: Progress | None = None,
) -> Batch:
    """Predict many studies with one model into `out`; a study that fails is listed and the others finish.

    A study whose result is there already, made by the same model, options and bytes, is not predicted again.
    `out/summary.csv` lists all.
    """
    predictor = _predictor(model, options)
    rows = []
    for number, path in enumerate(paths, start=1):
        started = time.perf_counter()
        try:
            folder, objects, fresh = _predict(path, predictor, Path(out), False, on_progress, again=False)
            row = StudyRow(number, "done" if fresh else "there", folder.name, objects)
        except InputError as error:
            row = StudyRow(number, "failed", reason=_discreet(str(error), path, number, predictor.options.keep_names))
        except Exception as error:  # noqa: BLE001 - whatever it is, the night's other studies are not to wait for it
            # neither text nor traceback: a library's message may quote a header, and a header a name
            row = StudyRow(number, "failed", reason=f"unexpected {type(error).__name__}; predict it alone to see more")
        rows.append(StudyRow(**{**asdict(row), "seconds": round(time.perf_counter() - started, 1)}))
        log.info("study %d of %d: %s %s", number, len(paths), rows[-1].status, rows[-1].reason or rows[-1].folder)
    batch = Batch(tuple(rows))
    _write_summary(Path(out) / "summary.csv", batch)
    return batch


def _predictor(model: str | Path | VolumeModel | VolumePredictor, options: VolumeOptions | None) -> VolumePredictor:
    if isinstance(model, VolumePredictor):
        return model
    return VolumePredictor(model if isinstance(model, VolumeModel) else VolumeModel.load(model), options)


def _predict(
    path: VolumePath,
    predictor: VolumePredictor,
    out: Path,
    overwrite: bool,
    on_progress: Progress | None,
    again: bool = True,
) -> tuple[Path, int, bool]:
    """(folder, objects, whether it was predicted now) of one study."""
    watch, options, model = Stopwatch(), predictor.options, predictor.model
    with watch.stage("read"):
        source = open_volume(
            path,
            model.adapter.channels,
            options.series,
            rule=model.rules.series,
            channel_axis=options.channel_axis,
            allow_uneven=options.allow_uneven,
        )
    with source:
        digest = source.digest()
        stem = _stem(source, digest, options.keep_names)
        key = study_key(digest, source, predictor)
        if not again and (found := _finished(out, stem, key)):
            return found[0], found[1], False
        with watch.stage("predict"):
            result = predictor(source, on_progress)
        with OutputFolder(out, stem, overwrite=overwrite) as folder:
            notes = _write(folder.path, source, predictor, result, watch)
            _write_manifest(folder.path / "run.json", source, predictor, result, watch, [key, digest, *notes])
            return folder.commit(), len(result.objects), True


def study_key(digest: str, source: VolumeSource, predictor: VolumePredictor) -> str:
    """Hash of everything that could move a voxel."""
    parts = [digest, source.extra.get("series"), predictor.model.digest or predictor.model.sha256]
    parts += [predictor.options.model_dump(mode="json"), predictor.settled.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _stem(source: VolumeSource, digest: str, keep_names: bool) -> str:
    if not keep_names:
        series = str(source.extra.get("series", ""))
        return "study-" + hashlib.sha256(f"{digest} {series}".encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.+-]+", "_", stem_of(source.path)).strip("._")
    return name or "study"


def _finished(out: Path, stem: str, key: str) -> tuple[Path, int] | None:
    """The folder of an earlier run with this very key whose files are all there, and its number of objects."""
    for folder in sorted(out.glob(f"{stem}*")):
        try:
            manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if manifest["key"] == key and all((folder / name).is_file() for name in manifest["outputs"]):
                return folder, int(manifest["objects"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _write(
    folder: Path, source: VolumeSource, predictor: VolumePredictor, result: VolumeResult, watch: Stopwatch
) -> list[str]:
    """All files but run.json; returns what a reader has to know."""
    model, classes, notes = predictor.model, predictor.model.adapter.classes, list(source.notes)
    header = source.reference if source.kind == "nifti" else None
    with watch.stage("write"):
        write_labels(folder / "labels.nii.gz", result.labels, source.geometry, classes, header)
        write_objects(folder / "objects.nii.gz", result.objects, source.geometry, classes, header)
        write_table(folder / "objects.csv", result.objects, source.geometry, classes)
    wanted = predictor.options.seg
    if wanted if wanted is not None else source.kind == "dicom":
        series = source.reference if source.kind == "dicom" else None
        if series is None and wanted is None:
            notes.append("no segmentation.dcm: the slices were resampled, there is no series on this grid to refer to")
            return notes
        with watch.stage("seg"):
            written = write_seg(
                folder / "segmentation.dcm", result.objects, series, classes, model.name, model.version or model.sha256
            )
        if not written:
            notes.append("no segmentation.dcm: nothing was found, and a DICOM-SEG cannot be without segments")
    return notes


def _write_manifest(
    path: Path,
    source: VolumeSource,
    predictor: VolumePredictor,
    result: VolumeResult,
    watch: Stopwatch,
    facts: list[str],
) -> None:
    """run.json: no names of files or patients in it; it is the last file of the folder."""
    key, digest, *notes = facts
    model = predictor.model
    if result.torn:
        notes.append(f"{result.torn} objects are in two pieces: please report this")
    manifest: dict[str, Any] = {
        "notice": NOTICE,
        "version": version("maskbridge"),
        "key": key,
        "model": {"name": model.name, "version": model.version, "sha256": model.sha256},
        "source": {
            "sha256": digest,
            "kind": source.kind,
            "modality": source.modality,
            "channels": list(source.channels),
            **source.geometry.to_dict(),
        },
        "parameters": predictor.options.model_dump(mode="json"),
        "settled": {k: getattr(predictor.settled, k) for k in ("task", "score", "device", "precision")},
        "timings_s": watch.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "objects": len(result.objects),
        "torn_objects": result.torn,
        "outputs": {p.name: sha256(p) for p in sorted(path.parent.iterdir()) if p.is_file()},
        "warnings": notes,
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _discreet(text: str, path: VolumePath, number: int, keep_names: bool) -> str:
    """The reason without the names of the study's files and folders, which may be the patient's."""
    if keep_names:
        return text
    if isinstance(path, str | Path):
        names = [path]
    else:
        names = list(path.values()) if isinstance(path, dict) else list(path)  # type: ignore[arg-type]
    for name in sorted((str(Path(one)) for one in names), key=len, reverse=True):
        text = re.sub(re.escape(name) + r"[^\s:,;]*", f"study {number}", text)
        text = text.replace(Path(name).name, f"study {number}")
    return text


def _write_summary(path: Path, batch: Batch) -> None:
    with atomic_write(path) as temporary, Path(temporary).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*StudyRow.__dataclass_fields__, "notice"])
        writer.writerows([*asdict(row).values(), NOTICE] for row in batch.rows)
