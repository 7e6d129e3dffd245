"""Labels of a volume: NIfTI label maps, RTSTRUCT contours and DICOM-SEG, all as masks that may overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from adapters.classes import BACKGROUND, IGNORE, ClassSet
from adapters.errors import InputError
from adapters.reading import listing
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.series import read_header
from pipelines.volumes.source import VolumeSource, is_nifti, open_volume

_BEYOND = "grid-constant"  # zeros beyond the outermost voxels; scipy's "constant" loses a border slice to 1e-6
_TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner are one lesion


@dataclass(frozen=True)
class VolumeLabels:
    """objects: masks on the volume's grid, labels index `names`. ignore: (d, h, w) voxels nothing is known about.

    notes: what was passed over or resampled, one line each.
    """

    objects: MaskSet
    names: tuple[str, ...]
    ignore: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()


def read_labels(
    path: str | Path,
    geometry: VolumeGeometry,
    classes: ClassSet | None = None,
    rules: VolumeRules | None = None,
    *,
    instances: bool = False,
    resample: bool = False,
    frame_of_reference: str | None = None,
) -> VolumeLabels:
    """The labels of a volume on its own grid.

    path: a NIfTI label map, an RTSTRUCT or DICOM-SEG file, or a folder that holds one of these two.
    classes: maps values, or names of structures and segments, to classes. Without it every value is a class.
    rules: an inner class' voxels belong to the classes around it too (`VolumeRules.inside`).
    instances: the values of a label map number objects of the one class there is, or of the class that claims them.
        Else the connected parts of a thing class are its objects; a stuff class is one object.
    resample: labels on another grid are brought onto this one instead of being refused.
    frame_of_reference: UID of the scan's; a DICOM label of another one is refused.

    InputError (one line that names the file): not a label file, values no class claims, fractions, another grid.
    """
    where = Path(path)
    if not where.exists():
        raise InputError(f"{where}: no such label file")
    if where.is_file() and is_nifti(where):
        with open_volume(where) as source:
            return _from_map(where, source, geometry, classes, rules or VolumeRules(), instances, resample)
    file, modality = _dicom_file(where)
    if modality == "RTSTRUCT":
        from pipelines.volumes.contours import read_structures

        found = read_structures(file, geometry, frame_of_reference)
    else:
        from pipelines.volumes.segments import read_segments

        found = read_segments(file, geometry, resample, frame_of_reference)
    return found if classes is None else _classified(where, found, classes, rules or VolumeRules())


def nested(objects: MaskSet, classes: ClassSet, rules: VolumeRules) -> MaskSet:
    """The objects with every outer class' mask filled by those that lie in it; one object an outer class.

    For classes without a nesting nothing changes.
    """
    names = list(classes.names)
    for name in (*rules.inside, *rules.inside.values()):
        if name not in names:
            raise InputError(f"volume: inside: no class '{name}'; known are {listing(names)}")
    outers = sorted({names.index(o) for o in rules.inside.values()})
    if not outers:
        return objects
    parts = [objects[~np.isin(objects.labels, outers)]]
    for outer in outers:
        members = [i for i, n in enumerate(names) if i == outer or names[outer] in rules.outer(n)]
        chosen = objects[np.isin(objects.labels, members)]
        if len(chosen):
            united = chosen.union(np.zeros(len(chosen), np.int64)).with_labels([outer])
            thing = classes.is_thing[outer]
            parts.append(components(united.to_dense()[0], outer) if thing else united)
    return MaskSet.concatenate(parts)


def components(mask: NDArray[np.bool_], label: int) -> MaskSet:
    """The parts of a mask that touch (corners count) as objects of one class, in order of their first voxel."""
    found, count = ndimage.label(mask, _TOUCHING)
    return MaskSet.from_label_map(found, dict.fromkeys(range(1, count + 1), label))


def _from_map(
    where: Path,
    source: VolumeSource,
    geometry: VolumeGeometry,
    classes: ClassSet | None,
    rules: VolumeRules,
    instances: bool,
    resample: bool,
) -> VolumeLabels:
    if len(source.channels) != 1:
        raise InputError(f"{where}: expected one label map, found {len(source.channels)} channels")
    notes = list(source.notes)
    values, valid = source.read()
    values = values[0]
    if values.dtype.kind == "f":
        whole = np.round(values)
        odd = int((np.abs(values - whole) > 1e-3).sum())
        if odd or not valid.all():
            raise InputError(f"{where}: not a label map: {odd + int((~valid).sum())} voxels hold no whole number")
        values = whole.astype(np.int32)
    if not source.geometry.same_grid(geometry):
        refuse_grid(where, source.geometry, geometry, resample)
        notes.append(f"resampled from {source.geometry.describe()}")
        values = move_labels(values, source.geometry, geometry)
    found, counts = np.unique(values, return_counts=True)
    present = {int(v): int(n) for v, n in zip(found, counts)}
    if classes is None:
        names = [v for v in present if v]
        objects = MaskSet.from_label_map(values, {v: i for i, v in enumerate(names)})
        return VolumeLabels(objects, tuple(str(v) for v in names), None, tuple(notes))
    if instances and len(classes) == 1:
        codes = {v: 0 if v and not classes.claims(v) else None for v in present}
        known = classes.codes({v: n for v, n in present.items() if codes[v] is None}, str(where), "voxels")
        codes = {v: known.get(v, 0) for v in present}
    else:
        codes = dict(classes.codes(present, str(where), "voxels"))
    ignored = [v for v, code in codes.items() if code == IGNORE]
    ignore = np.isin(values, ignored) if ignored else None
    if instances:
        table = {v: int(code) for v, code in codes.items() if code is not None and code >= 0}
        kept = np.where(np.isin(values, list(table)), values, 0)
        objects = MaskSet.from_label_map(kept, table)
    else:
        objects = _by_class(values, codes, classes)
    return VolumeLabels(nested(objects, classes, rules), classes.names, ignore, tuple(notes))


def _by_class(values: NDArray, codes: Mapping[int, int | None], classes: ClassSet) -> MaskSet:
    parts = [MaskSet.empty(values.shape)]
    for index, thing in enumerate(classes.is_thing):
        members = [v for v, code in codes.items() if code == index and code not in (IGNORE, BACKGROUND)]
        if members:
            mask = np.isin(values, members)
            parts.append(components(mask, index) if thing else MaskSet.from_dense(mask[None], [index]))
    return MaskSet.concatenate(parts)


def _classified(where: Path, found: VolumeLabels, classes: ClassSet, rules: VolumeRules) -> VolumeLabels:
    """Structures or segments by name; those no class claims are passed over and named."""
    index = {n: classes.index(n) for n in found.names if n in classes.names or classes.claims(n)}
    unknown = [n for n in found.names if n not in index]
    if not index:
        raise InputError(f"{where}: holds {listing(found.names)}; known classes are {classes.describe()}")
    kept = found.objects[[found.names[label] in index for label in found.objects.labels]]
    kept = kept.with_labels([index[found.names[label]] for label in kept.labels])
    notes = [*found.notes, *([f"passed over: {listing(unknown)}"] if unknown else [])]
    return VolumeLabels(nested(kept, classes, rules), classes.names, found.ignore, tuple(notes))


def refuse_grid(where: Path, found: VolumeGeometry, wanted: VolumeGeometry, resample: bool) -> None:
    """InputError with both grids, unless resampling is allowed."""
    if not resample:
        apart = found.distance(wanted)
        told = f" ({apart:.3g} mm apart)" if np.isfinite(apart) else ""
        raise InputError(
            f"{where}: the labels lie on another grid than the scan: {found.describe()} against "
            f"{wanted.describe()}{told}; with `resample: true` in `label_options` they are moved onto it"
        )


def move_labels(values: NDArray, grid: VolumeGeometry, onto: VolumeGeometry) -> NDArray:
    """A label map on another grid, any rotation: each voxel takes the nearest label, slice by slice; 0 outside."""
    matrix, offset = _between(grid, onto)
    return ndimage.affine_transform(values, matrix, offset, onto.shape, order=0, mode=_BEYOND)


def move_mask(mask: NDArray[np.bool_], grid: VolumeGeometry, onto: VolumeGeometry) -> NDArray[np.bool_]:
    """A mask on another grid, any rotation, linearly and cut at one half."""
    matrix, offset = _between(grid, onto)
    return ndimage.affine_transform(mask.astype(np.float32), matrix, offset, onto.shape, order=1, mode=_BEYOND) >= 0.5


def _between(grid: VolumeGeometry, onto: VolumeGeometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    change = np.linalg.inv(grid.affine) @ onto.affine
    # whole numbers but for the headers' float32: nothing may fall out of the border by 1e-7
    change = np.where(np.abs(change - np.round(change)) < 1e-6, np.round(change), change)
    return change[:3, :3], change[:3, 3]


def _dicom_file(where: Path) -> tuple[Path, str]:
    """The one RTSTRUCT or DICOM-SEG a path stands for."""
    files = [where] if where.is_file() else sorted(p for p in where.rglob("*") if p.is_file())
    found = []
    for path in files:
        header = read_header(path)
        modality = "" if header is None else str(header.get("Modality", ""))
        if modality in ("RTSTRUCT", "SEG"):
            found.append((path, modality))
    if len(found) != 1:
        what = "no RTSTRUCT or DICOM-SEG" if not found else f"{len(found)} RTSTRUCT or DICOM-SEG files"
        raise InputError(f"{where}: expected a NIfTI label map, or one RTSTRUCT or DICOM-SEG; found {what}")
    return found[0]
