"""Studies from files to files: one, or a night's worth of which a bad one does not stop the others."""

from __future__ import annotations

import csv
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from adapters.errors import InputError
from pipelines.manifest import Stopwatch
from pipelines.sinks.folder import OutputFolder, atomic_write
from pipelines.volumes.discretion import discreet
from pipelines.volumes.prediction import Progress, VolumeModel, VolumeOptions, VolumePredictor
from pipelines.volumes.series import read_header
from pipelines.volumes.sinks import NOTICE
from pipelines.volumes.source import VolumePath, VolumeSource, is_nifti, open_volume
from pipelines.volumes.study_files import Study, check_outputs, finished, study_key, study_stem, write_study

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
            found = "" if row.status == "failed" else str(row.objects)
            lines.append((str(row.study), row.status, found, f"{row.seconds:.1f}", row.reason or row.folder))
        widths = [max(len(line[k]) for line in lines) for k in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[4]]) for line in lines
        )


@dataclass(frozen=True)
class BatchRules:
    """overwrite: replace what is there. again: predict it anew into `stem-2`. summary: write `out/summary.csv`.

    first: number of the first study.
    on_progress(stage, done, total) tells of the slices, on_study(row, notes) of every study that is through.
    """

    overwrite: bool = False
    again: bool = False
    summary: bool = True
    first: int = 1
    on_progress: Progress | None = None
    on_study: Callable[[StudyRow, Sequence[str]], None] | None = None


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
    rules = BatchRules(overwrite=overwrite, on_progress=on_progress, again=True)
    return _predict(path, volume_predictor(model, options), Path(out), 1, rules).folder


def predict_studies(
    paths: Sequence[VolumePath],
    model: str | Path | VolumeModel | VolumePredictor,
    out: str | Path,
    options: VolumeOptions | None = None,
    rules: BatchRules | None = None,
) -> Batch:
    """Predict many studies with one model into `out`; a study that fails is listed and the others finish.

    A study whose result is there already, made by the same model, options and bytes, is not predicted again.
    `out/summary.csv` lists all, those of an interrupted batch that were reached.
    """
    predictor, rules = volume_predictor(model, options), rules or BatchRules()
    rows: list[StudyRow] = []
    try:
        for number, path in enumerate(paths, start=rules.first):
            row, notes = predict_one(path, predictor, Path(out), number, rules)
            rows.append(row)
            log.info("study %d of %d: %s %s", number, len(paths), row.status, row.reason or row.folder)
            if rules.on_study:
                rules.on_study(row, notes)
    finally:
        batch = Batch(tuple(rows))
        if rules.summary and rows:
            write_summary(Path(out) / "summary.csv", batch)
    return batch


def volume_predictor(
    model: str | Path | VolumeModel | VolumePredictor, options: VolumeOptions | None = None
) -> VolumePredictor:
    """The predictor of a bundle, with the folds that the options name."""
    if isinstance(model, VolumePredictor):
        return model
    options = options or VolumeOptions()
    return VolumePredictor(model if isinstance(model, VolumeModel) else VolumeModel.load(model, options.folds), options)


def studies_in(folder: str | Path) -> list[Path]:
    """The studies of a night's folder: each NIfTI or DICOM file and each folder directly in it, by name."""
    where = Path(folder)
    if not where.is_dir():
        raise InputError(f"{where}: expected a folder of studies")
    inside = sorted(p for p in where.iterdir() if not p.name.startswith("."))
    found = [p for p in inside if p.is_dir() or is_nifti(p) or read_header(p) is not None]
    if not found:
        raise InputError(f"{where}: holds no study, neither a folder nor a NIfTI or DICOM file")
    return found


def write_summary(path: Path, batch: Batch) -> None:
    """summary.csv: a line a study."""
    with atomic_write(path) as temporary, Path(temporary).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*StudyRow.__dataclass_fields__, "notice"])
        writer.writerows([*asdict(row).values(), NOTICE] for row in batch.rows)


class _Done(NamedTuple):
    folder: Path
    objects: int
    fresh: bool  # predicted now
    notes: list[str]


def predict_one(
    path: VolumePath, predictor: VolumePredictor, out: Path, number: int, rules: BatchRules
) -> tuple[StudyRow, list[str]]:
    """Predict one study of a batch: its row and notes, whatever becomes of it."""
    started = time.perf_counter()
    row, notes = StudyRow(number, "failed"), list[str]()
    try:
        done = _predict(path, predictor, out, number, rules)
        notes = done.notes
        row = StudyRow(number, "done" if done.fresh else "there", done.folder.name, done.objects)
    except InputError as error:
        row = replace(row, reason=_reason(error, path, number, predictor.options.keep_names))
    except MemoryError:
        row = replace(row, reason="out of memory; a smaller batch needs less")
    except Exception as error:  # noqa: BLE001 - whatever it is, the night's other studies are not to wait for it
        # not its text: a library's message may quote a header, and a header a name
        where = "".join(traceback.format_tb(error.__traceback__))
        log.debug("study %d: %s at\n%s", number, type(error).__name__, where)
        row = replace(row, reason=f"unexpected {type(error).__name__}; --debug shows where")
    return replace(row, seconds=round(time.perf_counter() - started, 1)), notes


def _reason(error: InputError, path: VolumePath, number: int, keep_names: bool) -> str:
    if keep_names:
        return " ".join(str(error).split())
    return discreet(str(error), path, number).removeprefix(f"study {number}: ")  # the row begins with it


def _predict(path: VolumePath, predictor: VolumePredictor, out: Path, number: int, rules: BatchRules) -> _Done:
    """Predict one study, unless its result is there."""
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
        stem, key = study_stem(source, digest, options.keep_names), study_key(digest, source, predictor)
        if not (rules.overwrite or rules.again) and (found := finished(out, stem, key)):
            return _Done(*found, False, _notes(source, path, number, options))
        check_outputs(source, options)
        result = predictor(source, rules.on_progress, watch)
        notes = _notes(source, path, number, options)
        with OutputFolder(out, stem, overwrite=rules.overwrite) as folder:
            write_study(folder.path, Study(source, digest, stem, key, watch, notes), predictor, result)
            return _Done(folder.commit(), len(result.objects), True, notes)


def _notes(source: VolumeSource, path: VolumePath, number: int, options: VolumeOptions) -> list[str]:
    return [note if options.keep_names else discreet(note, path, number) for note in source.notes]
