"""A DICOM series for a NIfTI file: the headers of slices that exist nowhere, so that DICOM objects can refer to them.

What is invented, and said in run.json: patient, study, series, and one instance a slice, all with UIDs made from the
file's hash, so that the same file gets the same ones. What is not: the frame of reference is new as well, but places,
directions and spacings in it are those of the file.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from adapters.errors import InputError
from pipelines.volumes.geometry import VolumeGeometry

STORED = (2, 1, 0)  # NIfTI's (i, j, k) as (slice, row, column)
SHEAR = 1e-3  # cosine between two axes up to which a grid counts as right-angled
NOTE = (
    "the input is no DICOM: the patient, study and series that the DICOM files name are invented, places and spacings "
    "are the file's own"
)


def dicom_geometry(geometry: VolumeGeometry) -> VolumeGeometry:
    """The same grid with its axes in DICOM's order; InputError where it is not right-angled."""
    if geometry.shear > SHEAR:
        raise InputError(
            f"no DICOM file can refer to this grid: its axes are not at right angles (cosine {geometry.shear:.3g})"
        )
    order = list(STORED)
    affine = geometry.affine.copy()
    affine[:3, :3] = affine[:3, order]
    a, b, c = (geometry.shape[axis] for axis in order)
    return VolumeGeometry((a, b, c), affine, geometry.frame)


def invented_series(geometry: VolumeGeometry, digest: str, modality: str | None = None) -> list[Dataset]:
    """Headers of the slices of a grid in DICOM's order (see `dicom_geometry`); `digest` names the file."""
    depth, rows, columns = geometry.shape
    directions = geometry.affine[:3, :3] / np.linalg.norm(geometry.affine[:3, :3], axis=0) * [[-1], [-1], [1]]
    spacing = geometry.spacing
    mr = (modality or "").upper() == "MR"
    result = []
    for number in range(depth):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = MRImageStorage if mr else CTImageStorage
        ds.SOPInstanceUID = generate_uid(entropy_srcs=["instance", digest, str(number)])
        ds.StudyInstanceUID = generate_uid(entropy_srcs=["study", digest])
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", digest])
        ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", digest])
        ds.Modality = "MR" if mr else "CT"
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "invented^", digest[:16], "", ""
        ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "", "", "", ""
        ds.ReferringPhysicianName, ds.Manufacturer = "", ""
        ds.SeriesNumber, ds.InstanceNumber = 1, number + 1
        ds.Rows, ds.Columns = rows, columns
        ds.PixelSpacing = [_ds(spacing[1]), _ds(spacing[2])]
        ds.SliceThickness = _ds(spacing[0])
        ds.ImageOrientationPatient = [_ds(v) for v in (*directions[:, 2], *directions[:, 1])]
        ds.ImagePositionPatient = [_ds(v) for v in geometry.world((number, 0, 0)) * (-1, -1, 1)]
        result.append(ds)
    return result


def _ds(value: float) -> str:
    """A decimal string of at most 16 letters."""
    return f"{float(value):.9g}"[:16]
