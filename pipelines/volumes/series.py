"""DICOM series: found in a folder, sorted by their place in the patient, checked, and one of them chosen.

Nothing here that goes into a message or a log holds a patient's name: patients are told apart by a hash, and the words
of their names and numbers are taken out of descriptions.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from adapters.errors import InputError
from adapters.reading import listing
from adapters.volume import SeriesRule
from pipelines.volumes.discretion import discreet_pydicom

# Objects that speak about images and hold none of a scan.
_NOT_SCANS = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "PR", "SR", "KO", "REG", "DOC", "OT", "RWV", "FID"}
EVEN = 0.05  # of the step: how far a slice may lie from its place on an even grid
TILT = 0.01  # radians between the stack's direction and the slices' normal: 0.3 voxels over 30 slices
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "Modality",
    "SeriesDescription", "SeriesNumber", "InstanceNumber", "Rows", "Columns", "PixelSpacing", "SliceThickness",
    "ImagePositionPatient", "ImageOrientationPatient", "ImageType", "NumberOfFrames", "SamplesPerPixel", "EchoTime",
    "AcquisitionNumber", "TemporalPositionIdentifier", "FrameOfReferenceUID", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "SpacingBetweenSlices", "BitsAllocated",
]  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One picture of a series. position: (3,) LPS mm of its first pixel. frame: number in a multi-frame file."""

    path: Path
    frame: int | None
    position: tuple[float, float, float]
    instance: str
    split: tuple[str, ...] = ()  # what tells apart slices at one place: echo, acquisition, time


@dataclass(frozen=True)
class Series:
    """A stack of slices with one orientation and pixel grid, sorted along the slices' normal.

    orientation: six cosines, the row direction first (LPS). pixel: mm between rows, between columns. patient: a hash.
    problems: what keeps the stack from being an even grid, one line each; `tilt` degrees and `offsets` (mm along the
    stack) are the numbers behind them. passed_over: files left out, with the reason.
    """

    uid: str
    modality: str
    description: str
    number: int | None
    patient: str
    study: str
    rows: int
    columns: int
    orientation: tuple[float, ...]
    pixel: tuple[float, float]
    slices: tuple[Slice, ...]
    image_type: tuple[str, ...] = ()
    part: int = 1
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    frame_of_reference: str = ""

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the slices, LPS."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)

    @property
    def positions(self) -> NDArray[np.float64]:
        """(N, 3) LPS mm."""
        return np.array([s.position for s in self.slices], np.float64)

    @property
    def offsets(self) -> NDArray[np.float64]:
        """(N,) mm along the normal, rising."""
        return self.positions @ self.normal

    @property
    def step(self) -> float:
        """mm between slices: the median of the distances."""
        return float(np.median(np.diff(self.offsets))) if len(self.slices) > 1 else 0.0

    @property
    def tilt(self) -> float:
        """Radians between the direction of the stack and the normal."""
        if len(self.slices) < 2:
            return 0.0
        way = self.positions[-1] - self.positions[0]
        return float(np.arccos(np.clip(way @ self.normal / max(np.linalg.norm(way), 1e-12), -1, 1)))

    def describe(self) -> str:
        """One line without names: `CT, 47 slices of 3.27 mm, 134x136, 'thorax', series 1.2.3`."""
        words = f"'{self.description}', " if self.description else ""
        part = f" part {self.part}" if self.part > 1 else ""
        return (
            f"{self.modality or 'unknown modality'}, {len(self.slices)} slices of {self.step:.3g} mm, "
            f"{self.rows}x{self.columns}, {words}series {self.uid}{part}"
        )


@dataclass(frozen=True)
class Choice:
    """The series taken, and the others with the reason why not."""

    series: Series
    passed_over: tuple[tuple[Series, str], ...]

    def notes(self) -> list[str]:
        """One line for the choice and one for each series passed over."""
        taken = [f"taken: {self.series.describe()}"]
        return taken + [f"passed over: {one.describe()}: {why}" for one, why in self.passed_over]


