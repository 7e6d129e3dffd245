"""The files of one predicted study: labels, objects, table, DICOM, report, run.json."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.manifest import Stopwatch, peak_rss_bytes
from pipelines.provenance import versions
from pipelines.sinks.folder import atomic_write, sha256
from pipelines.volumes.discretion import discreet_pydicom
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.prediction import VolumePredictor, VolumeResult
from pipelines.volumes.sinks import NOTICE
from pipelines.volumes.sinks.invented import NOTE as INVENTED
from pipelines.volumes.sinks.invented import STORED, dicom_geometry, invented_series
from pipelines.volumes.sinks.nifti import write_labels, write_objects
from pipelines.volumes.sinks.rtstruct import write_structures
from pipelines.volumes.sinks.seg import write_seg
from pipelines.volumes.sinks.table import largest_diameters, write_table
from pipelines.volumes.slicing import transposed
from pipelines.volumes.source import VolumeSource, stem_of


@dataclass(frozen=True)
class Study:
    """An opened study on its way to files. notes: what a reader has to know, without names of patients or files."""

    source: VolumeSource
    digest: str
    stem: str
    key: str
    watch: Stopwatch
    notes: list[str] = field(default_factory=list)


def study_key(digest: str, source: VolumeSource, predictor: VolumePredictor) -> str:
    """Hash of everything that could move a voxel."""
    parts = [digest, source.extra.get("series"), predictor.model.digest or predictor.model.sha256]
    parts += [predictor.options.model_dump(mode="json"), predictor.settled.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def study_stem(source: VolumeSource, digest: str, keep_names: bool) -> str:
    """Name of the study's folder: a hash, or on request the input's name without what does not belong in a name."""
    if not keep_names:
        series = str(source.extra.get("series", ""))
        return "study-" + hashlib.sha256(f"{digest} {series}".encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.+-]+", "_", stem_of(source.path.absolute())).strip("._")
    return name[:100] or "study"


def finished(out: Path, stem: str, key: str) -> tuple[Path, int] | None:
    """The folder of an earlier run with this very key whose files are all there, and its number of objects."""
    for folder in sorted(out.glob(f"{stem}*")):
        try:
            manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if manifest["key"] == key and all((folder / name).is_file() for name in manifest["outputs"]):
                return folder, int(manifest["objects"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def write_study(folder: Path, study: Study, predictor: VolumePredictor, result: VolumeResult) -> None:
    """All files of a study; run.json is the last."""
    source, classes = study.source, predictor.model.adapter.classes
    header = source.reference if source.kind == "nifti" else None
    with study.watch.stage("write"):
        write_labels(folder / "labels.nii.gz", result.labels, source.geometry, classes, header)
        write_objects(folder / "objects.nii.gz", result.objects, source.geometry, classes, header)
        diameters = largest_diameters(result.objects, source.geometry)
        write_table(folder / "objects.csv", result.objects, source.geometry, classes, diameters)
    if result.torn:
        study.notes.append(f"{result.torn} objects are in two pieces: please report this")
    with discreet_pydicom():
        _write_dicom(folder, study, predictor, result.objects)
    if predictor.options.report:
        from pipelines.volumes.report import write_study_report

        with study.watch.stage("report"):
            write_study_report(folder / "report.html", study, predictor, result, diameters)
    _write_manifest(folder / "run.json", study, predictor, result)


@dataclass(frozen=True)
class _Referred:
    """What DICOM objects refer to: the slices' headers, and the grid and objects in their order."""

    series: list[Any]
    geometry: VolumeGeometry
    objects: MaskSet


def _write_dicom(folder: Path, study: Study, predictor: VolumePredictor, objects: MaskSet) -> None:
    options, model = predictor.options, predictor.model
    seg = options.seg if options.seg is not None else study.source.kind == "dicom"
    if not seg and not options.rtstruct:
        return
    referred = _referred(study, predictor, objects)
    if referred is None:
        return
    if not len(objects):
        study.notes.append("no DICOM file: nothing was found, and one cannot be without segments")
        return
    classes = model.adapter.classes
    if seg:
        with study.watch.stage("seg"):
            path = folder / "segmentation.dcm"
            write_seg(path, referred.objects, referred.series, classes, model.name, model.version or model.sha256)
    if options.rtstruct:
        with study.watch.stage("rtstruct"):
            path = folder / "structures.dcm"
            write_structures(path, referred.objects, referred.geometry, referred.series, classes, model.name)


def check_outputs(source: VolumeSource, options: VolumeOptions) -> None:
    """InputError, before anything is predicted, where DICOM output was asked for and cannot be."""
    if not options.seg and not options.rtstruct:
        return
    if source.kind == "nifti":
        dicom_geometry(source.geometry)
    elif source.reference is None:
        raise InputError(f"{source.path}: its slices were resampled: no DICOM-SEG or RTSTRUCT can refer to them")


def _referred(study: Study, predictor: VolumePredictor, objects: MaskSet) -> _Referred | None:
    """The series that DICOM objects refer to; None with a note where there is none."""
    source = study.source
    if source.kind == "nifti":
        geometry = dicom_geometry(source.geometry)
        series = invented_series(geometry, study.digest, predictor.model.rules.series.modality)
        study.notes.append(INVENTED)
        return _Referred(series, geometry, transposed(objects, STORED))
    if source.reference is None:
        study.notes.append("no segmentation.dcm: the slices were resampled, no series on this grid can be referred to")
        return None
    return _Referred(source.reference, source.geometry, objects)


def _write_manifest(path: Path, study: Study, predictor: VolumePredictor, result: VolumeResult) -> None:
    """run.json: no names of files or patients in it."""
    model, source = predictor.model, study.source
    manifest: dict[str, Any] = {
        "notice": NOTICE,
        "version": version("maskbridge"),
        "key": study.key,
        "model": {"name": model.name, "version": model.version, "sha256": model.sha256, "folds": 1 + len(model.folds)},
        "source": {
            "name": study.stem,
            "sha256": study.digest,
            "kind": source.kind,
            "modality": source.modality,
            "channels": list(source.channels),
            **source.geometry.to_dict(),
        },
        "parameters": predictor.options.model_dump(mode="json"),
        "settled": {k: getattr(predictor.settled, k) for k in ("task", "score", "mask", "device", "precision")},
        "timings_s": study.watch.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "objects": len(result.objects),
        "torn_objects": result.torn,
        "outputs": {p.name: sha256(p) for p in sorted(path.parent.iterdir()) if p.is_file()},
        "warnings": study.notes,
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
