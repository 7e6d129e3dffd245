"""A scene read by whole blocks of its file, each decoded once while the tiles of a run still need it.

Tiles overlap and do not lie on the file's blocks, so reading window by window decodes a block up to four times. Here
every read is of whole blocks, and a block stays in memory until the last tile that shows it has been read: the blocks
of the current tile, and those the next row of tiles will show again. The tiles come in row-major order.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Tile, Window

LEAST = 64  # px; smaller blocks (the strips of a striped file) are read several at a time
PLAIN = 256  # px; side of the pieces of a source that has no blocks of its own
MEMORY = 256 << 20  # bytes that blocks may hold between two reads

Piece = tuple[NDArray, NDArray[np.bool_]]


class Place(NamedTuple):
    """A block, or a few of them: half-open rows and columns of the scene."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def window(self) -> Window:
        return slice(self.top, self.bottom), slice(self.left, self.right)


class BlockReader:
    """`source` read by whole blocks for `tiles`, all those of the run in row-major order; all else passes through.

    Over `memory` bytes a block goes early, and is decoded again for the next row of tiles. A scene whose blocks are too
    large for that (strips of a very wide file) is read by windows. Safe to share between threads.
    """

    def __init__(self, source: Any, tiles: Sequence[Tile], memory: int = MEMORY) -> None:
        self.source = source
        self.memory = memory
        self.decoded = 0  # blocks read so far, those read again included
        self.held = 0
        self._pieces: dict[Place, Piece] = {}
        self._lock = threading.Lock()
        self._edges = tuple(
            _edges(length, block, origin)
            for length, block, origin in zip(source.shape, source.block or (PLAIN, PLAIN), source.origin, strict=True)
        )
        self._next = tuple(dict(pairwise(sorted({tile.offset[axis] for tile in tiles}))) for axis in (0, 1))
        largest = [max(b - a for a, b in pairwise(edges)) for edges in self._edges]
        tallest = max(tile.shape[0] for tile in tiles)
        # What has to be held at once, at least: one tile's height of blocks, as wide as one of them.
        self._by_windows = (tallest + largest[0]) * largest[1] * self._pixel_bytes() > memory

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def read(self, window: Window) -> Piece:
        """As the source's own `read`, of a tile's window."""
        if self._by_windows:
            return self.source.read(window)  # type: ignore[no-any-return]
        with self._lock:
            array, valid = self._assemble(window)
            self._forget(window)
        return array, valid

    def _assemble(self, window: Window) -> Piece:
        rows, columns = window
        size = (rows.stop - rows.start, columns.stop - columns.start)
        array, valid = None, np.empty(size, bool)
        for place in self._places(window):
            values, seen = self._piece(place)
            top, left = max(place.top, rows.start), max(place.left, columns.start)
            bottom, right = min(place.bottom, rows.stop), min(place.right, columns.stop)
            theirs = slice(top - place.top, bottom - place.top), slice(left - place.left, right - place.left)
            ours = slice(top - rows.start, bottom - rows.start), slice(left - columns.start, right - columns.start)
            if array is None:
                array = np.empty((len(values), *size), values.dtype)
            array[:, *ours], valid[ours] = values[:, *theirs], seen[theirs]
        assert array is not None, "a window has a pixel"
        return array, valid

    def _places(self, window: Window) -> list[Place]:
        """The blocks that a window shows."""
        spans = []
        for part, edges in zip(window, self._edges, strict=True):
            first, last = bisect_right(edges, part.start) - 1, bisect_right(edges, part.stop - 1) - 1
            spans.append([(edges[n], edges[n + 1]) for n in range(first, last + 1)])
        return [Place(*down, *across) for down in spans[0] for across in spans[1]]

    def _piece(self, place: Place) -> Piece:
        piece = self._pieces.get(place)
        if piece is None:
            piece = self._pieces[place] = self.source.read(place.window)
            self.decoded += 1
            self.held += piece[0].nbytes + piece[1].nbytes
        return piece

    def _forget(self, window: Window) -> None:
        """Let go what no later tile shows, and under need of memory what only the next row of tiles shows."""
        rows, columns = window
        next_row, next_column = self._next[0].get(rows.start), self._next[1].get(columns.start)
        for place in list(self._pieces):
            in_this_row = next_column is not None and place.right > next_column and place.bottom > rows.start
            in_next_row = next_row is not None and place.bottom > next_row
            if not in_this_row and not in_next_row:
                self._drop(place)
        if self.held > self.memory:
            # The newest go first: the next row begins with the oldest, and all of them would be too many.
            for place in reversed(list(self._pieces)):
                if next_column is None or place.right <= next_column:
                    self._drop(place)
                if self.held <= self.memory:
                    break

    def _drop(self, place: Place) -> None:
        values, seen = self._pieces.pop(place)
        self.held -= values.nbytes + seen.nbytes

    def _pixel_bytes(self) -> int:
        return len(self.source.channels) * int(self.source.dtype.itemsize) + 1


def _edges(length: int, block: int, origin: int) -> list[int]:
    """Borders of the pieces along an axis: the file's block borders, those that are at least `LEAST` px apart.

    origin: the axis' first pixel in the file, for a part of a scene.
    """
    step = block * -(-LEAST // block)
    return [0, *range(step - origin % step, length, step), length]
