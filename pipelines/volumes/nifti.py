"""NIfTI volumes: 3-D, 4-D with channels, and several files of one patient; read slice by slice."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from adapters.channels import ChannelSet
from adapters.errors import InputError
from pipelines.sources.base import Selection
from pipelines.sources.unpack import check_space, temporary_folder
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.source import VolumeSource, Window, is_nifti

_MOST_DEFLATED = 1032  # deflate's best ratio: a member of n bytes cannot hold more than 1032 n
_BLOCK = 4 << 20
_UNITS = {"meter": 1e3, "micron": 1e-3}  # to mm; anything else is taken as mm


@dataclass
class NiftiFile:
    """One opened file: its grid, and where its values lie. `axis` is the one of the channels in a 4-D file."""

    path: Path
    header: Any
    geometry: VolumeGeometry
    stored: NDArray  # a memory map, axes as in the file without those of length 1 behind the third
    axis: int | None
    scaling: tuple[float, float] = (1.0, 0.0)  # slope, intercept of the stored values
    notes: list[str] = field(default_factory=list)
    close: Callable[[], Any] = lambda: None

    @property
    def count(self) -> int:
        return 1 if self.axis is None else self.stored.shape[self.axis]

    @property
    def dtype(self) -> np.dtype:
        """Of the values after scaling, in the machine's own byte order."""
        stored = self.stored.dtype.newbyteorder("=")
        if self.scaling == (1.0, 0.0):
            return stored
        return np.dtype(np.float64 if stored.itemsize > 2 and stored != np.float32 else np.float32)

    def reader(self, channel: int) -> Callable[[Window], NDArray]:
        """The function that reads a window of one channel, scaled."""

        def read(window: Window) -> NDArray:
            place = list(window)
            if self.axis is not None:
                place.insert(self.axis, channel)  # type: ignore[arg-type]
            values = self.stored[tuple(place)]
            slope, inter = self.scaling
            return values if (slope, inter) == (1.0, 0.0) else values.astype(self.dtype) * slope + inter

        return read


def open_files(
    files: Mapping[str, Path], channels: ChannelSet | None, channel_axis: int | None, where: Path | None = None
) -> VolumeSource:
    """Files of one patient as one source; see `pipelines.volumes.source.open_volume`.

    files: name of each file's channel; the name "" stands for a single file whose channel has no name of its own.
    InputError where the files lie on different grids.
    """
    where = where or next(iter(files.values()))
    wanted = _needed(files, channels, where)
    opened: dict[str, NiftiFile] = {}
    try:
        for name in wanted:
            opened[name] = open_nifti(files[name], channel_axis)
        return _combine(where, opened, channels)
    except BaseException:
        for one in opened.values():
            one.close()
        raise


def _needed(files: Mapping[str, Path], channels: ChannelSet | None, where: Path) -> list[str]:
    """Names of the files to open: all, or of several named ones those the channels ask for."""
    names = list(files)
    if channels is None or len(names) == 1:
        return names
    chosen = set(channels.select([(n,) for n in names], str(where)))
    return [n for i, n in enumerate(names) if i in chosen]


def _combine(where: Path, opened: Mapping[str, NiftiFile], channels: ChannelSet | None) -> VolumeSource:
    first = next(iter(opened.values()))
    bands: list[tuple[str, ...]] = []
    readers: list[Callable[[Window], NDArray]] = []
    for name, one in opened.items():
        if not one.geometry.same_grid(first.geometry):
            raise InputError(
                f"{one.path}: lies on another grid than {first.path.name}: {one.geometry.describe()} against "
                f"{first.geometry.describe()}; resample the files onto one grid"
            )
        single = len(opened) == 1 and one.count == 1
        for channel in range(one.count):
            own = name if one.count == 1 else f"{name} {channel + 1}".strip()
            # the only channel there is answers to the only name that is asked for
            also = channels.names if single and channels is not None and len(channels) == 1 else ()
            bands.append((own or "image", "image", *also) if single else (own,))
            readers.append(one.reader(channel))
    selection = Selection.of(bands, channels, where)
    dtype = np.result_type(*[one.dtype for one in opened.values()])
    source = VolumeSource(
        where,
        [one.path for one in opened.values()],
        "nifti",
        first.geometry,
        [None if b is None else readers[b] for b in selection.bands],
        selection,
        selection.result_dtype(dtype),
    )
    source.reference = first.header
    several = len(opened) > 1
    source.notes = [f"{one.path.name}: {n}" if several else n for one in opened.values() for n in one.notes]
    source._closers = [one.close for one in opened.values()]
    return source


def open_nifti(path: Path, channel_axis: int | None = None) -> NiftiFile:
    """One file: header checked, `.gz` unpacked into a temporary file, values mapped. InputError says what is wrong."""
    image = _load(path)
    header = image.header
    shape = tuple(int(n) for n in header.get_data_shape())
    notes: list[str] = []
    while len(shape) > 3 and 1 in shape[3:]:  # 4-D with one volume, and vectors that leave out the time
        shape = shape[: 3 + shape[3:].index(1)] + shape[4 + shape[3:].index(1) :]
    if len(shape) < 3:
        raise InputError(f"{path}: expected a volume, found a picture of {'x'.join(map(str, shape)) or 'no'} pixels")
    if min(shape) < 1:
        raise InputError(f"{path}: the volume has no voxels ({'x'.join(map(str, shape))})")
    axis = None
    if len(shape) == 4:
        axis = 3 if channel_axis is None else int(channel_axis) % 4
        notes.append(f"4-D file: axis {axis} holds {shape[axis]} channels")
    elif len(shape) > 4:
        raise InputError(f"{path}: expected three axes and perhaps one of channels, found {'x'.join(map(str, shape))}")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise InputError(f"{path}: values of type {dtype} are not intensities; expected integers or floats to 64 bit")
    space = tuple(n for a, n in enumerate(shape) if a != axis)
    geometry = _geometry(path, header, (space[0], space[1], space[2]), notes)
    stored, close = _map(path, image, dtype, shape)
    # nibabel clears the header's own scaling on loading
    scaling = float(image.dataobj.slope), float(image.dataobj.inter)
    return NiftiFile(path, header, geometry, stored, axis, scaling, notes, close)


