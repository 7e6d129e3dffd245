"""Volumes out: geometry to the bit, overlaps kept, bytes reproducible, names of patients nowhere."""

import csv
import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from adapters.classes import Class, ClassSet
from maskformer.masks import MaskSet
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.sinks import NOTICE, nifti
from pipelines.volumes.sinks.nifti import read_objects, write_labels, write_objects
from pipelines.volumes.sinks.table import largest_diameter, write_table
from pipelines.volumes.source import open_volume

CANARY = "Canary^Name"
CLASSES = ClassSet((Class("liver & co]]>", colour="#112233"), Class("tumour")))
SHAPE = (9, 8, 7)
OBLIQUE = np.array([[-1.99, 0.1, 0.3, 31.7], [0.12, 1.47, 0.2, -20.3], [0.3, -0.2, 3.1, 5.1], [0, 0, 0, 1]])


def scan(path: Path, kind: type = nibabel.Nifti1Image) -> Path:
    image = kind(np.zeros(SHAPE, np.int16), None)
    image.header.set_sform(OBLIQUE, 2)
    image.header.set_qform(OBLIQUE, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = CANARY.encode()
    image.header["aux_file"] = CANARY.encode()
    nibabel.save(image, path)
    return path


def overlapping() -> MaskSet:
    dense = np.zeros((3, *SHAPE), bool)
    dense[0, 1:5, 1:5, 1:5] = dense[1, 3:7, 3:7, 3:7] = dense[2, 0, 0, :] = True
    return MaskSet.from_dense(dense, [0, 0, 1], [0.5, 0.75, 1])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_the_geometry_of_the_header_is_the_source_s_to_the_bit(tmp_path: Path, kind: type) -> None:
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    with open_volume(scan(tmp_path / "scan.nii.gz", kind)) as source:
        write_labels(tmp_path / "labels.nii.gz", labels, source.geometry, CLASSES, source.reference)
        write_objects(tmp_path / "objects.nii.gz", overlapping(), source.geometry, CLASSES, source.reference)
    before = nibabel.load(tmp_path / "scan.nii.gz").header
    for name in ("labels.nii.gz", "objects.nii.gz"):
        image = nibabel.load(tmp_path / name)
        for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                      "qoffset_z", "pixdim", "qform_code", "sform_code", "xyzt_units"):  # fmt: skip
            assert image.header[field].tobytes() == before[field].tobytes(), field
        assert np.array_equal(image.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
        assert CANARY.encode() not in image.header.binaryblock
        assert NOTICE.encode() in image.header["descrip"].tobytes()
    assert np.array_equal(nibabel.load(tmp_path / "labels.nii.gz").get_fdata(), labels)


def test_classes_are_named_in_the_header_and_beside_it(tmp_path: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    geometry = VolumeGeometry(SHAPE, OBLIQUE)
    write_labels(tmp_path / "labels.nii.gz", np.ones(SHAPE, np.uint8), geometry, CLASSES)
    extension = nibabel.load(tmp_path / "labels.nii.gz").header.extensions[0]
    table = ElementTree.fromstring(extension.content.rstrip(b"\0"))
    assert [row.text for row in table.iter("Label")] == ["background", "liver & co]] >", "tumour"]
    beside = json.loads((tmp_path / "labels.json").read_text())
    assert beside["labels"]["1"] == {"name": "liver & co]]>", "colour": "#112233"} and beside["notice"] == NOTICE
    assert np.allclose(nibabel.load(tmp_path / "labels.nii.gz").affine, OBLIQUE, atol=1e-5)


def test_overlaps_survive_in_layers(tmp_path: Path) -> None:
    objects, geometry = overlapping(), VolumeGeometry(SHAPE, OBLIQUE)
    path = write_objects(tmp_path / "objects.nii.gz", objects, geometry, CLASSES)
    assert nibabel.load(path).shape == (*SHAPE, 2)
    assert read_objects(path, objects.labels) == objects.with_scores([1, 1, 1])
    apart = objects[[0, 2]]
    assert nibabel.load(write_objects(tmp_path / "apart.nii.gz", apart, geometry, CLASSES)).shape == SHAPE
    write_objects(tmp_path / "none.nii.gz", MaskSet.empty(SHAPE), geometry, CLASSES)
    assert not nibabel.load(tmp_path / "none.nii.gz").get_fdata().any()


def test_many_objects_take_a_wider_type_and_equal_bytes(tmp_path: Path) -> None:
    geometry = VolumeGeometry((8, 10, 10), np.eye(4))
    objects = MaskSet.from_label_map(np.arange(1, 801).reshape(8, 10, 10))
    first, second = (write_objects(tmp_path / f"{n}.nii.gz", objects, geometry, CLASSES) for n in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert nibabel.load(first).get_data_dtype() == np.uint16
    assert read_objects(first, objects.labels) == objects


def test_what_is_written_in_pieces_is_what_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, geometry = overlapping(), VolumeGeometry(SHAPE, OBLIQUE)
    labels = np.asfortranarray(np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8))
    found = []
    for name, voxels in (("whole", nifti._SLAB), ("pieces", 2 * SHAPE[0] * SHAPE[1])):
        monkeypatch.setattr(nifti, "_SLAB", voxels)
        one = write_objects(tmp_path / name / "objects.nii.gz", objects, geometry, CLASSES)
        two = write_labels(tmp_path / name / "labels.nii.gz", labels, geometry, CLASSES)
        assert np.array_equal(nibabel.load(two).get_fdata(), labels)
        assert read_objects(one, objects.labels) == objects.with_scores([1, 1, 1])
        found.append([gzip.decompress(path.read_bytes()) for path in (one, two)])
    assert found[0] == found[1]


def test_the_table_is_in_patient_millimetres(tmp_path: Path) -> None:
    geometry = VolumeGeometry(SHAPE, np.diag([-2.0, 1.5, 3, 1]))
    objects = overlapping()
    with write_table(tmp_path / "objects.csv", objects, geometry, CLASSES).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["liver & co]]>", "liver & co]]>", "tumour"]
    assert float(rows[0]["volume_mm3"]) == 64 * 9 and rows[0]["notice"] == NOTICE
    assert [float(rows[0][k]) for k in ("right_mm", "anterior_mm", "superior_mm")] == [-5, 3.75, 7.5]
    assert float(rows[0]["diameter_max_mm"]) == pytest.approx(np.linalg.norm([6, 4.5, 9]), abs=1e-3)
    assert float(rows[2]["diameter_max_mm"]) == 18
    flat = np.zeros((1, *SHAPE), bool)
    flat[0, 2, 1:6, 1:6] = True
    assert largest_diameter(MaskSet.from_dense(flat, [0]), geometry) == pytest.approx(np.linalg.norm([6, 12]))
