"""DICOM in: order, units and world coordinates against known answers; odd series refused with the numbers."""

import logging
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from scipy.ndimage import map_coordinates

from adapters.channels import Channel, ChannelSet
from adapters.errors import InputError
from adapters.volume import SeriesRule
from pipelines.volumes.series import choose_series, find_series
from pipelines.volumes.source import VolumeSource, open_volume

sys.path.insert(0, str(Path(__file__).parent))
from make_dicom import CANARY, enhanced, header, stack, write


def volume(shape: tuple[int, int, int] = (5, 6, 7), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, shape).astype(np.uint16)


def at(image: nibabel.Nifti1Image, world: np.ndarray, order: int = 0) -> np.ndarray:
    """Values of a NIfTI image at (..., 3) RAS mm; NaN outside."""
    index = nibabel.affines.apply_affine(np.linalg.inv(image.affine), world)
    data = np.asanyarray(image.dataobj).astype(np.float64)
    index = np.round(np.moveaxis(index, -1, 0), 4)
    return map_coordinates(data, index, order=order, cval=np.nan, prefilter=False)


def world_of(source: VolumeSource) -> np.ndarray:
    return source.geometry.world(np.moveaxis(np.indices(source.shape), 0, -1))


@pytest.mark.parametrize("patient", ["STS_019", "STS_042"])
@pytest.mark.parametrize("scan", ["CT", "MR_T1"])
def test_sarcoma_equals_its_nifti(shared_data: Path, patient: str, scan: str) -> None:
    medical = shared_data / "medical"
    reference = nibabel.load(medical / "sarcoma" / patient / f"{scan}_image.nii.gz")
    with open_volume(medical / "dicom" / "sarcoma" / patient / scan / "image") as source:
        found, valid = source.read()
        assert source.modality == scan[:2] and valid.all() and found.dtype == np.int16
        assert source.shape == reference.shape[::-1] and len(source.reference) == source.shape[0]
        world = world_of(source)
        index = nibabel.affines.apply_affine(np.linalg.inv(reference.affine), world)
        assert np.abs(index - np.round(index)).max() < 1e-4  # voxel centres coincide
        assert np.array_equal(at(reference, world), found[0])


@pytest.mark.parametrize("name", ["001", "002_non_isotropic"])
def test_plain_series_equal_their_reference(shared_data: Path, name: str) -> None:
    folder = shared_data / "medical" / "dicom" / "edge_cases" / "plain_series"
    reference = nibabel.load(folder / f"{name}_ground_truth.nii.gz")
    with open_volume(folder / name) as source:
        found, _ = source.read()
        expected = at(reference, world_of(source))
        assert np.isfinite(expected).all() and np.allclose(found[0], expected, atol=1e-3, rtol=1e-6)
        varied = name != "001"
        assert any("rescale slope differs between slices" in n for n in source.notes) == varied


def test_uneven_series_is_refused_with_numbers_or_resampled(shared_data: Path) -> None:
    """A gantry of 15.5 degrees with one slice missing: on purpose, the slices keep their place in the patient."""
    folder = shared_data / "medical" / "dicom" / "edge_cases" / "uneven_slice_increment" / "002"
    with pytest.raises(InputError, match=r"1 slices are missing: 1 after slice 3.*0\.7497 mm.*tilted.*15\.50 degrees"):
        open_volume(folder)
    with open_volume(folder, allow_uneven=True) as source:
        assert source.shape[0] == 5 and source.reference is None and source.geometry.shear < 1e-6
        found, valid = source.read()
        assert 0.9 < valid.mean() < 1
        assert any("resampled onto an even grid: 1 slices are missing" in n for n in source.notes)
        for number, file in enumerate(sorted(folder.glob("*.dcm"))):
            dataset = pydicom.dcmread(file)
            plane = dataset.pixel_array.astype(float) - 1024
            corner = np.array(dataset.ImagePositionPatient, float)
            down = np.array(dataset.ImageOrientationPatient[3:], float) * dataset.PixelSpacing[0]
            right = np.array(dataset.ImageOrientationPatient[:3], float) * dataset.PixelSpacing[1]
            rows, columns = np.mgrid[20:500:16, 20:500:16]
            world = (corner + rows[..., None] * down + columns[..., None] * right) * (-1, -1, 1)
            index = source.geometry.index(world)
            assert np.abs(index[..., 0] - (number if number < 3 else 4)).max() < 0.01
            seen = map_coordinates(found[0], np.moveaxis(index, -1, 0), order=1, mode="nearest")
            # pixels are noise: the first slice is not moved, the others are blurred by part of a row, and a row off
            # would leave nothing in common
            alike = np.corrcoef(seen.ravel(), plane[rows, columns].ravel())[0, 1]
            assert alike > (0.9999 if number == 0 else 0.7), (number, alike)


