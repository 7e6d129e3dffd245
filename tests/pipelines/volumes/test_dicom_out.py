"""RTSTRUCT of objects, and DICOM files for a scan that is none: exact, and honest about what is invented."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.volumes.contours import read_structures
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.segments import read_segments
from pipelines.volumes.sinks import rtstruct
from pipelines.volumes.sinks.invented import STORED, dicom_geometry, invented_series
from pipelines.volumes.sinks.rtstruct import write_structures
from pipelines.volumes.sinks.seg import write_seg
from pipelines.volumes.slicing import transposed
from pipelines.volumes.source import open_volume
from tests.pipelines.volumes.make_dicom import CANARY, enhanced, stack

CLASSES = ClassSet((Class("liver"), Class("lesion")))
SHAPE = (5, 12, 14)


def objects(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> MaskSet:
    """A block with a hole, one that overlaps it, pixels that touch at corners only, and noise."""
    dense = np.zeros((4, *shape), bool)
    dense[0, 0:4, 1:9, 1:9] = dense[1, 2:5, 5:11, 6:13] = True
    dense[0, 1:3, 3:6, 3:6] = False
    dense[2, 4] = np.indices(shape[1:]).sum(0) % 2 == 0
    dense[3] = np.random.default_rng(seed).random(shape) < 0.4
    return MaskSet.from_dense(dense, [0, 1, 1, 0], [0.9, 0.5, 0.75, 1])


@pytest.mark.parametrize("kind", ["series", "enhanced"])
def test_structures_come_back_voxel_by_voxel(kind: str, tmp_path: Path) -> None:
    volume = np.zeros(SHAPE, np.uint16)
    oblique = (0.8, 0.6, 0, 0, 0, -1)
    if kind == "series":
        places = [np.array((5.0, 7, 11)) + 2.5 * z * np.cross(oblique[:3], oblique[3:]) for z in range(5)]
        stack(tmp_path / "in", volume, positions=places, orientation=oblique)
    else:
        enhanced(tmp_path / "in" / "one.dcm", volume, [(-10, -20, 2.5 * z) for z in range(5)], [1.0] * 5)
    with open_volume(tmp_path / "in") as source:
        wanted = objects()
        path = write_structures(tmp_path / "s.dcm", wanted, source.geometry, source.reference, CLASSES, "m")
        assert path is not None
        found = read_structures(path, source.geometry, source.extra["frame_of_reference"])
        assert np.array_equal(found.objects.to_dense(), wanted.to_dense())
        ds = pydicom.dcmread(path)
        assert ds.PatientName == CANARY and ds.StructureSetDescription == "Research use only"
        assert [roi.ROIName for roi in ds.StructureSetROISequence] == ["liver 1", "lesion 2", "lesion 3", "liver 4"]
        kinds = {c.ContourGeometricType for item in ds.ROIContourSequence for c in item.ContourSequence}
        assert kinds == {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
        named = {c.ContourImageSequence[0].ReferencedSOPInstanceUID for c in ds.ROIContourSequence[0].ContourSequence}
        assert named <= {one.SOPInstanceUID for one in source.reference}
        again = write_structures(tmp_path / "t.dcm", wanted, source.geometry, source.reference, CLASSES, "m")
        assert again is not None and again.read_bytes() == path.read_bytes()
        assert write_structures(tmp_path / "e.dcm", MaskSet.empty(SHAPE), source.geometry, [], CLASSES) is None
        with pytest.raises(InputError, match="DICOM series"):
            write_structures(tmp_path / "e.dcm", wanted, source.geometry, [], CLASSES)


def test_structures_that_do_not_come_back_get_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack(tmp_path / "in", np.zeros(SHAPE, np.uint16))
    outlines = rtstruct.outlines
    monkeypatch.setattr(rtstruct, "outlines", lambda flat: outlines(flat[::-1]))
    with open_volume(tmp_path / "in") as source, pytest.raises(RuntimeError, match="does not come back"):
        write_structures(tmp_path / "out" / "s.dcm", objects(), source.geometry, source.reference, CLASSES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(6))
def test_a_nifti_gets_dicom_files_on_its_own_grid(seed: int, tmp_path: Path) -> None:
    """Read by what reads DICOM from anywhere, places and all, they are the objects of the file's own axes."""
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.8, 1.2, 3.0] * random.choice([-1, 1], 3)
    affine[:3, 3] = random.uniform(-80, 80, 3)
    own = VolumeGeometry((14, 12, 5), affine)
    wanted = transposed(objects(seed=seed), STORED)  # on the file's axes
    geometry = dicom_geometry(own)
    series = invented_series(geometry, "a" * 64, "MR")
    moved = transposed(wanted, STORED)
    (seg,) = write_seg(tmp_path / "segmentation.dcm", moved, series, CLASSES, "m", "1")
    path = write_structures(tmp_path / "structures.dcm", moved, geometry, series, CLASSES, "m")
    assert path is not None
    for found in (read_segments(seg, own), read_structures(path, own)):
        assert np.array_equal(found.objects.to_dense(), wanted.to_dense())
    ds = pydicom.dcmread(seg)
    assert ds.PatientName == "invented^" and len({one.SOPInstanceUID for one in series}) == 5
    assert [one.SOPInstanceUID for one in invented_series(geometry, "a" * 64)] == [o.SOPInstanceUID for o in series]


def test_a_sheared_grid_has_no_dicom(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.2
    with pytest.raises(InputError, match="not at right angles"):
        dicom_geometry(VolumeGeometry((4, 5, 6), affine))


def test_headers_that_lack_what_the_standard_wants_do_not_lose_the_segmentation(tmp_path: Path) -> None:
    for path in stack(tmp_path / "in", np.zeros(SHAPE, np.uint16)):
        ds = pydicom.dcmread(path)
        for tag in ("PatientSex", "StudyID", "AccessionNumber", "StudyTime", "ReferringPhysicianName"):
            delattr(ds, tag)
        ds.SpecificCharacterSet = ""
        ds.save_as(path)
    with open_volume(tmp_path / "in") as source:
        (seg,) = write_seg(tmp_path / "segmentation.dcm", objects(), source.reference, CLASSES)
    assert pydicom.dcmread(seg).PatientName == CANARY
