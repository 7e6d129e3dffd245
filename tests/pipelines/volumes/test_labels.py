"""Labels against known answers: RTSTRUCT and the same patients' NIfTI masks, SEG and its nrrd, nested classes."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.volumes.contours import fill
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.labels import read_labels
from pipelines.volumes.source import open_volume

GRID = VolumeGeometry((10, 12, 14), np.diag([2.0, 1.5, 1, 1]))


def save(path: Path, array: np.ndarray, affine: np.ndarray = GRID.affine) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def nrrd(path: Path) -> np.ndarray:
    """(slice, row, column) of a gzip-encoded nrrd of shorts."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    sizes = [int(n) for n in next(x for x in head.decode().splitlines() if x.startswith("sizes")).split()[1:]]
    return np.frombuffer(gzip.decompress(body), "<i2").reshape(sizes[::-1])


@pytest.mark.parametrize("patient", ["STS_019", "STS_042"])
@pytest.mark.parametrize("scan", ["CT", "MR_T1"])
def test_contours_give_the_published_mask(shared_data: Path, patient: str, scan: str) -> None:
    medical = shared_data / "medical"
    folder = medical / "dicom" / "sarcoma" / patient / scan
    with open_volume(folder / "image") as source:
        frame = source.extra["frame_of_reference"]
        found = read_labels(folder / "mask", source.geometry, frame_of_reference=frame)
        assert found.names == (f"GTV_Mass_{scan}",) and len(found.objects) == 1
        reference = nibabel.load(medical / "sarcoma" / patient / f"{scan}_mask.nii.gz")
        truth = np.asanyarray(reference.dataobj).transpose(2, 1, 0) > 0
        index = np.linalg.inv(reference.affine) @ source.geometry.affine
        for axis, column in enumerate((2, 1, 0)):  # slices, rows, columns may run the other way
            if index[column, axis] < 0:
                truth = np.flip(truth, axis)
        mask = found.objects.to_dense()[0]
        assert np.array_equal(mask, truth)
        named = ClassSet((Class("tumour", values=(f"GTV_Mass_{scan}",)),))
        assert read_labels(folder / "mask", source.geometry, named).names == ("tumour",)
        with pytest.raises(InputError, match=r"holds GTV_Mass_.*; known classes are lung"):
            read_labels(folder / "mask", source.geometry, ClassSet((Class("lung"),)))
        with pytest.raises(InputError, match="another frame of reference"):
            read_labels(folder / "mask", source.geometry, frame_of_reference="1.2.3")


def test_overlapping_segments_stay_apart(shared_data: Path) -> None:
    folder = shared_data / "medical" / "dicom" / "overlapping_seg"
    with open_volume(folder / "ct-3slice") as source:
        geometry = source.geometry
    found = read_labels(folder / "partial_overlaps.dcm", geometry)
    assert found.names == ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")
    truth = {}
    for number in (1, 2, 3):
        values = nrrd(folder / f"partial_overlaps-{number}.nrrd")
        truth |= {(number, int(v)): values == v for v in np.unique(values) if v}
    masks = found.objects.to_dense()
    assert len(masks) == len(truth) == 5
    assert sorted(m.tobytes() for m in masks) == sorted(m.tobytes() for m in truth.values())
    assert found.objects.areas.sum() > masks.any(axis=0).sum()
    liver = read_labels(folder / "liver.dcm", geometry)
    assert liver.names == ("Liver",)
    assert np.array_equal(liver.objects.to_dense()[0], nrrd(folder / "liver_seg.nrrd") > 0)


def test_segments_on_another_grid(shared_data: Path) -> None:
    folder = shared_data / "medical" / "dicom" / "overlapping_seg"
    with open_volume(folder / "ct-3slice") as source:
        other = source.geometry.affine.copy()
        other[:3, 3] += 0.4 * other[:3, 1]
        moved = VolumeGeometry(source.shape, other)
    with pytest.raises(InputError, match=r"another grid than the scan: 3x512x512 .* against 3x512x512"):
        read_labels(folder / "liver.dcm", moved)
    found = read_labels(folder / "liver.dcm", moved, resample=True)
    exact = nrrd(folder / "liver_seg.nrrd") > 0
    # a hard mask moved by 0.4 of a voxel: its inner part stays, no edge moves by more than half a voxel
    assert (found.objects.to_dense()[0] & exact).sum() > 0.99 * exact.sum()


def test_contours_with_holes_and_islands() -> None:
    def square(low: float, high: float) -> np.ndarray:
        return np.array([[low, low], [low, high], [high, high], [high, low]])

    mask = fill([square(1.5, 8.5), square(3.5, 6.5), square(4.5, 5.5)], (12, 12))
    expected = np.zeros((12, 12), bool)
    expected[2:9, 2:9] = True
    expected[4:7, 4:7] = False
    expected[5, 5] = True
    assert np.array_equal(mask, expected)
    left, right = square(0, 4), square(0, 4) + np.array([0, 4])
    assert not (fill([left], (12, 12)) & fill([right], (12, 12))).any()
    assert fill([square(-5, 30)], (12, 12)).all()


def structures(path: Path, contours: list[np.ndarray], kind: str = "CLOSED_PLANAR") -> Path:
    from make_dicom import header, write

    ds = header("structures", Modality="RTSTRUCT")
    roi = Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 3, "organ", ds.FrameOfReferenceUID
    item = Dataset()
    item.ReferencedROINumber, item.ContourSequence = 3, []
    for points in contours:
        one = Dataset()
        one.ContourGeometricType, one.NumberOfContourPoints = kind, len(points)
        one.ContourData = [f"{v:.5f}" for v in (points * (-1, -1, 1)).ravel()]
        item.ContourSequence.append(one)
    ds.StructureSetROISequence, ds.ROIContourSequence = [roi], [item]
    return write(ds, path)


