"""RTSTRUCT of objects: one region of interest an object, its outline along voxel edges on every slice it touches.

Read back by our own reader, the even-odd rule gives every object voxel for voxel; the file is checked so before it gets
its name. Like DICOM-SEG it carries the patient module of the source series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from adapters.classes import ClassSet
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.sinks.folder import atomic_write
from pipelines.sinks.outlines import outlines
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.sinks import NOTICE

# Patient and study modules, copied as the standard demands.
_COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def write_structures(
    path: Path, objects: MaskSet, geometry: VolumeGeometry, reference: Sequence[Any], classes: ClassSet, model: str = ""
) -> Path | None:
    """Write `objects` (canvas and `geometry`: slice, row, column of the source series) as `path`.

    reference: the sorted datasets of the source (one for an enhanced multi-frame file). None without objects: a
    structure set cannot be without structures.
    """
    if not len(objects):
        return None
    if not reference:
        raise InputError(f"{path.name}: RTSTRUCT refers to the slices of a DICOM series, and there is none")
    made = _structure_set(objects, geometry, reference, classes, model)
    with atomic_write(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)
        check_structures(Path(temporary), objects, geometry)
    return path


def check_structures(path: Path, objects: MaskSet, geometry: VolumeGeometry) -> None:
    """Raise RuntimeError unless every structure of the file is, voxel by voxel, the object it was made from."""
    from pipelines.volumes.contours import read_structures

    found = read_structures(path, geometry).objects
    if len(found) != len(objects):
        raise RuntimeError(f"the RTSTRUCT holds {len(found)} structures, not {len(objects)}")
    for number in range(len(objects)):
        if not np.array_equal(found[[number]].runs, objects[[number]].runs):
            raise RuntimeError(f"structure {number + 1} of the RTSTRUCT does not come back as it was written")


def _structure_set(
    objects: MaskSet, geometry: VolumeGeometry, reference: Sequence[Any], classes: ClassSet, model: str
) -> Dataset:
    head = reference[0]
    digest = hashlib.sha256(objects.runs.tobytes() + objects.offsets.tobytes() + objects.labels.tobytes()).hexdigest()
    sources = [str(head.SeriesInstanceUID), model, digest]
    frame = str(head.get("FrameOfReferenceUID", "") or generate_uid(entropy_srcs=["frame", *sources]))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["structures", *sources])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    for tag in _COPIED:
        setattr(ds, tag, head.get(tag, "") or "")
    ds.Modality, ds.Manufacturer, ds.SeriesDescription = "RTSTRUCT", "maskbridge", f"maskbridge, {NOTICE}"
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["structure series", *sources])
    ds.SeriesNumber, ds.InstanceNumber, ds.OperatorsName = int(head.get("SeriesNumber") or 0) + 2000, 1, ""
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = frame, ""
    ds.StructureSetLabel, ds.StructureSetDescription = "MASKBRIDGE", NOTICE.capitalize()
    ds.StructureSetDate, ds.StructureSetTime, ds.ApprovalStatus = "", "", "UNAPPROVED"
    pictures = _pictures(reference, objects.shape[0])
    ds.ReferencedFrameOfReferenceSequence = Items([_referenced(frame, head, pictures)])
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = Items(), Items(), Items()
    contours = _contours(objects, geometry, pictures)
    for number in range(len(objects)):
        label = int(objects.labels[number])
        name = f"{classes.classes[label].name} {number + 1}"[:64]
        _add(ds, number + 1, name, classes.colours[label], frame, contours[number])
    return ds


def _add(ds: Dataset, number: int, name: str, colour: str, frame: str, contours: list[Dataset]) -> None:
    region = Dataset()
    region.ROINumber, region.ReferencedFrameOfReferenceUID, region.ROIName = number, frame, name
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    ds.StructureSetROISequence.append(region)
    drawn = Dataset()
    drawn.ROIDisplayColor = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    drawn.ContourSequence, drawn.ReferencedROINumber = Items(contours), number
    ds.ROIContourSequence.append(drawn)
    seen = Dataset()
    seen.ObservationNumber, seen.ReferencedROINumber = number, number
    seen.RTROIInterpretedType, seen.ROIInterpreter = "", ""
    ds.RTROIObservationsSequence.append(seen)


def _pictures(reference: Sequence[Any], depth: int) -> list[Dataset]:
    """What a contour of each slice refers to."""
    result = []
    for number in range(depth):
        one = Dataset()
        source = reference[number] if len(reference) == depth else reference[0]
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        if len(reference) != depth:
            one.ReferencedFrameNumber = number + 1
        result.append(one)
    return result


def _referenced(frame: str, head: Any, pictures: list[Dataset]) -> Dataset:
    series, study, result = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = head.SeriesInstanceUID, Items(pictures)
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # detached study management, retired, still expected here
    study.ReferencedSOPInstanceUID = head.StudyInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    result.FrameOfReferenceUID, result.RTReferencedStudySequence = frame, Items([study])
    return result


def _contours(objects: MaskSet, geometry: VolumeGeometry, pictures: list[Dataset]) -> list[list[Dataset]]:
    """The contours of every object, slice by slice."""
    result: list[list[Dataset]] = [[] for _ in range(len(objects))]
    for position in range(objects.shape[0]):
        here, owners = objects.crop_indexed((slice(position, position + 1), slice(None), slice(None)))
        if not len(here):
            continue
        flat = MaskSet(here.shape[1:], here.runs[:, 1:], here.offsets, here.labels)
        for owner, shape in zip(owners.tolist(), outlines(flat)):
            rings = [ring for part in shape.geoms for ring in (part.exterior, *part.interiors)]
            holes = any(len(part.interiors) for part in shape.geoms)
            for ring in rings:
                result[owner].append(_contour(position, np.asarray(ring.coords)[:-1], holes, geometry, pictures))
    return result


def _contour(
    position: int, corners: NDArray[np.float64], holes: bool, geometry: VolumeGeometry, pictures: list[Dataset]
) -> Dataset:
    """One closed line; (x, y) of a voxel's outer corner is half a voxel before its centre."""
    index = np.column_stack([np.full(len(corners), position), corners[:, 1] - 0.5, corners[:, 0] - 0.5])
    points = geometry.world(index) * (-1, -1, 1)
    one = Dataset()
    one.ContourImageSequence = Items([pictures[position]])
    one.ContourGeometricType = "CLOSEDPLANAR_XOR" if holes else "CLOSED_PLANAR"
    one.NumberOfContourPoints = len(points)
    one.ContourData = [f"{v:.4f}" for v in points.ravel()]
    return one