def test_slices_are_sorted_by_place_and_units_are_hounsfield(tmp_path: Path) -> None:
    stored = volume()
    stack(tmp_path / "deep" / "er", stored)  # file names and numbers run against the positions
    (tmp_path / "notes.txt").write_text("no DICOM")
    with open_volume(tmp_path) as source:
        found, valid = source.read()
        assert found.dtype == np.int16 and np.array_equal(found[0], stored.astype(int) - 1024) and valid.all()
        assert np.allclose(source.geometry.world([2, 1, 3]), [10 - 3 * 0.7, 20 - 0.8, 5.0])
        assert source.geometry.spacing == pytest.approx((2.5, 0.8, 0.7))
        assert np.array_equal(source.read((slice(1, 2), slice(0, 6), slice(2, 4)))[0][0], found[0, 1:2, :, 2:4])
        assert [float(d.ImagePositionPatient[2]) for d in source.reference] == [0, 2.5, 5, 7.5, 10]
        assert not any("PixelData" in d for d in source.reference)
    windows = ChannelSet((Channel.window("soft", -160, 240, ("ct",)), Channel.window("bone", -500, 1300, ("ct",))))
    with open_volume(tmp_path, windows) as source:
        both, _ = source.read()
        assert source.channels == ("soft", "bone") and np.array_equal(both[0], both[1])


def test_padding_of_a_ct_is_air(tmp_path: Path) -> None:
    stored = volume()
    stored[:, 0, 0] = 63
    stack(tmp_path, stored, PixelPaddingValue=63)
    with open_volume(tmp_path) as source:
        assert (source.read()[0][0, :, 0, 0] == -1024).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_pixels(tmp_path: Path, syntax: str) -> None:
    from openjpeg.utils import encode_array

    stored = volume((3, 32, 40))
    for path in stack(tmp_path, stored):
        dataset = pydicom.dcmread(path)
        if syntax == JPEG2000Lossless:  # pydicom encodes it only with a further package
            frame = encode_array(dataset.pixel_array, bits_stored=12)
            dataset.PixelData = pydicom.encaps.encapsulate([frame])
            dataset["PixelData"].VR = "OB"
            dataset.file_meta.TransferSyntaxUID = syntax
        else:
            dataset.compress(syntax)
        dataset.save_as(path)
    with open_volume(tmp_path) as source:
        assert np.array_equal(source.read()[0][0], stored.astype(int) - 1024)


def test_enhanced_frames_are_slices(tmp_path: Path) -> None:
    stored = volume((4, 6, 7))
    order = [2, 0, 3, 1]
    enhanced(tmp_path / "one.dcm", stored[order], [(1.0, 2.0, 3.0 * i) for i in order], [1, 2, 1, 2])
    with open_volume(tmp_path) as source:
        expected = stored.astype(int) * np.array([2, 2, 1, 1])[:, None, None] - 1000
        assert np.array_equal(source.read()[0][0], expected) and source.shape == (4, 6, 7)
        assert len(source.reference) == len(source.files) == 1
        assert source.geometry.spacing[0] == pytest.approx(3)
    with open_volume(tmp_path / "one.dcm") as source:
        assert source.shape == (4, 6, 7)