def patient_hash(dataset: Any) -> str:
    """Ten hex digits that stand for a patient in messages; of the PatientID, or the name where there is none."""
    text = str(dataset.get("PatientID", "") or dataset.get("PatientName", "") or "")
    return hashlib.sha256(text.encode()).hexdigest()[:10] if text else "anonymous"


def find_series(folder: str | Path) -> list[Series]:
    """All image series in a folder, however deep, or of one file; sorted by modality, number and UID.

    Only headers are read. Files that are no DICOM are passed over. InputError where there is no DICOM image at all.
    """
    where = Path(folder)
    files = [where] if where.is_file() else sorted(p for p in where.rglob("*") if p.is_file())
    groups: dict[tuple, list[tuple[Any, Slice]]] = defaultdict(list)
    others: dict[str, int] = defaultdict(int)
    for path in files:
        dataset = read_header(path)
        if dataset is None:
            continue
        why = _no_picture(dataset)
        if why is None:
            for key, one in _slices(dataset, path):
                if key is None:
                    others["pictures without a place in the patient"] += 1
                else:
                    groups[key].append((dataset, one))
        else:
            others[why] += 1
    if not groups:
        found = listing(f"{n} {why}" for why, n in others.items()) if others else f"{len(files)} files, none DICOM"
        raise InputError(f"{where}: no DICOM image of a volume; found {found}")
    found_series = [s for key, members in groups.items() for s in _stacks(key, members)]
    found_series.sort(key=lambda s: (s.patient, s.modality, s.number or 0, s.uid, -len(s.slices)))
    count: dict[str, int] = defaultdict(int)
    result = []
    for series in found_series:
        count[series.uid] += 1
        result.append(replace(series, part=count[series.uid]))
    return result


