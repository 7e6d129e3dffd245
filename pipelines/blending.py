"""Blend the class probabilities of overlapping tiles into seamless row bands.

Every tile is weighted by a raised cosine that is highest at its centre, where a model sees most context, and by 0 where
it saw no data; the sum is divided by the weights' sum: tiles that agree come back unchanged. Only rows that a later
tile may still touch are kept, so memory is channels x tile height x width, whatever the scene's height. A scene that is
too wide for that is blended block of columns by block of columns, to the same values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Grid, Tile, Window

BLOCK_BYTES = 128 * 2**20
RASTER_BLOCK = 512  # px: neighbours that write into one block of a file would each pack it anew
FLOOR = 1e-3  # the weight at a tile's border: a scene's own border, which no other tile sees, still counts

Band = tuple[Window, NDArray[np.float32], NDArray[np.bool_]]


def window_weights(shape: tuple[int, ...], floor: float = FLOOR) -> NDArray[np.float32]:
    """Weights (shape) of a tile: the product of one raised cosine an axis, from about `floor` to 1."""
    weights = np.ones((), np.float64)
    for length in shape:
        rise = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
        weights = weights[..., None] * (floor + (1 - floor) * rise)
    return weights.astype(np.float32)


def block_width(grid: Grid, channels: int) -> int:
    """Columns that are blended at once: whole blocks of a raster, of which the open rows take about `BLOCK_BYTES`."""
    column = 4 * (channels + 1) * min(grid.tile[0], grid.shape[0])
    return max(1, BLOCK_BYTES // column // RASTER_BLOCK) * RASTER_BLOCK


def column_blocks(grid: Grid, width: int) -> list[slice]:
    """The last axis of the grid's scene cut into blocks of `width` pixels, the last one narrower."""
    if width < 1:
        raise ValueError(f"expected blocks of at least one column, got {width}")
    columns = grid.shape[-1]
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


class Blender:
    """Takes the tiles of a grid in row-major order, each once, and gives back finished bands.

    channels: K of the (K, *tile) arrays. columns: the part of the last axis that is blended, all of it by default;
    tiles beside it may be skipped. Pictures and volumes alike; "rows" are the first axis.
    """

    def __init__(self, grid: Grid, channels: int, columns: slice | None = None) -> None:
        if channels < 1:
            raise ValueError(f"expected at least one channel, got {channels}")
        self.grid = grid
        self.channels = channels
        self.columns = columns or slice(0, grid.shape[-1])
        self._next = 0  # number of the tile that is due
        self._first_row = 0  # scene row of the accumulator's first row
        self._rows = 0  # rows of the accumulator in use
        height = min(grid.tile[0], grid.shape[0])
        across = (*grid.shape[1:-1], self.columns.stop - self.columns.start)
        self._sum = np.zeros((channels, height, *across), np.float32)
        self._weight = np.zeros((height, *across), np.float32)
        self._tile_weights = window_weights(grid[(0,) * len(grid.shape)].shape)

    @property
    def open_rows(self) -> int:
        """Rows kept because a tile still to come may touch them."""
        return self._rows

    def sees(self, tile: Tile) -> bool:
        """Whether the tile lies over the columns that are blended."""
        return tile.window[-1].start < self.columns.stop and self.columns.start < tile.window[-1].stop

    def add(self, tile: Tile, array: NDArray, valid: NDArray[np.bool_] | None = None) -> list[Band]:
        """Blend in the probabilities (K, *tile) of the tile that is due; returns the bands this finished.

        valid (*tile): pixels with data, all by default. A band is its scene window, a (K, rows, width) float32 array,
        0 where nothing was seen, and a bool (rows, width): where something was. ValueError for another tile or shape.
        """
        self._check(tile)
        if array.shape != (self.channels, *tile.shape):
            raise ValueError(
                f"expected an array {(self.channels, *tile.shape)} for tile {tile.index}, got {array.shape}"
            )
        if not self.sees(tile):
            return self._advance(tile)
        rows, across, columns = tile.window[0], tile.window[1:-1], tile.window[-1]
        low, high = max(columns.start, self.columns.start), min(columns.stop, self.columns.stop)
        inside = (..., slice(low - columns.start, high - columns.start))
        place = (
            *(slice(rows.start - self._first_row, rows.stop - self._first_row), *across),
            slice(low - self.columns.start, high - self.columns.start),
        )
        weights = (self._tile_weights if valid is None else self._tile_weights * valid)[inside]
        self._sum[(slice(None), *place)] += array[inside] * weights
        self._weight[place] += weights
        return self._advance(tile)

    def skip(self, tile: Tile) -> list[Band]:
        """Pass over the tile that is due: weight 0; pixels no other tile covers become 0.

        Returns finished bands.
        """
        self._check(tile)
        return self._advance(tile)

    def finish(self) -> list[Band]:
        """The bands that are still open (none once all tiles were there).

        ValueError where tiles are missing.
        """
        if self._next < len(self.grid):
            raise ValueError(f"expected all {len(self.grid)} tiles before finish(), got {self._next}")
        return []

    def _check(self, tile: Tile) -> None:
        number = self.grid.number(tile)
        if number != self._next:
            due = self.grid.tiles[self._next].index if self._next < len(self.grid) else "none"
            raise ValueError(f"expected tiles in row-major order, tile {due} now, got tile {tile.index}")

    def _advance(self, tile: Tile) -> list[Band]:
        """Count the tile as done; at the end of a row of tiles give back what the next row does not touch."""
        self._next += 1
        self._rows = tile.window[0].stop - self._first_row
        if self._next % (len(self.grid) // self.grid.counts[0]):
            return []
        row = tile.index[0] + 1
        end = self.grid.starts[0][row] if row < self.grid.counts[0] else self.grid.shape[0]
        done = end - self._first_row
        weight = self._weight[:done]
        seen = weight > 0
        band = np.divide(
            self._sum[:, :done], weight, out=np.zeros((self.channels, *weight.shape), np.float32), where=seen
        )
        across = (slice(0, length) for length in self.grid.shape[1:-1])
        window = (slice(self._first_row, end), *across, self.columns)
        kept = self._rows - done
        for array in (self._sum, self._weight[None]):
            array[:, :kept] = array[:, done : done + kept].copy()
            array[:, kept:] = 0
        self._first_row, self._rows = end, kept
        return [(window, band, seen)]