def test_one_series_of_many_and_why(tmp_path: Path) -> None:
    stack(tmp_path / "a", volume((9, 6, 7)), "thorax soft")
    stack(tmp_path / "b", volume((5, 6, 7)), "thorax lung")
    stack(tmp_path / "c", volume((12, 6, 7)), "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    stack(tmp_path / "d", volume((4, 6, 7)), "t1", Modality="MR")
    series = find_series(tmp_path)
    assert [len(s.slices) for s in series if s.modality == "MR"] == [4] and len(series) == 4
    with open_volume(tmp_path) as source:
        assert source.shape[0] == 9
        notes = " | ".join(source.notes)
        assert notes.startswith("taken: CT, 9 slices of 2.5 mm, 6x7, 'thorax soft of ***'")
        assert "a localiser" in notes and "fewer slices" in notes
    lung = next(s for s in series if "lung" in s.description)
    for chosen in (lung.uid, lung.uid[-8:]):
        assert choose_series(series, uid=chosen).series is lung
    assert choose_series(series, SeriesRule("MR")).series.modality == "MR"
    assert choose_series(series, SeriesRule(description="^THORAX l")).series is lung
    with pytest.raises(InputError, match=r"no series fits: .*not in 0 to 1"):
        choose_series(series, SeriesRule("CT", thickness=(0, 1)))
    with pytest.raises(InputError, match="no series 9999; there are CT"):
        choose_series(series, uid="9999")


def test_two_patients_need_a_choice(tmp_path: Path) -> None:
    stack(tmp_path / "a", volume(), "one")
    stack(tmp_path / "b", volume(), "two", PatientID="other", PatientName="Other^One")
    with pytest.raises(InputError, match=r"series of 2 patients: [0-9a-f]{10} \(1 series\)"):
        open_volume(tmp_path)
    uid = next(s.uid for s in find_series(tmp_path) if s.description.startswith("two"))
    with open_volume(tmp_path, series=uid) as source:
        assert source.shape == (5, 6, 7)


def test_duplicates_gaps_echoes(tmp_path: Path) -> None:
    paths = stack(tmp_path / "a", volume())
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "x.dcm").write_bytes(paths[2].read_bytes())
    with open_volume(tmp_path) as source:
        assert source.shape[0] == 5 and "1 files repeat slices" in " ".join(source.notes)
    paths[2].unlink()
    (tmp_path / "copy" / "x.dcm").unlink()
    with pytest.raises(InputError, match=r"1 slices are missing: 1 after slice 2 \(at 2\.50 mm\)"):
        open_volume(tmp_path)
    with open_volume(tmp_path, allow_uneven=True) as source:
        found, _ = source.read()
        assert np.allclose(found[0, 2], (found[0, 1] + found[0, 3]) / 2)
    stack(tmp_path / "e", volume((3, 6, 7)), "uneven", [(0, 0, 0), (0, 0, 2), (0, 0, 5.3)])
    with pytest.raises(InputError, match=r"unevenly spaced: 2 to 3\.3 mm"):
        open_volume(tmp_path / "e")
    for echo in (1.5, 3.0):
        stack(tmp_path / "f" / str(echo), volume((3, 6, 7)), "echoes", Modality="MR", EchoTime=echo)
    parts = find_series(tmp_path / "f")
    assert [(len(s.slices), s.part) for s in parts] == [(3, 1), (3, 2)] and not any(s.problems for s in parts)
    stack(tmp_path / "g" / "1", volume((3, 6, 7)), "twice")
    stack(tmp_path / "g" / "2", volume((3, 6, 7), 1), "twice")
    for allowed in (False, True):  # resampling is no way out of it, and is not named as one
        with pytest.raises(InputError, match=r"3 slices share a place[^;]*$"):
            open_volume(tmp_path / "g", allow_uneven=allowed)


def test_folders_without_a_volume(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="0 files, none DICOM"):
        open_volume(tmp_path / "empty")
    bare = header("report", Modality="SR")
    write(bare, tmp_path / "sr" / "a.dcm")
    with pytest.raises(InputError, match="1 SR objects without a scan"):
        open_volume(tmp_path / "sr")
    paths = stack(tmp_path / "nopixels", volume())
    for path in paths[:2]:
        dataset = pydicom.dcmread(path)
        del dataset.PixelData
        dataset.save_as(path)
    with pytest.raises(InputError, match="2 of 5 files have no pixel data"):
        open_volume(tmp_path / "nopixels")
    paths = stack(tmp_path / "cut", volume())
    paths[0].write_bytes(paths[0].read_bytes()[:-30])
    with pytest.raises(InputError, match=r"slice 1|slice 5|cannot be read"):
        open_volume(tmp_path / "cut")


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")
def test_private_nonsense_does_not_matter(tmp_path: Path) -> None:
    for path in stack(tmp_path, volume()):
        dataset = pydicom.dcmread(path)
        dataset.add_new((0x0009, 0x0010), "LO", "NONSENSE")
        dataset.add_new((0x0009, 0x1001), "UN", bytes(range(250)))
        dataset.add_new((0x0029, 0x1010), "OB", b"\x00\xff" * 40)
        dataset.PatientBirthDate = "not a date"
        dataset.save_as(path)
    with open_volume(tmp_path) as source:
        assert source.shape == (5, 6, 7)


def test_a_patients_name_is_never_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    stack(tmp_path / "a", volume(), "one")
    stack(tmp_path / "b", volume((3, 6, 7)), "two", [(0, 0, 0), (0, 0, 2), (0, 0, 5.3)])
    with open_volume(tmp_path) as source:
        said += [*source.notes, repr(source), str(source.extra)]
    for bad in (tmp_path / "b",):
        with pytest.raises(InputError) as caught:
            open_volume(bad)
        said.append(str(caught.value))
    said += [s.describe() for s in find_series(tmp_path)]
    said += [str(w.message) for w in recwarn.list]
    text = (" ".join(said) + caplog.text).casefold()
    for word in (*CANARY.casefold().split("^"), "canary-4711", "4711"):
        assert word not in text