def read_header(path: Path) -> Any | None:
    """The tags that matter, or None where the file is no DICOM."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
        # Old files begin with a tag of group 2 or 8 instead of the preamble.
        bare = head[:2] in (b"\x08\x00", b"\x02\x00") and len(head) == 132
        if head[128:] != b"DICM" and not bare:
            return None
        with discreet_pydicom():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=bare, specific_tags=_TAGS)
        return dataset if "SOPClassUID" in dataset or "Rows" in dataset else None
    except (OSError, ValueError, KeyError, AttributeError, EOFError, pydicom.errors.InvalidDicomError, TypeError):
        return None


def choose_series(
    series: Sequence[Series], rule: SeriesRule | None = None, uid: str | None = None, where: object = "folder"
) -> Choice:
    """One series: the one whose UID is (or ends in) `uid`, else by the rule.

    Among several that fit: no localiser, an even grid, the most slices, the finest step, the first UID. InputError
    where none fits, or where they belong to different patients and no UID says which.
    """
    if uid is not None:
        return _by_uid(series, uid, where)
    patients = sorted({s.patient for s in series})
    if len(patients) > 1:
        counts = listing(f"{p} ({sum(s.patient == p for s in series)} series)" for p in patients)
        raise InputError(f"{where}: holds series of {len(patients)} patients: {counts}; choose one with --series UID")
    rule = rule or SeriesRule()
    reasons = [rule.refuses(s.modality, s.description, s.step, len(s.slices)) for s in series]
    fitting = [s for s, why in zip(series, reasons) if why is None]
    if not fitting:
        raise InputError(f"{where}: no series fits: {listing(f'{s.describe()}: {w}' for s, w in zip(series, reasons))}")

    def order(one: Series) -> tuple:
        return "LOCALIZER" in one.image_type, bool(one.problems), -len(one.slices), one.step, one.uid, one.part

    best = min(fitting, key=order)
    why_not = ("a localiser", "an uneven grid", "fewer slices", "a coarser step", "a later UID", "a later part")

    def compared(one: Series) -> str:
        pairs = zip(why_not, order(one), order(best))
        return next(words for words, mine, theirs in pairs if mine != theirs)

    rest = [(s, why or compared(s)) for s, why in zip(series, reasons) if s is not best]
    return Choice(best, tuple(rest))


def _by_uid(series: Sequence[Series], uid: str, where: object) -> Choice:
    wanted, _, part = uid.partition("#")
    found = [s for s in series if s.uid == wanted] or [s for s in series if len(wanted) > 3 and s.uid.endswith(wanted)]
    if part:
        found = [s for s in found if str(s.part) == part]
    if not found:
        raise InputError(f"{where}: no series {uid}; there are {listing(s.describe() for s in series)}")
    if len({s.uid for s in found}) > 1:
        raise InputError(f"{where}: {uid} could be any of {listing(s.describe() for s in found)}")
    best = max(found, key=lambda s: (not s.problems, len(s.slices), -s.part))
    return Choice(best, tuple((s, "not the one asked for") for s in series if s is not best))


def _no_picture(dataset: Any) -> str | None:
    modality = str(dataset.get("Modality", ""))
    if modality in _NOT_SCANS or "Rows" not in dataset or "Columns" not in dataset:
        return f"{modality or 'unknown'} objects without a scan"
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        return "colour pictures"
    return None


def _slices(dataset: Any, path: Path) -> Iterable[tuple[tuple | None, Slice]]:
    """Key of the stack and slice of every frame; key None where a frame has no place in the patient."""
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    instance = str(dataset.get("SOPInstanceUID", path.name))
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        position, cosines = dataset.get("ImagePositionPatient"), dataset.get("ImageOrientationPatient")
        split = tuple(str(dataset.get(t, "")) for t in ("EchoTime", "AcquisitionNumber", "TemporalPositionIdentifier"))
        key = _key(dataset, cosines, dataset.get("PixelSpacing")) if frames == 1 else None
        place = _numbers(position, 3)
        yield (key if place else None), Slice(path, None, place or (0.0, 0.0, 0.0), instance, split)
        return
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        position = _group(group, shared, "PlanePositionSequence", "ImagePositionPatient")
        cosines = _group(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _group(group, shared, "PixelMeasuresSequence", "PixelSpacing")
        content = _first(group.get("FrameContentSequence"))
        split = () if content is None else (str(content.get("TemporalPositionIndex", "")),)
        place = _numbers(position, 3)
        key = _key(dataset, cosines, spacing) if place else None
        yield key, Slice(path, number, place or (0.0, 0.0, 0.0), f"{instance}/{number}", split)


def _key(dataset: Any, cosines: Any, spacing: Any) -> tuple | None:
    direction, pixel = _numbers(cosines, 6), _numbers(spacing, 2)
    if direction is None or pixel is None or min(pixel) <= 0:
        return None
    if np.linalg.norm(np.cross(direction[:3], direction[3:])) < 0.5:
        return None
    # 1e-3: scanners write the same cosines with different last digits on every slice
    return (
        str(dataset.get("SeriesInstanceUID", "")),
        int(dataset.Rows),
        int(dataset.Columns),
        tuple(round(c, 3) + 0.0 for c in direction),
        tuple(round(p, 4) for p in pixel),
        patient_hash(dataset),
    )


def _stacks(key: tuple, members: list[tuple[Any, Slice]]) -> list[Series]:
    """The series of one key; several where slices at one place differ in echo, acquisition or time."""
    unique: dict[str, tuple[Any, Slice]] = {}
    for dataset, one in members:
        unique.setdefault(one.instance, (dataset, one))
    doubles = len(members) - len(unique)
    kept = list(unique.values())
    head = kept[0][0]
    notes = [f"{doubles} files repeat slices that are there already and were left out"] if doubles else []
    parts = _parts(kept, _numbers(_orientation_of(head), 6) or key[3])
    return [_series(key, head, part, notes if i == 0 else []) for i, part in enumerate(parts)]


def _parts(kept: list[tuple[Any, Slice]], cosines: Sequence[float]) -> list[list[Slice]]:
    slices = [one for _, one in kept]
    normal = np.cross(cosines[:3], cosines[3:])
    places = [round(float(np.dot(s.position, normal)), 2) for s in slices]
    if len(set(places)) == len(places):
        return [slices]
    width = max(len(s.split) for s in slices)
    for chosen in range(width):  # the first attribute that leaves one slice a place
        groups: dict[str, list[int]] = defaultdict(list)
        for i, one in enumerate(slices):
            groups[one.split[chosen] if chosen < len(one.split) else ""].append(i)
        if len(groups) > 1 and all(len({places[i] for i in g}) == len(g) for g in groups.values()):
            return [[slices[i] for i in groups[name]] for name in sorted(groups)]
    return [slices]


def _orientation_of(dataset: Any) -> Any:
    if "ImageOrientationPatient" in dataset:
        return dataset.ImageOrientationPatient
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    return _group(_first(dataset.get("PerFrameFunctionalGroupsSequence")), shared, "PlaneOrientationSequence",
                  "ImageOrientationPatient")  # fmt: skip


def _series(key: tuple, head: Any, slices: list[Slice], notes: list[str]) -> Series:
    uid, rows, columns, rounded, pixel, patient = key
    exact = _numbers(_orientation_of(head), 6) or rounded
    spacing = _numbers(head.get("PixelSpacing"), 2) or pixel
    number = head.get("SeriesNumber")
    series = Series(
        uid, str(head.get("Modality", "") or ""), _clean(head), int(number) if str(number).isdigit() else None, patient,
        str(head.get("StudyInstanceUID", "")), rows, columns, tuple(exact), (spacing[0], spacing[1]), tuple(slices),
        tuple(str(w) for w in head.get("ImageType", None) or ()), notes=tuple(notes),
        frame_of_reference=str(head.get("FrameOfReferenceUID", "") or ""),
    )  # fmt: skip
    order = np.argsort(series.offsets, kind="stable")
    series = replace(series, slices=tuple(series.slices[i] for i in order))
    return replace(series, problems=tuple(_problems(series)))


def _problems(series: Series) -> list[str]:
    """What keeps the slices from lying on an even, right-angled grid, with the numbers."""
    if len(series.slices) < 2:
        return []
    found = []
    gaps = np.diff(series.offsets)
    same = int((gaps < 1e-2).sum())
    if same:
        place = series.offsets[:-1][gaps < 1e-2][0]
        return [f"{same} slices share a place with another (first at {place:.2f} mm): several scans in one series?"]
    step = series.step
    apart = np.abs(gaps - step)
    # every slice may lie off by a share of the step; distances add up, so places are compared as well
    even = series.offsets[0] + np.arange(len(gaps) + 1) * (series.offsets[-1] - series.offsets[0]) / len(gaps)
    if apart.max() > EVEN * step or np.abs(series.offsets - even).max() > EVEN * step:
        whole = np.round(gaps / step)
        if len(gaps) > 1 and (np.abs(gaps - whole * step) <= EVEN * step).all() and whole.max() > 1:
            holes = [(i, int(n) - 1) for i, n in enumerate(whole) if n > 1]
            places = listing(f"{n} after slice {i + 1} (at {series.offsets[i]:.2f} mm)" for i, n in holes)
            found.append(f"{sum(n for _, n in holes)} slices are missing: {places}; the step is {step:.4g} mm")
        else:
            found.append(
                f"slices are unevenly spaced: {gaps.min():.4g} to {gaps.max():.4g} mm, most often {step:.4g} mm"
            )
    if series.tilt > TILT:
        found.append(f"the gantry is tilted: the stack leans {np.degrees(series.tilt):.2f} degrees off its slices")
    return found


def _clean(dataset: Any) -> str:
    """The series' description without the words of the patient's name and number, on one line, cut at 64 letters."""
    text = " ".join(str(dataset.get("SeriesDescription", "") or "").split())
    for tag in ("PatientName", "PatientID"):
        for word in re.split(r"[\^=\s,._-]+", str(dataset.get(tag, "") or "")):
            if len(word) >= 3:
                text = re.sub(re.escape(word), "***", text, flags=re.IGNORECASE)
    return "".join(c for c in text if c.isprintable())[:64]


def _group(group: Any, shared: Any, sequence: str, name: str) -> Any:
    for holder in (group, shared):
        item = None if holder is None else _first(holder.get(sequence))
        if item is not None and name in item:
            return item[name].value
    return None


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence is not None and len(sequence) else None


def _numbers(values: Any, count: int) -> Any:
    """A tuple of `count` finite floats, or None."""
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and np.isfinite(found).all() else None
