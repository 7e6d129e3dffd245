"""Points in MATLAB files, as the crowd counting sets publish them.

ShanghaiTech: `image_info[0,0][0,0][0]` is (N, 2). UCF-QNRF and UCF_CC_50: `annPoints` (N, 2). Mall: `frame[0, i]` holds
`loc` (N, 2) of picture `seq_{i+1:06d}`. x and y in pixels, taken as they are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.errors import InputError
from adapters.reading import listing
from pipelines.annotations.points import table_of_points
from pipelines.annotations.tables import Table


def read_mat(path: Path) -> Table:
    """The points of a .mat file. InputError for another layout, naming what the file holds instead."""
    import scipy.io

    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        held = scipy.io.loadmat(path)
    except NotImplementedError:
        raise InputError(f"{path}: a MATLAB 7.3 file (HDF5), which is not read; save it with -v7") from None
    except Exception as error:  # noqa: BLE001 - scipy raises anything over a damaged file
        raise InputError(f"{path}: not a .mat file that can be read: {' '.join(str(error).split())[:200]}") from None
    for key, read in (("annPoints", _points), ("image_info", _shanghaitech)):
        if key in held:
            points = read(held[key])
            if points is None:
                raise InputError(
                    f"{path}: '{key}' is not laid out as expected: (N, 2) points, found {_shape(held[key])}"
                )
            return table_of_points(path, points)
    if "frame" in held:
        return _mall(path, held["frame"])
    names = [f"{k} {_shape(v)}" for k, v in held.items() if not k.startswith("__")]
    raise InputError(
        f"{path}: no points in a known layout (image_info of ShanghaiTech, annPoints of UCF-QNRF, frame of Mall); "
        f"the file holds {listing(names)}"
    )


def _shanghaitech(value: Any) -> NDArray | None:
    """Struct in a cell in a struct: `location` (N, 2), then `number`."""
    try:
        return _points(value[0, 0][0, 0][0])
    except (IndexError, TypeError, KeyError):
        return None


def _mall(path: Path, frames: Any) -> Table:
    points, names = [], []
    try:
        for number, frame in enumerate(np.ravel(frames), start=1):
            found = _points(frame["loc"][0, 0])
            if found is None:
                raise TypeError("loc")
            points.append(found)
            names += [f"seq_{number:06d}"] * len(found)
    except (IndexError, TypeError, KeyError, ValueError):
        raise InputError(f"{path}: 'frame' is not laid out as Mall's: expected `loc` (N, 2) in each") from None
    every = np.concatenate(points) if points else np.zeros((0, 2))
    return table_of_points(path, every, images=names)


def _points(value: Any) -> NDArray | None:
    """(N, 2) float64, nobody as (0, 2); None where it is something else."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        return None
    if array.size == 0:
        return np.zeros((0, 2))
    return array.astype(np.float64) if array.ndim == 2 and array.shape[1] == 2 else None


def _shape(value: Any) -> str:
    return (
        f"{value.dtype.name} {'x'.join(map(str, value.shape))}"
        if isinstance(value, np.ndarray)
        else type(value).__name__
    )
