"""Small DICOM series for tests, made from numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

CANARY = "Canarybird^Tweety"


def header(series: str, **tags: Any) -> Dataset:
    """What every object of a series says; `series` names it, so that equal names give equal UIDs."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.Modality = "CT"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = CANARY, "CANARY-4711", "19700101", "O"
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "1", "20260101", "120000", "A1"
    ds.ReferringPhysicianName, ds.Manufacturer = "", "tests"
    ds.SeriesNumber, ds.SeriesDescription = 1, f"{series} of Canarybird"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for key, value in tags.items():
        setattr(ds, key, value)
    return ds


def write(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return path


def stack(
    folder: Path,
    volume: np.ndarray,
    series: str = "thorax",
    positions: Sequence[Sequence[float]] | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    names: Sequence[str] | None = None,
    **tags: Any,
) -> list[Path]:
    """One file a slice of `volume` (slices, rows, columns), stored values; positions in LPS mm."""
    positions = [(-10.0, -20.0, 2.5 * i) for i in range(len(volume))] if positions is None else positions
    paths = []
    for i, (plane, place) in enumerate(zip(volume, positions)):
        ds = header(series, **{"RescaleSlope": 1, "RescaleIntercept": -1024, **tags})
        ds.InstanceNumber = i + 1
        ds.ImagePositionPatient = [f"{v:.6g}" for v in place]
        ds.ImageOrientationPatient = [f"{v:.8g}" for v in orientation]
        ds.PixelSpacing, ds.SliceThickness = [0.8, 0.7], 2.5
        ds.Rows, ds.Columns = plane.shape
        ds.PixelData = np.ascontiguousarray(plane, np.uint16).tobytes()
        paths.append(write(ds, folder / (names[i] if names else f"{len(volume) - i:03d}.dcm")))
    return paths


def enhanced(path: Path, volume: np.ndarray, positions: Sequence[Sequence[float]], slopes: Sequence[float]) -> Path:
    """One multi-frame CT; frames in the order given, each with its own rescale slope."""
    ds = header("enhanced")
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.NumberOfFrames = len(volume)
    ds.Rows, ds.Columns = volume.shape[1:]
    shared = Dataset()
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for place, slope in zip(positions, slopes):
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = list(place)
        transform.RescaleSlope, transform.RescaleIntercept = slope, -1000
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [transform]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = np.ascontiguousarray(volume, np.uint16).tobytes()
    return write(ds, path)
