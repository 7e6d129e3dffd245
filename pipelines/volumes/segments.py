"""DICOM-SEG: every segment an object of its own, overlaps kept."""

from __future__ import annotations

from collections import defaultdict
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

_OFF = 0.02  # voxels a frame may lie off the volume's grid: headers round to a few digits


def read_segments(
    path: Path, geometry: VolumeGeometry, resample: bool = False, frame_of_reference: str | None = None
) -> VolumeLabels:
    """Every segment with a voxel as one object on the volume's grid; labels index the segments' names.

    Fractional segments are cut at one half. Segments on another grid are refused with both grids, or moved there.
    """
    from pipelines.volumes.labels import VolumeLabels, move_mask, refuse_grid

    dataset = _load(path)
    own = str(dataset.get("FrameOfReferenceUID", "") or "")
    if frame_of_reference and own and own != frame_of_reference:
        raise InputError(f"{path}: its segments lie in another frame of reference than the scan's")
    segments = {
        int(s.SegmentNumber): str(s.get("SegmentLabel", "") or s.SegmentNumber) for s in dataset.SegmentSequence
    }
    frames = _frames(path, dataset)
    pixels = _pixels(path, dataset)
    numbers = sorted({segment for segment, _ in frames})
    notes = [f"'{name}' has no voxel" for n, name in segments.items() if n not in numbers]
    names = tuple(dict.fromkeys(segments[n] for n in numbers))
    places = [_place(geometry, affine, pixels.shape[1:]) for _, affine in frames]
    if all(p is not None for p in places):
        parts = []
        for (segment, _), plane, found in zip(frames, pixels, places):
            assert found is not None
            mask, offset = _on_grid(plane, *found, geometry.shape)
            if mask.any():
                parts.append((numbers.index(segment), mask, offset))
    else:
        grid = _own_grid(path, [a for _, a in frames], pixels.shape[1:])
        refuse_grid(path, grid, geometry, resample)
        notes.append(f"resampled from {grid.describe()}")
        volumes: dict[int, NDArray] = defaultdict(lambda: np.zeros(grid.shape, bool))
        for (segment, affine), plane in zip(frames, pixels):
            volumes[segment][round(float(grid.index(affine[:3, 3])[0]))] |= plane
        parts = [(numbers.index(s), move_mask(v, grid, geometry), (0, 0, 0)) for s, v in volumes.items()]
    objects = pile(geometry.shape, parts, len(numbers)).with_labels([names.index(segments[n]) for n in numbers])
    return VolumeLabels(objects[objects.areas > 0], names, None, tuple(notes))


def _frames(path: Path, dataset: Any) -> list[tuple[int, NDArray[np.float64]]]:
    """(segment number, affine of a single-slice volume (slice, row, column) -> RAS) of every frame."""
    from pipelines.volumes.series import _first, _group, _numbers

    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    result = []
    for group in dataset.PerFrameFunctionalGroupsSequence:
        place = _numbers(_group(group, shared, "PlanePositionSequence", "ImagePositionPatient"), 3)
        cosines = _numbers(_group(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
        pixel = _numbers(_group(group, shared, "PixelMeasuresSequence", "PixelSpacing"), 2)
        segment = _group(group, shared, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        if place is None or cosines is None or pixel is None or segment is None:
            raise InputError(f"{path}: a frame has no segment, position, orientation or spacing")
        row, column = np.array(cosines[:3]), np.array(cosines[3:])
        affine = np.eye(4)
        affine[:3, :3] = np.column_stack([np.cross(row, column), column * pixel[0], row * pixel[1]])
        affine[:3, 3] = place
        affine[:2] *= -1
        result.append((int(segment), affine))
    return result


def _pixels(path: Path, dataset: Any) -> NDArray[np.bool_]:
    try:
        pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # the decoders' plugins raise anything; the reason is passed on
        raise InputError(f"{path}: its pixels cannot be decoded: {' '.join(str(error).split())[:200]}") from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if str(dataset.get("SegmentationType", "BINARY")) == "FRACTIONAL":
        return pixels * 2 >= float(dataset.get("MaximumFractionalValue", 255) or 255)
    return pixels > 0


def _place(
    geometry: VolumeGeometry, affine: NDArray, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(steps (3, 2), start (3,)): voxel of a frame's pixel (r, c) = start + steps @ (r, c); None on another grid."""
    change = np.linalg.inv(geometry.affine) @ affine
    steps, start = np.round(change[:3, 1:3]), np.round(change[:3, 3])
    corners = np.array([[r, c] for r in (0, shape[0] - 1) for c in (0, shape[1] - 1)], float)
    exact = corners @ change[:3, 1:3].T + change[:3, 3]
    if np.abs(exact - (corners @ steps.T + start)).max() > _OFF:
        return None
    if not np.array_equal(np.sort(np.abs(steps).sum(axis=0)), [1, 1]) or np.abs(steps).sum(axis=1).max() > 1:
        return None
    return steps.astype(np.int64), start.astype(np.int64)


def _on_grid(
    plane: NDArray[np.bool_], steps: NDArray, start: NDArray, shape: tuple[int, int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
    """A frame as a box on the grid, cut to it, and the box's first voxel; an empty box where it lies outside."""
    voxels = np.argwhere(plane) @ steps.T + start
    voxels = voxels[((voxels >= 0) & (voxels < shape)).all(axis=1)]
    if not len(voxels):
        return np.zeros((1, 1, 1), bool), (0, 0, 0)
    low = voxels.min(axis=0)
    mask = np.zeros(voxels.max(axis=0) - low + 1, bool)
    mask[tuple((voxels - low).T)] = True
    return mask, (int(low[0]), int(low[1]), int(low[2]))


def _own_grid(path: Path, affines: list[NDArray], shape: tuple[int, ...]) -> VolumeGeometry:
    """The even grid that a SEG's frames lie on; InputError where they do not."""
    first = affines[0]
    if any(np.abs(a[:3, :3] - first[:3, :3]).max() > 1e-3 for a in affines):
        raise InputError(f"{path}: its frames have different orientations or spacings")
    normal = first[:3, 0]
    places = np.unique(np.round([a[:3, 3] @ normal for a in affines], 3))
    step = float(np.diff(places).min()) if len(places) > 1 else 1.0
    count = round((places[-1] - places[0]) / step) + 1
    if np.abs((places - places[0]) / step - np.round((places - places[0]) / step)).max() > 0.05:
        raise InputError(f"{path}: its frames are unevenly spaced")
    affine = first.copy()
    affine[:3, 0] = normal * step
    affine[:3, 3] = min(affines, key=lambda a: float(a[:3, 3] @ normal))[:3, 3]
    return VolumeGeometry((count, shape[0], shape[1]), affine)


def _load(path: Path) -> Any:
    try:
        with discreet_pydicom():
            dataset = pydicom.dcmread(path)
    except (OSError, ValueError, EOFError, pydicom.errors.InvalidDicomError) as error:
        raise InputError(f"{path}: not a readable DICOM-SEG: {type(error).__name__}") from error
    for tag in ("SegmentSequence", "PerFrameFunctionalGroupsSequence", "PixelData"):
        if tag not in dataset:
            raise InputError(f"{path}: not a DICOM-SEG: it has no {tag}")
    return dataset
