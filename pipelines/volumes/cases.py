"""The labelled cases of a run config, and who is learned from, tuned on and held out: by patient, never by slice."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapters.errors import InputError
from pipelines.annotations.options import LabelOptions
from pipelines.config import DataItem, RunConfig, SplitOptions
from pipelines.volumes.layouts import Case, read_layout, split_by_patient
from pipelines.volumes.source import is_nifti, stem_of

ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class LabelledCase:
    """A case with labels, the part its config gives it (`auto`: the split decides), and how its labels are read."""

    case: Case
    role: str = "auto"
    options: LabelOptions = field(default_factory=LabelOptions)

    @property
    def labels(self) -> Path:
        assert self.case.labels is not None, "only labelled cases are gathered"
        return self.case.labels


@dataclass(frozen=True)
class CaseSplit:
    """Which cases do what. InputError where a patient has cases in two parts."""

    train: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...] = ()
    test: tuple[LabelledCase, ...] = ()

    def __post_init__(self) -> None:
        part: dict[str, str] = {}
        for role in ROLES:
            for one in getattr(self, role):
                if part.setdefault(one.case.patient, role) != role:
                    raise InputError(f"split: a patient has cases in two parts, {part[one.case.patient]} and {role}")


def gather_cases(config: RunConfig) -> list[LabelledCase]:
    """The labelled cases of all items of `config.data`, in order; cases without labels are left out.

    `source` is a folder with `dataset.json` (Medical Segmentation Decathlon, nnU-Net), a BIDS folder or a CSV file; or,
    with `labels`, an image (NIfTI file or DICOM folder) or a pattern of them: then `{stem}` and `{folder}` in `labels`
    and `patient` stand for the image's name and folder. Without `patient` an image is a patient of its own; of equal
    names (`*/CT.nii.gz`) the folder is; DICOM headers and BIDS names say it themselves.

    InputError where nothing is found or an image is named twice.
    """
    found = [one for item in config.data for one in _cases_of(item)]
    if not found:
        raise InputError(f"{config.data[0].source}: holds no labelled case")
    seen: dict[tuple[Path, ...], str] = {}
    for one in found:
        files = tuple(sorted(path.absolute() for path in one.case.images.values()))
        if files in seen:
            raise InputError(f"data: {files[0]} is named twice")
        seen[files] = one.case.name
    return found


def split_cases(cases: Sequence[LabelledCase], options: SplitOptions, fold: int | None = None) -> CaseSplit:
    """Deal cases out by patient: `role` where the config fixes it, else by folds (`fold` is held out) or shares.

    A patient with a fixed case goes there with all others. Equal options give equal splits, whatever the order.
    """
    fixed: dict[str, str] = {}
    for number, one in enumerate(cases, start=1):
        if one.role != "auto" and fixed.setdefault(one.case.patient, one.role) != one.role:
            # by number: a patient's name has no place in a log
            raise InputError(
                f"split: case {number} of {len(cases)} has role {one.role}, but another case of the same patient has "
                f"{fixed[one.case.patient]}; a patient stays on one side"
            )
    free = [one.case for one in cases if one.case.patient not in fixed]
    held: set[str] = set()
    if options.folds is not None and free:
        parts = split_by_patient(free, folds=options.folds, seed=options.seed)
        held = set(parts[fold or 0].patients)
    elif options.test and len({case.patient for case in free}) > 1:
        held = set(split_by_patient(free, share=options.test, seed=options.seed)[0].patients)
    rest = [case for case in free if case.patient not in held]
    tuned: set[str] = set()
    if options.validation and len({case.patient for case in rest}) > 1:
        share = options.validation / (1.0 if options.folds else 1 - options.test)
        tuned = set(split_by_patient(rest, share=share, seed=options.seed + 1)[0].patients)

    def role_of(one: LabelledCase) -> str:
        patient = one.case.patient
        return fixed.get(patient) or ("test" if patient in held else "validation" if patient in tuned else "train")

    roles = [role_of(one) for one in cases]
    train, validation, test = (tuple(c for c, r in zip(cases, roles) if r == role) for role in ROLES)
    return CaseSplit(train, validation, test)


def _cases_of(item: DataItem) -> Iterator[LabelledCase]:
    if item.labels is None:
        for case in read_layout(item.source):
            if case.labels is not None:
                owner = _patient_by_pattern(case, item.patient)
                yield LabelledCase(replace(case, patient=owner), item.role, item.label_options)
        return
    images = _images(item.source)
    stems = [stem_of(path) for path in images]
    for path, stem in zip(images, stems):
        labels = Path(_fill(item.labels, path, str(path.parent)))
        if not labels.exists():
            raise InputError(f"{path}: no such label file {labels}")
        alone = stems.count(stem) == 1
        name = stem if alone else f"{path.parent.name}/{stem}"
        owner = _owner(path, stem if alone else path.parent.name)
        if item.patient:
            owner = _fill(item.patient, path, path.parent.name)
        yield LabelledCase(Case(name, owner, {"": path}, labels), item.role, item.label_options)


def _images(source: str) -> list[Path]:
    """The path itself, or what fits the pattern."""
    if Path(source).exists() or not glob.has_magic(source):
        if not Path(source).exists():
            raise InputError(f"{source}: no such file or folder")
        return [Path(source)]
    pattern = Path(source).absolute()
    found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    # archives made on a Mac hold ._ files that are no images
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise InputError(f"{source}: no file fits this pattern")
    return found


def _fill(template: str, path: Path, folder: str) -> str:
    return template.replace("{stem}", stem_of(path)).replace("{folder}", folder)


def _owner(path: Path, name: str) -> str:
    """Whose an image is: of DICOM the patient in its header (a hash), of a BIDS name the subject, else `name`."""
    if path.is_dir() or not is_nifti(path):
        from pipelines.volumes.series import patient_hash, read_header

        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            header = read_header(file)
            if header is not None and (known := patient_hash(header)) != "anonymous":
                return known
            if header is not None:
                break
    found = re.match(r"sub-[A-Za-z0-9]+", name)
    return found[0] if found else name


def _patient_by_pattern(case: Case, pattern: str | None) -> str:
    """The first group of `pattern` in the case's name; the layout's own patient without a pattern."""
    if pattern is None:
        return case.patient
    try:
        found = re.search(pattern, case.name)
    except re.error as error:
        raise InputError(f"data: patient: not a regular expression: {error}") from error
    if found is None or not found.groups() or found[1] is None:
        raise InputError(f"data: patient: the name {case.name} does not fit '{pattern}' with one group in brackets")
    return found[1]


def describe(split: CaseSplit) -> str:
    """One line: how many cases and patients each part has; no names."""
    parts = []
    for role in ROLES:
        cases = getattr(split, role)
        parts.append(f"{role} {len(cases)} of {len({one.case.patient for one in cases})} patients")
    return ", ".join(parts)


def check_folds(cases: Sequence[LabelledCase], options: SplitOptions) -> None:
    """InputError where the folds cannot be made, or a part that is needed is empty."""
    for fold in range(options.folds or 1) if options.fold is None else (options.fold,):
        split = split_cases(cases, options, fold)
        if not split.train:
            count = len({one.case.patient for one in cases})
            raise InputError(f"split: leaves nothing to train on; there are {count} patients; see `split` and `role`")
