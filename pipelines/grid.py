"""Grid, Tile, Strip: how a scene or volume is cut into overlapping tiles. Small immutable values, any
number of axes.

The last tile of an axis is shifted inside the scene instead of being made smaller, so a model sees one tile
size; it may therefore overlap the tile before the last but one. A tile at least as long as its axis gives
one tile of the axis' length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Tile:
    """One window of the scene. index: position in the grid, one number an axis; window.

    Half-open pixel slices.
    """

    index: tuple[int, ...]
    window: Window = field(hash=False)  # slices have no hash before Python 3.12; the index says as much

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return tuple(part.stop - part.start for part in self.window)

    @property
    def offset(self) -> tuple[int, ...]:
        """Scene coordinates of the tile's first pixel."""
        return tuple(part.start for part in self.window)


@dataclass(frozen=True)
class Strip:
    """What two tiles both see; `first` comes before `second` in row-major order."""

    first: Tile
    second: Tile
    window: Window = field(hash=False)


class Meetings(NamedTuple):
    """The strips of one tile with its K neighbours, row-major.

    numbers: (K,) the neighbours; low, high: (K, axes) the strips, half-open; tile_low, tile_high: (K, axes) the
    neighbours' windows.
    """

    numbers: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    tile_low: NDArray[np.int64]
    tile_high: NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Tiles of size `tile` that overlap by at least `overlap` pixels and cover `shape` (rows, columns or
    more axes).

    ValueError where an axis, tile or overlap is not sensible (overlap must be smaller than the tile).
    """

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    overlap: tuple[int, ...]

    def __init__(self, shape: Sequence[int], tile: int | Sequence[int], overlap: int | Sequence[int]) -> None:
        axes = len(shape)
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        object.__setattr__(self, "tile", _for_each_axis("tile", tile, axes))
        object.__setattr__(self, "overlap", _for_each_axis("overlap", overlap, axes))
        if not axes or min(self.shape) < 1:
            raise ValueError(f"expected a scene of at least 1 pixel along each axis, got {self.shape}")
        for size, shared in zip(self.tile, self.overlap, strict=True):
            if size < 1 or shared < 0 or shared >= size:
                raise ValueError(f"expected 0 <= overlap < tile, got tile {self.tile} and overlap {self.overlap}")

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """First pixels of the tiles along each axis."""
        found = []
        for length, size, shared in zip(self.shape, self.tile, self.overlap, strict=True):
            last = max(length - size, 0)
            found.append((*range(0, last, size - shared), last))
        return tuple(found)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(len(starts) for starts in self.starts)

    @cached_property
    def tiles(self) -> list[Tile]:
        """All tiles, row-major."""
        return [self[index] for index in itertools.product(*map(range, self.counts))]

    @cached_property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """Borders (tiles + 1) along each axis between the pixels nearer to one tile's centre and the next
        one's.

        The products of these intervals share the scene out among the tiles, each inside its tile's window;
        a pixel in the very middle goes to the earlier tile.
        """
        found = []
        for axis, starts in enumerate(self.starts):
            size = min(self.tile[axis], self.shape[axis])
            middles = [(a + b + size + 1) // 2 for a, b in itertools.pairwise(starts)]
            found.append((0, *middles, self.shape[axis]))
        return tuple(found)

    def __getitem__(self, index: Sequence[int]) -> Tile:
        """The tile at a grid position (one number an axis); IndexError outside."""
        window = []
        for axis, position in enumerate(index):
            if not 0 <= position < self.counts[axis]:
                raise IndexError(f"expected a position inside the grid of {self.counts} tiles, got {tuple(index)}")
            start = self.starts[axis][position]
            window.append(slice(start, min(start + self.tile[axis], self.shape[axis])))
        if len(window) != len(self.shape):
            raise IndexError(f"expected {len(self.shape)} positions, got {tuple(index)}")
        return Tile(tuple(int(n) for n in index), tuple(window))

    def __len__(self) -> int:
        total = 1
        for count in self.counts:
            total *= count
        return total

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def number(self, tile: Tile) -> int:
        """Row-major position of a tile; ValueError where it is not of this grid."""
        try:
            mine = self[tile.index]
        except IndexError:
            mine = None
        if mine != tile:
            raise ValueError(f"expected a tile of the grid of {self.counts} tiles over {self.shape}, got {tile}")
        number = 0
        for position, count in zip(tile.index, self.counts, strict=True):
            number = number * count + position
        return number

    def neighbours(self, tile: Tile) -> list[Tile]:
        """Every other tile whose window meets this one's, diagonals too, row-major."""
        reach = [self._meeting[axis][position] for axis, position in enumerate(tile.index)]
        return [self[index] for index in itertools.product(*reach) if index != tile.index]

    def meetings(self, tile: Tile) -> Meetings:
        """The strips of a tile with all its neighbours, as arrays."""
        reach = [self._meeting[axis][position] for axis, position in enumerate(tile.index)]
        index = np.array(list(itertools.product(*reach)), np.int64)
        index = index[(index != tile.index).any(axis=1)]
        numbers = np.ravel_multi_index(tuple(index.T), self.counts)
        low, high = self.windows(numbers)
        mine_low = np.array(tile.offset)
        return Meetings(numbers, np.maximum(low, mine_low), np.minimum(high, mine_low + tile.shape), low, high)

    def windows(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First pixels (N, axes) of tiles given by number, and the pixels behind their last."""
        index = np.unravel_index(numbers, self.counts)
        low = np.stack([starts[at] for starts, at in zip(self._starts, index, strict=True)], axis=1)
        return low, low + np.minimum(self.tile, self.shape)

    def strips(self) -> Iterator[Strip]:
        """The intersections of all pairs of tiles whose windows meet, each pair once."""
        for tile in self:
            for other in self.neighbours(tile):
                if other.index > tile.index:
                    yield Strip(tile, other, shared_window(tile.window, other.window))

    @cached_property
    def _starts(self) -> tuple[NDArray[np.int64], ...]:
        return tuple(np.array(starts, np.int64) for starts in self.starts)

    @cached_property
    def _meeting(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each axis and position: the positions whose intervals share a pixel with it."""
        found = []
        for axis, starts in enumerate(self.starts):
            size = self.tile[axis]
            near = [tuple(j for j in _around(i, starts, size)) for i in range(len(starts))]
            found.append(tuple(near))
        return tuple(found)


def shared_window(one: Window, other: Window) -> Window:
    """The intersection of two windows that meet."""
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _around(position: int, starts: tuple[int, ...], size: int) -> Iterator[int]:
    """Positions whose start is less than `size` away.

    Starts rise, so the search stops at the first that is not.
    """
    low = position
    while low > 0 and starts[position] - starts[low - 1] < size:
        low -= 1
    high = position
    while high + 1 < len(starts) and starts[high + 1] - starts[position] < size:
        high += 1
    yield from range(low, high + 1)


def _for_each_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(int(n) for n in value)
    if len(values) != axes:
        raise ValueError(f"expected one {name} or {axes}, got {values}")
    return tuple(int(n) for n in values)
