"""What is this volume, and would a model take it: the part of `maskbridge inspect` for CT and MR. Headers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.config import RunConfig
from pipelines.volumes.source import VolumeSource, nifti_files, open_volume

NIFTI = (".nii", ".nii.gz")  # not .img, which is a picture of the earth more often than half a NIfTI


def is_volume(path: Path) -> bool:
    """Whether a path is a study: a NIfTI or DICOM file, a folder with NIfTI files in it or DICOM below it."""
    from pipelines.volumes.dicom import holds_dicom

    if path.is_file() and path.name.casefold().endswith(NIFTI):
        return True
    return bool(path.is_dir() and nifti_files(path)) or holds_dicom(path)


def describe_volume(path: Path, model: str | None = None) -> dict[str, Any]:
    """Grid, channels and what was chosen; with `model` whether it takes the volume, and on which grid.

    InputError where the volume cannot be read.
    """
    adapter = None
    if model is not None:
        from pipelines.bundle import load_bundle

        adapter = load_bundle(model, check_shapes=False).adapter
    rule = adapter.volume.series if adapter and adapter.volume else None
    findings: dict[str, Any]
    with open_volume(path, rule=rule) as source:
        findings = {"kind": f"volume ({'NIfTI' if source.kind == 'nifti' else 'DICOM'})", "path": str(path)}
        findings |= {"grid": source.geometry.describe(), "modality": source.modality, "values": str(source.dtype)}
        findings |= {"channels": [name or "1" for name in source.channels], "notes": list(source.notes)}
    if adapter is not None and model is not None:
        findings["model"] = {"name": model, **_fit(path, adapter)}
        if not findings["model"]["runs"]:
            findings["problems"] = [findings["model"]["why"]]
    return findings


def _fit(path: Path, adapter: DomainAdapter) -> dict[str, Any]:
    rules = adapter.volume
    if rules is None:
        return {"runs": False, "why": "the model is for scenes and pictures, and this is a volume"}
    try:
        with open_volume(path, adapter.channels, rule=rules.series) as source:
            return {"runs": True, "grid": _seen(source, adapter), "channels": list(source.channels)}
    except InputError as error:
        return {"runs": False, "why": str(error)}


def _seen(source: VolumeSource, adapter: DomainAdapter) -> str:
    """The grid the model would see."""
    from pipelines.volumes.resampling import plan_resampling

    assert adapter.volume is not None
    return plan_resampling(source.geometry, adapter.volume.orientation, adapter.spacing).target.describe()


def describe_cases(config: RunConfig) -> dict[str, Any]:
    """How many labelled cases and patients a run config of volumes finds, or why none, as `problems`."""
    from pipelines.volumes.cases import check_folds, gather_cases

    try:
        cases = gather_cases(config)
        check_folds(cases, config.split)
    except InputError as error:
        return {"problems": [str(error)]}
    return {"cases": len(cases), "patients": len({one.case.patient for one in cases}), "problems": []}