def test_contours_off_the_slices(tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    ring = np.array([[2.5, 2.5], [2.5, 8.5], [7.5, 8.5], [7.5, 2.5]])

    def drawn(place: float, tilt: float = 0.0) -> np.ndarray:
        index = np.column_stack([place + tilt * np.arange(4), ring])
        return GRID.world(index)

    path = structures(tmp_path / "a.dcm", [drawn(3.0), drawn(3.4), drawn(40.0)])
    found = read_labels(path, GRID)
    assert found.objects.boxes[0].tolist() == [3, 3, 3, 4, 8, 9] and len(found.notes) == 2
    with pytest.raises(InputError, match=r"not drawn on the volume's slices: one spans 1\.50"):
        read_labels(structures(tmp_path / "b.dcm", [drawn(3.0, 0.5)]), GRID)
    with pytest.raises(InputError, match="no structure has a contour"):
        read_labels(structures(tmp_path / "c.dcm", [drawn(3.0)], "POINT"), GRID)


def test_label_maps_by_class(tmp_path: Path) -> None:
    values = np.zeros(GRID.shape, np.uint8)
    values[1:4, 1:4, 1:4], values[6:8, 6:8, 6:8], values[0, 0, 13] = 5, 5, 255
    values[5:9, 1:3, 9:12] = 2
    classes = ClassSet((Class("lesion", values=(5,)), Class("organ", "stuff", (2,))), ignore_values=(255,))
    found = read_labels(save(tmp_path / "a.nii.gz", values), GRID, classes)
    assert list(found.objects.labels) == [0, 0, 1] and list(found.objects.areas) == [27, 8, 24]
    assert found.ignore is not None and found.ignore.sum() == 1
    assert read_labels(tmp_path / "a.nii.gz", GRID).names == ("2", "5", "255")
    with pytest.raises(InputError, match=r"unknown class values? .*\(24 voxels\).*known are lesion"):
        read_labels(tmp_path / "a.nii.gz", GRID, ClassSet((Class("lesion", values=(5,)),), (255,)))
    with pytest.raises(InputError, match="voxels hold no whole number"):
        read_labels(save(tmp_path / "f.nii", values + np.float32(0.5)), GRID)
    vertebrae = read_labels(tmp_path / "a.nii.gz", GRID, ClassSet((Class("vertebra"),)), instances=True)
    assert list(vertebrae.objects.areas) == [24, 35, 1]


def test_nested_classes_fill_those_around_them(tmp_path: Path) -> None:
    values = np.zeros(GRID.shape, np.uint8)
    values[1:9, 1:9, 1:9] = 1
    values[3:7, 3:7, 3:7] = 2
    values[4:6, 4:6, 4:6] = 3
    names = ("whole tumour", "core", "enhancing")
    classes = ClassSet(tuple(Class(n, "stuff", (i + 1,)) for i, n in enumerate(names)))
    rules = VolumeRules(inside={"enhancing": "core", "core": "whole tumour"})
    found = read_labels(save(tmp_path / "a.nii", values), GRID, classes, rules)
    areas = dict(zip(found.objects.labels.tolist(), found.objects.areas.tolist()))
    assert areas == {0: 512, 1: 64, 2: 8}
    dense = MaskSet.to_dense(found.objects[np.argsort(found.objects.labels)])
    assert (dense[2] <= dense[1]).all() and (dense[1] <= dense[0]).all()
    with pytest.raises(InputError, match="lies inside itself"):
        VolumeRules(inside={"a": "b", "b": "a"})
    with pytest.raises(InputError, match="no class 'b'"):
        read_labels(tmp_path / "a.nii", GRID, classes, VolumeRules(inside={"core": "b"}))


def test_labels_on_another_grid(tmp_path: Path) -> None:
    values = np.zeros((20, 12, 14), np.uint8)
    values[4:12, 3:9, 5:10] = 1
    path = save(tmp_path / "fine.nii.gz", values, np.diag([1.0, 1.5, 1, 1]))
    with pytest.raises(InputError) as caught:
        read_labels(path, GRID)
    assert "20x12x14 voxels of 1x1.5x1 mm" in str(caught.value) and "10x12x14 voxels of 2x1.5x1 mm" in str(caught.value)
    found = read_labels(path, GRID, resample=True)
    assert found.objects.boxes[0].tolist() == [2, 3, 5, 6, 9, 10] and "resampled from" in found.notes[-1]


def test_what_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such label file"):
        read_labels(tmp_path / "none.nii", GRID)
    (tmp_path / "text.txt").write_text("labels")
    with pytest.raises(InputError, match="found no RTSTRUCT or DICOM-SEG"):
        read_labels(tmp_path / "text.txt", GRID)


def test_real_label_maps(shared_data: Path) -> None:
    medical = shared_data / "medical"
    with open_volume(medical / "spinal_cord" / "t2.nii.gz") as source:
        cord = medical / "spinal_cord" / "t2_seg-manual_labeled.nii.gz"
        assert len(read_labels(cord, source.geometry).objects) > 2
    with open_volume(medical / "ms_lesions" / "patient19_FLAIR.nii.gz") as source:
        lesions = ClassSet((Class("lesion", values=(1,)),))
        found = read_labels(medical / "ms_lesions" / "patient19_lesions.nii.gz", source.geometry, lesions)
        assert len(found.objects) > 10 and found.objects.areas.min() >= 1
