"""Folders of cases for training: Medical Segmentation Decathlon / nnU-Net, BIDS, CSV; and splits by patient."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from adapters.reading import listing
from pipelines.volumes.source import is_nifti, stem_of

_LABEL_SUFFIXES = ("dseg", "mask", "label", "lesion", "seg")
_COLUMNS = {"patient": ("patient", "subject", "case", "id"), "labels": ("labels", "label", "mask", "segmentation")}


@dataclass(frozen=True)
class Case:
    """One study: its images by channel name ("" for a single one), its labels, and whose it is."""

    name: str
    patient: str
    images: Mapping[str, Path]
    labels: Path | None = None

    @property
    def image(self) -> Path | Mapping[str, Path]:
        """What `open_volume` takes."""
        return next(iter(self.images.values())) if len(self.images) == 1 else self.images


@dataclass(frozen=True)
class PatientSplit:
    """Cases to learn from and cases held out; no patient is on both sides."""

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    patients: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        both = {c.patient for c in self.train} & {c.patient for c in self.test}
        if both:
            raise InputError(f"split: {len(both)} of the patients are on both sides")  # no names: errors end up in logs


def read_layout(path: str | Path) -> list[Case]:
    """The cases of a folder with `dataset.json`, of a BIDS folder (`sub-*`), or of a CSV file.

    Sorted by name. InputError where the layout is none of them, names a file that is not there, or has no case.
    """
    where = Path(path)
    if where.is_file() and where.suffix.casefold() == ".csv":
        cases = read_table(where)
    elif where.is_file() and where.name == "dataset.json":
        cases = read_decathlon(where.parent)
    elif not where.is_dir():
        raise InputError(f"{where}: expected a folder of cases or a CSV file")
    elif (where / "dataset.json").is_file() or (where / "imagesTr").is_dir():
        cases = read_decathlon(where)
    elif any(where.glob("sub-*")):
        cases = read_bids(where)
    else:
        raise InputError(f"{where}: expected dataset.json and imagesTr, folders named sub-*, or a CSV file")
    if not cases:
        raise InputError(f"{where}: holds no case")
    doubles = [c.name for i, c in enumerate(cases) if c.name in {d.name for d in cases[:i]}]
    if doubles:
        raise InputError(f"{where}: named twice: {listing(doubles)}")
    return sorted(cases, key=lambda c: c.name)


def read_decathlon(folder: str | Path) -> list[Case]:
    """Medical Segmentation Decathlon (4-D files) and nnU-Net (a file a channel, `_0000`); training cases only.

    Channel names are those of `dataset.json` (`channel_names`, `modality`). Without the list of cases the files of
    imagesTr and labelsTr are paired by name. The patient is the case: the format knows no more.
    """
    where = Path(folder)
    about = _json(where / "dataset.json") if (where / "dataset.json").is_file() else {}
    named = about.get("channel_names") or about.get("modality") or {}
    names = {int(k): str(v) for k, v in named.items()} if isinstance(named, Mapping) else dict(enumerate(named))
    pictures = _files(where / "imagesTr")
    labels = {stem_of(p): p for p in _files(where / "labelsTr")}
    listed = about.get("training")
    if isinstance(listed, list) and listed and isinstance(listed[0], Mapping):
        return [_listed(where, item, pictures, names) for item in listed]
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in pictures:
        stem, channel = _channel(path, names, len(pictures) > len(labels) or bool(about.get("channel_names")))
        groups[stem][channel] = path
    return [Case(stem, stem, images, labels.get(stem)) for stem, images in groups.items()]


def read_bids(folder: str | Path) -> list[Case]:
    """BIDS: `sub-X[/ses-Y]/<datatype>/sub-X[_ses-Y]_..._<suffix>.nii.gz`; a case a session, a patient a subject.

    Labels are files whose suffix or `desc`/`label` entity says so (dseg, mask, lesion), there or in `derivatives`.
    """
    where = Path(folder)
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    labels: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for p in where.rglob("sub-*") if p.is_file() and is_nifti(p)):
        stem = stem_of(path)
        found = re.match(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?", stem)
        if found is None:
            continue
        name = "_".join(p for p in found.groups() if p)
        suffix = stem.rsplit("_", 1)[-1]
        rest = stem[found.end() :].strip("_")
        if suffix.casefold() in _LABEL_SUFFIXES:
            labels[name].append(path)
        elif "derivatives" not in path.relative_to(where).parts:
            cases[name][rest or suffix] = path
    many = {n: ps for n, ps in labels.items() if len(ps) > 1}
    for name, paths in many.items():
        raise InputError(f"{where}: {name} has {len(paths)} label files: {listing(p.name for p in paths)}")
    return [
        Case(name, name.split("_")[0], images, labels[name][0] if name in labels else None)
        for name, images in cases.items()
    ]


def read_table(path: str | Path) -> list[Case]:
    """A CSV with a column `labels`, a column `patient` (else each row is one), and one column an image channel.

    Paths are relative to the file. The column `image` holds a single channel; a column `name` names the cases.
    """
    where = Path(path)
    try:
        with where.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where}: cannot be read as CSV: {error}") from error
    if not rows:
        raise InputError(f"{where}: holds no row")
    columns = {str(c): str(c).strip().casefold() for c in rows[0] if c is not None}
    special = {kind: next((c for c, k in columns.items() if k in names), None) for kind, names in _COLUMNS.items()}
    name_column = next((c for c, k in columns.items() if k == "name"), None)
    pictures = [c for c in columns if c not in (*special.values(), name_column)]
    if not pictures:
        raise InputError(f"{where}: expected a column `image` or one a channel; found {listing(columns)}")
    cases = []
    for number, row in enumerate(rows, start=2):
        images = {c: _there(where, (row[c] or "").strip(), number) for c in pictures if (row.get(c) or "").strip()}
        if not images:
            raise InputError(f"{where}: line {number} names no image")
        if len(pictures) == 1:
            images = {"": next(iter(images.values()))}
        label = (row.get(special["labels"] or "") or "").strip()
        default = stem_of(next(iter(images.values())))
        patient = (row.get(special["patient"] or "") or "").strip() or default
        name = (row.get(name_column or "") or "").strip() or default
        cases.append(Case(name, patient, images, _there(where, label, number) if label else None))
    return cases


def split_by_patient(
    cases: Sequence[Case], folds: int | None = None, share: float | None = None, seed: int = 0
) -> list[PatientSplit]:
    """`folds` splits in which every patient is held out once, or one split that holds out `share` of the patients.

    All cases of a patient stay on one side. Equal seeds give equal splits, whatever the order of the cases.
    ValueError unless exactly one of folds and share is given; InputError where there are too few patients.
    """
    if (folds is None) == (share is None):
        raise ValueError("expected either folds or share")
    patients = sorted({c.patient for c in cases})
    random.Random(seed).shuffle(patients)
    if folds is not None:
        if folds < 2 or len(patients) < folds:
            raise InputError(f"split: {folds} folds need as many patients (2 or more); there are {len(patients)}")
        held = [patients[i::folds] for i in range(folds)]
    else:
        assert share is not None
        if not 0 < share < 1 or len(patients) < 2:
            raise InputError(f"split: expected a share between 0 and 1 of two patients or more, found {share}")
        held = [patients[: min(len(patients) - 1, max(1, round(share * len(patients))))]]
    ordered = sorted(cases, key=lambda c: c.name)
    return [
        PatientSplit(
            tuple(c for c in ordered if c.patient not in out),
            tuple(c for c in ordered if c.patient in out),
            tuple(sorted(out)),
        )
        for out in held
    ]


def check_patients(cases: Sequence[Case], train: Sequence[str], test: Sequence[str]) -> PatientSplit:
    """A split that someone wrote down, by names of cases; InputError where it parts a patient or names no case."""
    known = {c.name: c for c in cases}
    unknown = [n for n in (*train, *test) if n not in known]
    if unknown:
        raise InputError(f"split: no case {listing(unknown)}; there are {listing(known)}")
    held = tuple(known[n] for n in test)
    return PatientSplit(tuple(known[n] for n in train), held, tuple(sorted({c.patient for c in held})))


def _listed(where: Path, item: Mapping[str, Any], pictures: Sequence[Path], names: Mapping[int, str]) -> Case:
    """A case of the decathlon's list; the list may leave out nnU-Net's `_0000`."""
    label = where / str(item.get("label", ""))
    path = where / str(item.get("image", ""))
    stem = stem_of(path)
    if path.is_file():
        images = {"": path}
    else:
        parts = [p for p in pictures if re.fullmatch(re.escape(stem) + r"_\d{4}", stem_of(p))]
        images = {_channel(p, names, True)[1]: p for p in parts}
    if not images or not label.is_file():
        raise InputError(f"{where / 'dataset.json'}: names {path.name} and {label.name}; one of them is not there")
    return Case(stem, stem, images, label)


def _channel(path: Path, names: Mapping[int, str], split: bool) -> tuple[str, str]:
    """(case, channel) of a file name; without channels in the names the channel is ""."""
    stem = stem_of(path)
    found = re.fullmatch(r"(.+)_(\d{4})", stem) if split else None
    return (stem, "") if found is None else (found[1], names.get(int(found[2]), found[2]))


def _files(folder: Path) -> list[Path]:
    # archives made on a Mac hold ._ files that are no images
    return sorted(p for p in folder.glob("*") if is_nifti(p) and not p.name.startswith(".")) if folder.is_dir() else []


def _there(table: Path, name: str, number: int) -> Path:
    path = table.parent / name
    if not path.exists():
        raise InputError(f"{table}: line {number}: no such file {name}")
    return path


def _json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: expected an object, found {type(data).__name__}")
    return data
