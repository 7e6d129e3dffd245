"""A scene with damaged blocks, read as far as it can be: what cannot be decoded counts as unseen, and is remembered.

One corrupt block of a large scene should cost its own pixels and no more. Nothing is skipped silently: every loss is in
`lost`, and who predicts writes it into run.json and into the exit code.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.errors import InputError
from pipelines.grid import Window

SMALLEST = 64  # px; a window that cannot be read is halved until it is this small


class TolerantSource:
    """Wraps any source; `read` gives invalid pixels instead of raising. All else passes through.

    `lost`: windows (rows, columns) that could not be read, each once, with the reader's words.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.lost: dict[tuple[int, int, int, int], str] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def read(self, window: Window) -> tuple[NDArray, NDArray[np.bool_]]:
        """As the wrapped source's; what cannot be read is 0 and not valid."""
        try:
            return self.source.read(window)
        except InputError as error:
            if max(part.stop - part.start for part in window) <= SMALLEST:
                return self._nothing(window, error)
        axis = int(np.argmax([part.stop - part.start for part in window]))
        part = window[axis]
        middle = (part.start + part.stop) // 2
        halves = [
            self.read((*window[:axis], half, *window[axis + 1 :]))
            for half in (slice(part.start, middle), slice(middle, part.stop))
        ]
        arrays, valids = zip(*halves, strict=True)
        return np.concatenate(arrays, axis=axis + 1), np.concatenate(valids, axis=axis)

    def _nothing(self, window: Window, error: InputError) -> tuple[NDArray, NDArray[np.bool_]]:
        rows, columns = window
        with self._lock:
            self.lost[(rows.start, rows.stop, columns.start, columns.stop)] = str(error)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        return np.zeros((len(self.source.channels), *shape), self.source.dtype), np.zeros(shape, bool)


def lost_pixels(windows: set[tuple[int, int, int, int]], shape: tuple[int, int]) -> int:
    """Pixels of a scene that some of `windows` (top, bottom, left, right) cover; overlapping ones count once."""
    if not windows:
        return 0
    edges_y = sorted({edge for top, bottom, _, _ in windows for edge in (top, bottom)})
    total = 0
    for top, bottom in pairwise(edges_y):
        spans = sorted((w[2], w[3]) for w in windows if w[0] <= top and w[1] >= bottom)
        reach, covered = 0, 0
        for left, right in spans:
            covered += max(0, right - max(left, reach))
            reach = max(reach, right)
        total += covered * (bottom - top)
    return min(total, shape[0] * shape[1])
