"""Runs of open objects: in memory up to a limit, the oldest in a temporary file beyond it.

A river that crosses the whole scene stays open to the last row, and 100 000 rows of it need not stay in memory. The
file has no name (POSIX), so nothing is left behind even by a killed process, and it is written anew when more than
half of it is runs already given back: its size is bounded by the open runs.
"""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np
from numpy.typing import NDArray

MEMORY = 256 << 20  # bytes of runs held in memory; a row of 100 tiles with 500 objects each needs about 20 MB
WASTE = 1 << 20  # bytes of the file that may be waste before it is written anew


class Spool:
    """A dictionary of run arrays (R, columns) int32 that holds at most `limit` bytes of them in memory."""

    def __init__(self, columns: int, limit: int = MEMORY) -> None:
        self.columns = columns
        self.limit = limit
        self.held = 0
        self._memory: dict[int, NDArray[np.int32]] = {}
        self._places: dict[int, tuple[int, int]] = {}  # byte position and length in the file
        self._file: IO[bytes] | None = None
        self._end = 0
        self._live = 0

    @property
    def on_disk(self) -> int:
        """Bytes in the temporary file, waste included."""
        return self._end

    def put(self, key: int, runs: NDArray[np.int32]) -> None:
        """Keep runs; the array must be the caller's to give away."""
        self._memory[key] = runs
        self.held += runs.nbytes
        if self.held > self.limit:
            self._spill()

    def take(self, key: int) -> NDArray[np.int32]:
        """Give runs back and forget them."""
        runs = self._memory.pop(key, None)
        if runs is not None:
            self.held -= runs.nbytes
            return runs
        start, length = self._places.pop(key)
        found = self._read(start, length)
        self._live -= length
        if self._end - self._live > max(self._live, WASTE):
            self._rewrite()
        return found

    def close(self) -> None:
        """Forget everything, and give the disk back."""
        self._memory.clear()
        self._places.clear()
        self.held = self._end = self._live = 0
        if self._file:
            self._file.close()
            self._file = None

    def _read(self, start: int, length: int) -> NDArray[np.int32]:
        assert self._file is not None
        self._file.seek(start)
        return np.frombuffer(self._file.read(length), np.int32).reshape(-1, self.columns)

    def _spill(self) -> None:
        """Write the oldest runs until half the limit is free, so that not every `put` writes."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="maskbridge-runs-")  # noqa: SIM115 - lives as long as this
        self._file.seek(self._end)
        for key in list(self._memory):
            if self.held <= self.limit // 2:
                break
            runs = np.ascontiguousarray(self._memory.pop(key), np.int32)
            self._file.write(runs.tobytes())
            self._places[key] = (self._end, runs.nbytes)
            self.held -= runs.nbytes
            self._end += runs.nbytes
            self._live += runs.nbytes

    def _rewrite(self) -> None:
        """Move the live runs to the front: places rise with age, so none is written over before it is read."""
        assert self._file is not None
        end = 0
        for key, (start, length) in sorted(self._places.items(), key=lambda item: item[1]):
            runs = self._read(start, length)
            self._file.seek(end)
            self._file.write(runs.tobytes())
            self._places[key] = (end, length)
            end += length
        self._file.truncate(end)
        self._end = end
