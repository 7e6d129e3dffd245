"""DICOM-SEG: what goes in comes out of highdicom, overlaps too; every segment is coded."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.volumes.sinks import seg as sink
from pipelines.volumes.sinks.codes import _ANATOMY, _MORPHOLOGY, _SIDED, MORPHOLOGY, TISSUE, code_of
from pipelines.volumes.sinks.seg import check_seg, read_seg, write_seg
from pipelines.volumes.source import open_volume
from tests.pipelines.volumes.make_dicom import CANARY, enhanced, stack

CLASSES = ClassSet((Class("liver"), Class("liver tumour"), Class("gizmo")))
SHAPE = (5, 12, 14)


def overlapping() -> MaskSet:
    dense = np.zeros((4, *SHAPE), bool)
    dense[0, 0:4, 1:9, 1:9] = dense[1, 1:3, 3:5, 3:5] = dense[2, 1:5, 6:11, 6:13] = dense[3, 4, 0, 0] = True
    return MaskSet.from_dense(dense, [0, 1, 0, 2], [0.9, 0.5, 0.75, 1])


@pytest.fixture(params=["series", "enhanced"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> list:
    volume = np.zeros(SHAPE, np.uint16)
    if request.param == "series":
        stack(tmp_path / "in", volume)
    else:
        enhanced(tmp_path / "in" / "one.dcm", volume, [(-10, -20, 2.5 * z) for z in range(5)], [1.0] * 5)
    with open_volume(tmp_path / "in") as source:
        assert source.shape == SHAPE
        return source.reference


def test_the_arrays_come_back(reference: list, tmp_path: Path) -> None:
    objects = overlapping()
    (path,) = write_seg(tmp_path / "segmentation.dcm", objects, reference, CLASSES, "organs", "3")
    dense = objects.to_dense()
    for number in range(len(objects)):
        assert np.array_equal(read_seg(path, reference, number + 1), dense[number])
    found = pydicom.dcmread(path)
    assert found.SegmentationType == "BINARY" and found.SegmentsOverlap == "YES"
    assert found.PatientName == CANARY and found.ContentDescription == "Research use only"
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == reference[0].SeriesInstanceUID
    labels = [s.SegmentLabel for s in found.SegmentSequence]
    assert labels == ["liver 1", "liver tumour 2", "liver 3", "gizmo 4"]
    values = [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in found.SegmentSequence]
    assert values == ["10200004", "108369006", "10200004", "85756007"]
    again = pydicom.dcmread(write_seg(tmp_path / "again.dcm", objects, reference, CLASSES, "organs", "3")[0])
    assert again.SOPInstanceUID == found.SOPInstanceUID and again.PixelData == found.PixelData
    with pytest.raises(RuntimeError, match="segment 1"):
        check_seg(path, objects[[1, 0, 2, 3]], reference)


def test_what_is_too_large_together_is_a_file_a_layer(
    reference: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "MOST_BYTES", 10)
    objects = overlapping()
    paths = write_seg(tmp_path / "segmentation.dcm", objects, reference, CLASSES)
    assert [p.name for p in paths] == ["segmentation.dcm", "segmentation-2.dcm"]
    found = [(p, s) for p in paths for s in pydicom.dcmread(p).SegmentSequence]
    dense = objects.to_dense()
    for path, segment in found:
        which = int(segment.SegmentLabel.rsplit(" ", 1)[1]) - 1
        assert np.array_equal(read_seg(path, reference, int(segment.SegmentNumber)), dense[which])
    assert len(found) == 4


def test_a_file_that_does_not_come_back_gets_no_name(
    reference: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = sink._pixels
    monkeypatch.setattr(sink, "_pixels", lambda *a, **k: np.flip(pixels(*a, **k), 1).copy())  # front is back
    with pytest.raises(RuntimeError, match="does not come back"):
        write_seg(tmp_path / "out" / "segmentation.dcm", overlapping(), reference, CLASSES)
    assert not (tmp_path / "out").exists()


def test_nothing_to_say_and_nothing_to_refer_to(reference: list, tmp_path: Path) -> None:
    assert write_seg(tmp_path / "a.dcm", MaskSet.empty(SHAPE), reference, CLASSES) == []
    with pytest.raises(InputError, match="DICOM series"):
        write_seg(tmp_path / "a.dcm", overlapping(), None, CLASSES)


def test_the_codes_are_the_standard_s() -> None:
    known = {codes.SCT.__getattr__(name).value for name in codes.SCT.dir()}
    for table in (_ANATOMY, _MORPHOLOGY):
        for name, value in table.items():
            if name not in _SIDED:
                keyword = "".join(word.capitalize() for word in name.split())
                assert getattr(codes.SCT, keyword).value == value, name
    assert known >= {MORPHOLOGY.value, TISSUE.value}
    assert code_of("Kidney_left")[1].value == "18639004"
    assert code_of("whole tumour") == (MORPHOLOGY, ("108369006", "Neoplasm"))
    assert code_of("gizmo") == (TISSUE, TISSUE)
