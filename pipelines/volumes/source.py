"""Volumes in: one door, `open_volume`, for NIfTI files and DICOM folders. Light to import."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from adapters.errors import InputError
from pipelines.sources.base import Selection
from pipelines.volumes.geometry import VolumeGeometry

if TYPE_CHECKING:
    from adapters.channels import ChannelSet
    from adapters.volume import SeriesRule

Window = tuple[slice, ...]
VolumePath = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img")


class VolumeSource:
    """A volume read by windows; its voxels lie in memory maps, so that only what is read costs memory.

    path: the file, the folder, or the first of several files. shape: the array's, in the axis order it is stored in
    (NIfTI: i, j, k; DICOM: slice, row, column). channels: one name a plane of `read`. dtype: of the values that `read`
    returns. notes: what was chosen, passed over or odd, one line each, without names of patients. reference: what a
    writer copies from: nibabel's header, or the series' sorted datasets without pixels (None where its slices were
    resampled). extra: further facts for the manifest.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        kind: Literal["nifti", "dicom"],
        geometry: VolumeGeometry,
        planes: Sequence[Callable[[Window], NDArray] | None],
        selection: Selection,
        dtype: np.dtype,
    ) -> None:
        self.path = path
        self.files = tuple(files)
        self.kind = kind
        self.geometry = geometry
        self.shape = geometry.shape
        self.channels = selection.names
        self.imputed = selection.imputed
        self.dtype = np.dtype(dtype)
        self.modality: str | None = None
        self.notes: list[str] = []
        self.reference: Any = None
        self.extra: dict[str, Any] = {}
        self._planes = planes
        self._selection = selection
        self._closers: list[Callable[[], Any]] = []

    def read(self, window: Window | None = None) -> tuple[NDArray, NDArray[np.bool_]]:
        """Values (C, d, h, w) in the file's units and valid (d, h, w) of a window of three slices; None is all of it.

        A voxel is valid where every channel is a finite number; the values of the others are 0. In memory voxels lie
        in the order of the file, so that its slices stay in one piece. ValueError where the window leaves the volume.
        """
        inside = self._inside(window)
        shape = tuple(part.stop - part.start for part in inside)
        channels = len(self._planes)
        if self.kind == "nifti":  # whose first axis runs fastest
            values = np.empty((channels, *shape[::-1]), self.dtype).transpose(0, 3, 2, 1)
            valid = np.ones(shape[::-1], bool).T
        else:
            values, valid = np.empty((channels, *shape), self.dtype), np.ones(shape, bool)
        for plane, reader, fill in zip(values, self._planes, self._selection.fills):
            plane[...] = fill if reader is None else reader(inside)
            if self.dtype.kind == "f":
                valid &= np.isfinite(plane)
        if not valid.all():
            values[:, ~valid] = 0
        return values, valid

    def divide_by(self, fields: Sequence[Callable[[Window], NDArray]]) -> None:
        """From now on `read` gives each channel divided by its field (a function of the window), in float32."""
        whole = self._planes

        def divided(reader: Callable[[Window], NDArray], field: Callable[[Window], NDArray]) -> Any:
            return lambda window: reader(window) / field(window)

        self._planes = [reader and divided(reader, field) for reader, field in zip(whole, fields)]
        self.dtype = np.dtype(np.float32)

    def digest(self) -> str:
        """sha256 over the bytes of every file, in the order of the channels or slices, in hex."""
        digest = hashlib.sha256()
        for path in self.files:
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be hashed: {error.strerror or error}") from error
        return digest.hexdigest()

    def close(self) -> None:
        """Remove what was unpacked."""
        self._planes = ()
        for close in self._closers:
            close()
        self._closers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VolumeSource {self.kind} {len(self.channels)}x{'x'.join(map(str, self.shape))} {self.dtype}>"

    def _inside(self, window: Window | None) -> Window:
        if window is None:
            window = (slice(None),) * 3
        if len(window) != 3 or any(s.step not in (None, 1) for s in window):
            raise ValueError(f"expected a window of three slices, found {window}")
        bounds = []
        for part, length in zip(window, self.shape):
            start = 0 if part.start is None else int(part.start)
            stop = length if part.stop is None else int(part.stop)
            if not 0 <= start < stop <= length:
                raise ValueError(f"{self.path}: window {window} is not inside the volume {self.shape}")
            bounds.append(slice(start, stop))
        return tuple(bounds)


def open_volume(
    path: VolumePath,
    channels: ChannelSet | None = None,
    series: str | None = None,
    *,
    rule: SeriesRule | None = None,
    channel_axis: int | None = None,
    allow_uneven: bool = False,
) -> VolumeSource:
    """Open a CT or MR volume for windowed reading.

    path: a NIfTI file, a folder of DICOM (any depth, any number of series), a folder of NIfTI files that are channels
        of one patient, a list of such files, or a mapping from channel name to file.
    channels: read these channels only, in this order; without them all there are.
    series, rule: which DICOM series of the folder: by its UID (or the end of it), or by the adapter's rule.
    channel_axis: the axis of the channels in a 4-D file; the last one unless told.
    allow_uneven: resample slices that are unevenly spaced, missing or tilted onto an even grid, on purpose; without it
        they are refused with the numbers.

    InputError (one line that names the file or folder and the fault): not a volume, truncated, of another number of
    axes, without slices, too large for the disk, several patients, no series that fits.
    """
    from pipelines.volumes.dicom import holds_dicom, open_dicom
    from pipelines.volumes.nifti import open_files

    if isinstance(path, Mapping):
        return open_files({str(k): Path(v) for k, v in path.items()}, channels, channel_axis)
    if not isinstance(path, str | Path):
        return open_files(name_channels([Path(p) for p in path]), channels, channel_axis)
    where = Path(path)
    if not where.exists():
        raise InputError(f"{where}: no such file or folder")
    if where.is_dir():
        files = nifti_files(where)
        if files and not holds_dicom(where):
            return open_files(name_channels(files), channels, channel_axis, where)
        return open_dicom(where, channels, series, rule, allow_uneven)
    if not is_nifti(where) and holds_dicom(where):
        return open_dicom(where, channels, series, rule, allow_uneven)
    return open_files({"": where}, channels, channel_axis)


def is_nifti(path: Path) -> bool:
    """Whether the name ends as NIfTI files' do."""
    return path.name.casefold().endswith(NIFTI_ENDINGS)


def stem_of(path: Path) -> str:
    """File name without `.nii`, `.nii.gz` and the like."""
    name = path.name
    for ending in sorted(NIFTI_ENDINGS, key=len, reverse=True):
        if name.casefold().endswith(ending):
            return name[: -len(ending)]
    return path.stem


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files directly in a folder, by name; of a `.hdr`/`.img` pair the header."""
    return sorted(p for p in folder.iterdir() if p.is_file() and is_nifti(p) and not p.name.casefold().endswith(".img"))


def name_channels(files: Sequence[Path]) -> dict[str, Path]:
    """Channel name of each file: what is left of the stems without what they share in front, `patient19_T1` -> `T1`."""
    if not files:
        raise InputError("expected at least one file, found none")
    stems = [stem_of(p) for p in files]
    if len(stems) == 1:
        return {"": files[0]}
    if len(set(stems)) < len(stems):
        raise InputError(f"{files[0].parent}: two files bear one name: {', '.join(sorted(stems))}")
    words = [s.replace("-", "_").split("_") for s in stems]
    shared = 0
    while all(len(w) > shared + 1 for w in words) and len({w[shared] for w in words}) == 1:
        shared += 1
    names = ["_".join(w[shared:]) for w in words]
    return dict(zip(names, files))
