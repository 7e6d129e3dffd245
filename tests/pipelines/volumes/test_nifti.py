"""NIfTI in: values, grids, channels, and files that are not what they say."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from adapters.channels import Channel, ChannelSet
from adapters.errors import InputError
from pipelines.volumes.source import name_channels, open_volume

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0.2, -20], [0, -0.2, 3, 5], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = AFFINE, **header: object) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def values(shape: tuple[int, ...] = (7, 8, 9), dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_values_and_windows(tmp_path: Path, dtype: str, ending: str) -> None:
    array = values(dtype=dtype)
    path = save(tmp_path / f"scan.{ending}", array)
    with open_volume(path) as source:
        found, valid = source.read()
        assert source.kind == "nifti" and source.channels == ("image",) and source.dtype == np.dtype(dtype)
        assert np.array_equal(found[0], array) and valid.all() and found.dtype == np.dtype(dtype)
        part, _ = source.read((slice(1, 3), slice(None), slice(8, 9)))
        assert np.array_equal(part[0], array[1:3, :, 8:9])
        assert found[0].flags.f_contiguous and valid.flags.f_contiguous, "the file's slices lie in one piece"
        assert np.array_equal(source.geometry.affine, nibabel.load(path).affine)
        with pytest.raises(ValueError, match="not inside"):
            source.read((slice(0, 99), slice(None), slice(None)))
        assert len(source.digest()) == 64


def test_big_endian_and_scaled_values(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), AFFINE, nibabel.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(2.5, -1024)
    nibabel.save(image, tmp_path / "big.nii.gz")
    with open_volume(tmp_path / "big.nii.gz") as source:
        assert source.dtype == np.float32 and source.dtype.isnative
        assert np.allclose(source.read()[0][0], nibabel.load(tmp_path / "big.nii.gz").get_fdata(), atol=1e-4)


def test_numbers_that_are_none_are_not_valid(tmp_path: Path) -> None:
    array = values(dtype="float32")
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = np.nan, np.inf, -np.inf
    with open_volume(save(tmp_path / "a.nii", array)) as source:
        found, valid = source.read()
    assert (~valid).sum() == 3 and not valid[1, 1, 1] and found[0, 1, 1, 1] == 0 and np.isfinite(found).all()


def test_channels_of_a_4d_file(tmp_path: Path) -> None:
    array = values((7, 8, 9, 3))
    path = save(tmp_path / "four.nii.gz", array)
    chosen = ChannelSet((Channel("flair", (3,)), Channel("t1", (1,))))
    with open_volume(path, chosen) as source:
        assert source.channels == ("flair", "t1") and source.shape == (7, 8, 9)
        assert np.array_equal(source.read()[0], np.moveaxis(array, 3, 0)[[2, 0]])
        assert any("axis 3 holds 3 channels" in n for n in source.notes)
    first = save(tmp_path / "first.nii", np.ascontiguousarray(np.moveaxis(array, 3, 0)))
    with open_volume(first, channel_axis=0) as source:
        assert np.array_equal(source.read((slice(0, 7), slice(2, 3), slice(4, 9)))[0][1], array[:, 2:3, 4:9, 1])
    with open_volume(save(tmp_path / "one.nii", array[..., :1])) as source:
        assert len(source.channels) == 1


def test_files_of_one_patient(tmp_path: Path) -> None:
    arrays = {n: values() + i for i, n in enumerate(("FLAIR", "T1", "T2"))}
    files = [save(tmp_path / f"patient19_{n}.nii.gz", a) for n, a in arrays.items()]
    assert list(name_channels(files)) == ["FLAIR", "T1", "T2"]
    chosen = ChannelSet((Channel("t2"), Channel("flair"), Channel("pd", impute="zero")))
    for given in (files, {"t2": files[2], "flair": files[0]}, tmp_path):
        with open_volume(given, chosen) as source:
            found, _ = source.read()
            assert np.array_equal(found[:2], [arrays["T2"], arrays["FLAIR"]]) and not found[2].any()
            assert len(source.files) == 2 and source.imputed == (False, False, True)
    with pytest.raises(InputError, match=r"no band 't1c'.*FLAIR, T1, T2"):
        open_volume(files, ChannelSet((Channel("t1c"),)))
    save(tmp_path / "patient19_T2.nii.gz", values(), np.diag([1.0, 1, 1, 1]))
    with pytest.raises(InputError, match=r"T2.nii.gz: lies on another grid than .*7x8x9 voxels of 1x1x1 mm"):
        open_volume(files)


def test_an_only_channel_needs_no_name(tmp_path: Path) -> None:
    path = save(tmp_path / "study2.nii.gz", values())
    with open_volume(path, ChannelSet((Channel("flair"),))) as source:
        assert source.channels == ("flair",)
    with pytest.raises(InputError, match="no band 'flair'"):
        open_volume(path, ChannelSet((Channel("flair"), Channel("t1"))))


def test_which_orientation_was_used_is_said(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), AFFINE)
    image.set_qform(np.diag([2.0, 1.5, 3, 1]), 1)
    image.set_sform(AFFINE, 2)
    nibabel.save(image, tmp_path / "two.nii")
    with open_volume(tmp_path / "two.nii") as source:
        assert any("disagree by up to" in n and "the sform was used" in n for n in source.notes)
        assert np.array_equal(source.geometry.affine, image.affine)
    image.set_sform(np.zeros((4, 4)), 2)
    image.header["srow_x"] = image.header["srow_y"] = image.header["srow_z"] = 0
    nibabel.save(image, tmp_path / "singular.nii")
    with open_volume(tmp_path / "singular.nii") as source:
        assert "sform (code 2) is unusable" in " ".join(source.notes)
        assert np.allclose(source.geometry.affine, np.diag([2.0, 1.5, 3, 1]))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "none.nii")
    with open_volume(tmp_path / "none.nii") as source:
        assert "neither qform nor sform" in source.notes[0]
    image = nibabel.Nifti1Image(values(), AFFINE)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "metres.nii")
    with open_volume(tmp_path / "metres.nii") as source:
        assert source.geometry.spacing[0] == pytest.approx(2000) and "meter" in source.notes[0]


def test_what_was_unpacked_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    with open_volume(save(tmp_path / "a.nii.gz", values())) as source:
        assert len(list((tmp_path / "t").rglob("volume.nii"))) == 1
        source.read()
    assert not list((tmp_path / "t").iterdir())
    broken = tmp_path / "b.nii.gz"
    broken.write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-300])
    with pytest.raises(InputError):
        open_volume(broken)
    assert not list((tmp_path / "t").iterdir())


def faults(folder: Path) -> dict[str, tuple[Path, str]]:
    """Bad files, each with what its one-line error says."""
    good = save(folder / "good.nii.gz", values())
    raw = gzip.decompress(good.read_bytes())
    cut = folder / "cut.nii.gz"
    cut.write_bytes(good.read_bytes()[:-400])
    stub = folder / "stub.nii.gz"
    stub.write_bytes(good.read_bytes()[:60])
    flipped = bytearray(good.read_bytes())
    flipped[-6] ^= 0xFF
    checksum = folder / "checksum.nii.gz"
    checksum.write_bytes(bytes(flipped))
    short = folder / "short.nii"
    short.write_bytes(raw[:-100])
    huge = bytearray(raw)
    struct.pack_into("<8h", huge, 40, 3, 32000, 32000, 32000, 1, 1, 1, 1)
    bomb = folder / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(bytes(huge)))
    none = bytearray(raw)
    struct.pack_into("<8h", none, 40, 3, 7, 8, 0, 1, 1, 1, 1)
    empty = folder / "empty.nii"
    empty.write_bytes(bytes(none))
    text = folder / "text.nii.gz"
    text.write_bytes(b"this is no gzip at all, and no image")
    nothing = folder / "nothing.nii"
    nothing.write_bytes(b"")
    rgb = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {
        "missing": (folder / "missing.nii", "no such file"),
        "cut": (cut, "truncated"),
        "stub": (stub, "truncated"),
        "checksum": (checksum, "cannot be unpacked: CRC"),
        "short": (short, "truncated"),
        "bomb": (bomb, "cannot hold"),
        "empty": (empty, "no voxels"),
        "text": (text, "not a NIfTI image"),
        "nothing": (nothing, "not a NIfTI image"),
        "flat": (save(folder / "flat.nii", values((7, 8))), "found a picture of 7x8"),
        "five": (save(folder / "five.nii", values((3, 3, 3, 2, 2))), "three axes"),
        "complex": (save(folder / "complex.nii", values().astype(np.complex64)), "not intensities"),
        "rgb": (save(folder / "rgb.nii", rgb), "not intensities"),
    }


def test_bad_files_are_one_readable_line(tmp_path: Path) -> None:
    for path, words in faults(tmp_path).values():
        with pytest.raises(InputError) as caught:
            open_volume(path)
        message = str(caught.value)
        assert words in message and path.name in message and "\n" not in message, message


def test_disk_is_checked_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.sources import unpack

    path = save(tmp_path / "a.nii.gz", values())
    monkeypatch.setattr(unpack.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="free some space"):
        open_volume(path)


def test_real_volumes(shared_data: Path) -> None:
    medical = shared_data / "medical"
    with open_volume(medical / "vertebrae" / "sub-ct_label-22_ct.nii.gz") as source:
        assert source.geometry.orientation == ("P", "I", "R") and source.geometry.axis_of("axial") == 1
    chosen = ChannelSet((Channel("FLAIR"), Channel("T1")))
    files = sorted((medical / "ms_lesions").glob("patient19_[FT]*.nii.gz"))
    with open_volume(files, chosen) as source:
        array, valid = source.read((slice(80, 90), slice(None), slice(None)))
        assert array.shape == (2, 10, 218, 182) and valid.all() and array.std() > 0