def _load(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        if path.suffix.casefold() == ".gz":
            with gzip.open(path, "rb") as file:  # nibabel calls a truncated file one of unknown type
                file.read(1024)
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise InputError(f"{path}: expected NIfTI, found {type(image).__name__}; convert it first")
        return image
    except InputError:
        raise
    except EOFError as error:
        raise InputError(f"{path}: the gzip data ends before the header does: the file is truncated") from error
    except (ImageFileError, HeaderDataError, OSError, zlib.error, ValueError, TypeError) as error:
        if not is_nifti(path):
            raise InputError(f"{path}: not a NIfTI image (.nii, .nii.gz), and not DICOM") from error
        raise InputError(f"{path}: not a NIfTI image: {_line(error)}") from error


def _geometry(path: Path, header: Any, shape: tuple[int, int, int], notes: list[str]) -> VolumeGeometry:
    """The sform where it is set and usable, else the qform, else the spacing alone; what was used is noted."""
    found: dict[str, VolumeGeometry] = {}
    for name, code, reader in (
        ("sform", int(header["sform_code"]), header.get_sform),
        ("qform", int(header["qform_code"]), header.get_qform),
    ):
        if code > 0:
            try:
                found[name] = VolumeGeometry(shape, _in_mm(header, reader()))
            except (ValueError, HeaderDataError, np.linalg.LinAlgError) as error:
                notes.append(f"the {name} (code {code}) is unusable and was passed over: {_line(error)}")
    if len(found) == 2:
        apart = found["sform"].distance(found["qform"])
        # header floats are float32: a tenth of the finest voxel is disagreement, not rounding
        if apart > 0.1 * min(found["sform"].spacing):
            notes.append(
                f"qform and sform disagree by up to {apart:.3g} mm; the sform was used "
                f"({found['sform'].describe()}), not the qform ({found['qform'].describe()})"
            )
    for name in ("sform", "qform"):
        if name in found:
            unit = header.get_xyzt_units()[0]
            if unit in _UNITS:
                notes.append(f"the header's lengths are in {unit}s; taken as {_UNITS[unit]:g} mm each")
            return found[name]
    try:
        geometry = VolumeGeometry(shape, _in_mm(header, header.get_base_affine()))
    except (ValueError, HeaderDataError) as error:
        raise InputError(f"{path}: the header gives no usable grid: {_line(error)}") from error
    notes.append(f"neither qform nor sform is set: the orientation is a guess ({geometry.describe()})")
    return geometry


def _in_mm(header: Any, affine: NDArray) -> NDArray[np.float64]:
    scale = _UNITS.get(header.get_xyzt_units()[0], 1.0)
    affine = np.array(affine, np.float64)
    return affine if scale == 1.0 else np.vstack([affine[:3] * scale, affine[3:]])


def _map(path: Path, image: Any, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[NDArray, Callable[[], Any]]:
    """The values as a memory map, and the function that removes what was unpacked for it."""
    holder = image.file_map["image"].filename or str(path)
    file, offset = Path(holder), int(image.dataobj.offset)
    declared = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    close: Callable[[], Any] = lambda: None  # noqa: E731
    if file.suffix.casefold() in (".gz", ".bz2", ".zst"):
        if file.suffix.casefold() != ".gz":
            raise InputError(f"{path}: expected .nii or .nii.gz, found {file.suffix}")
        file, close = _unpack(file, declared)
    size = file.stat().st_size
    if size < declared:
        close()
        raise InputError(
            f"{path}: the header declares {'x'.join(map(str, shape))} voxels of {dtype} ({declared} bytes), the file "
            f"has {size} bytes: truncated or not what it says"
        )
    return np.memmap(file, dtype, "r", offset, shape, order="F"), close


def _unpack(path: Path, declared: int) -> tuple[Path, Callable[[], Any]]:
    """Unpack `declared` bytes of a gzip file into a temporary one; its path and the function that removes it.

    Both what deflate can hold at best and the free disk are checked before a byte is written; the checksum after.
    """
    packed = path.stat().st_size
    if declared > packed * _MOST_DEFLATED + 1024:
        raise InputError(
            f"{path}: the header declares {declared / 1e6:.0f} MB, which a file of {packed} bytes cannot hold"
        )
    check_space(path, declared, Path(tempfile.gettempdir()))
    folder, remove = temporary_folder()
    target = folder / "volume.nii"
    try:
        with gzip.open(path, "rb") as source, target.open("wb") as sink:
            left = declared
            while left and (block := source.read(min(_BLOCK, left))):
                sink.write(block)
                left -= len(block)
            for _ in range(16):  # to the checksum at the end; what follows the values is not kept
                if not source.read(_BLOCK):
                    break
        return target, remove
    except EOFError as error:
        remove()
        raise InputError(f"{path}: the gzip data ends too early: the file is truncated") from error
    except (OSError, zlib.error) as error:
        remove()
        raise InputError(f"{path}: cannot be unpacked: {_line(error)}") from error
    except BaseException:
        remove()
        raise


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
