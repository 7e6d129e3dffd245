"""RTSTRUCT: polygons in millimetres, drawn slice by slice, to masks. Holes by the even-odd rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from adapters.errors import InputError
from pipelines.volumes.discretion import discreet_pydicom
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.resampling import pile

if TYPE_CHECKING:
    from pipelines.volumes.labels import VolumeLabels

_AREAS = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR"}
_FLAT = 0.1  # slices that a contour's points may differ by: more is a contour drawn on another plane


def read_structures(path: Path, geometry: VolumeGeometry, frame_of_reference: str | None = None) -> VolumeLabels:
    """Every structure as one object on the volume's grid, with its name; overlaps kept.

    A voxel belongs to a structure if its centre lies inside an odd number of its contours on that slice. Where
    contours are drawn more finely than the slices, each slice takes the nearest drawn plane.
    """
    from pipelines.volumes.labels import VolumeLabels

    dataset = _load(path)
    names = {int(r.ROINumber): str(r.get("ROIName", "") or f"structure {r.ROINumber}") for r in dataset.get(
        "StructureSetROISequence", [])}  # fmt: skip
    frames = {str(r.get("ReferencedFrameOfReferenceUID", "")) for r in dataset.get("StructureSetROISequence", [])}
    if frame_of_reference and frames - {"", frame_of_reference}:
        raise InputError(f"{path}: its contours are drawn in another frame of reference than the scan's")
    notes: list[str] = []
    parts: list[tuple[int, NDArray[np.bool_], tuple[int, int, int]]] = []
    found: list[str] = []
    for item in dataset.get("ROIContourSequence", []):
        name = names.get(int(item.ReferencedROINumber), f"structure {item.ReferencedROINumber}")
        boxes = _structure(path, name, item, geometry, notes)
        if boxes:
            parts += [(len(found), mask, offset) for mask, offset in boxes]
            found.append(name)
        else:
            notes.append(f"'{name}' has no voxel in the volume")
    if not found:
        raise InputError(f"{path}: no structure has a contour in the volume; it names {', '.join(names.values())}")
    unique = list(dict.fromkeys(found))
    objects = pile(geometry.shape, parts, len(found)).with_labels([unique.index(n) for n in found])
    return VolumeLabels(objects, tuple(unique), None, tuple(notes))


def fill(contours: list[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Even-odd filling: (N, 2) closed polygons (row, column), voxel centres at whole numbers -> mask of `shape`.

    A centre on a left or upper edge is inside, on a right or lower one outside, so neighbours share no voxel.
    """
    toggles = np.zeros((shape[0], shape[1] + 1), np.int32)
    for points in contours:
        ends = np.roll(points, -1, axis=0)
        for (y1, x1), (y2, x2) in zip(points, ends):
            if y1 == y2:
                continue
            low, high = (y1, y2) if y1 < y2 else (y2, y1)
            rows = np.arange(max(0, int(np.ceil(low))), min(shape[0], int(np.ceil(high))))
            columns = np.ceil(x1 + (rows - y1) * (x2 - x1) / (y2 - y1)).astype(np.int64)
            np.add.at(toggles, (rows, np.clip(columns, 0, shape[1])), 1)
    return (np.cumsum(toggles, axis=1)[:, :-1] % 2).astype(bool)


def _structure(
    path: Path, name: str, item: Any, geometry: VolumeGeometry, notes: list[str]
) -> list[tuple[NDArray[np.bool_], tuple[int, int, int]]]:
    """(mask, offset) of every slice a structure touches."""
    drawn, passed = [], 0
    for contour in item.get("ContourSequence", []) or []:
        points = np.array(contour.get("ContourData", []) or [], np.float64).reshape(-1, 3)
        if str(contour.get("ContourGeometricType", "")) not in _AREAS or len(points) < 3:
            passed += 1
            continue
        drawn.append(geometry.index(points * (-1, -1, 1)))
    if passed:
        notes.append(f"'{name}': {passed} contours enclose no area (points, lines) and were passed over")
    if not drawn:
        return []
    axis = _across(path, name, drawn)
    planes: dict[float, list[NDArray]] = defaultdict(list)
    for points in drawn:
        planes[round(float(points[:, axis].mean()), 2)].append(np.delete(points, axis, axis=1))
    nearest: dict[int, float] = {}
    for place in planes:
        number = int(np.floor(place + 0.5))
        if number not in nearest or abs(place - number) < abs(nearest[number] - number):
            nearest[number] = place
    if len(nearest) < len(planes):
        notes.append(f"'{name}': {len(planes) - len(nearest)} drawn planes lie between slices and were passed over")
    outside = [n for n in nearest if not 0 <= n < geometry.shape[axis]]
    if outside:
        notes.append(f"'{name}': {len(outside)} drawn planes lie outside the volume")
    result = []
    size = tuple(n for a, n in enumerate(geometry.shape) if a != axis)
    for number, place in sorted(nearest.items()):
        mask = fill(planes[place], (size[0], size[1])) if number not in outside else np.zeros((1, 1), bool)
        if mask.any():
            offset = [0, 0, 0]
            offset[axis] = number
            result.append((np.expand_dims(mask, axis), (offset[0], offset[1], offset[2])))
    return result


def _across(path: Path, name: str, drawn: list[NDArray]) -> int:
    """The array axis that all contours lie across; InputError where there is none."""
    votes = Counter(int(np.argmin(np.ptp(points, axis=0))) for points in drawn)
    axis = votes.most_common(1)[0][0]
    worst = max(float(np.ptp(points[:, axis])) for points in drawn)
    if worst > _FLAT:
        raise InputError(
            f"{path}: contours of '{name}' are not drawn on the volume's slices: one spans {worst:.2f} of them"
        )
    return axis


def _load(path: Path) -> Any:
    try:
        with discreet_pydicom():
            return pydicom.dcmread(path)
    except (OSError, ValueError, EOFError, pydicom.errors.InvalidDicomError) as error:
        raise InputError(f"{path}: not a readable RTSTRUCT: {type(error).__name__}") from error
