"""A large made-up scene, drawn band by band, so that it costs no memory: ellipses that overlap, and long lines.

Everything is drawn from (seed, band), so any part can be made again at any time, alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from maskformer import runs as rle
from maskformer.masks import MaskSet
from pipelines.grid import Grid, Tile

CLASSES = 3
RADII = (5.0, 13.0)  # pixels: a mean area of 250 px
LINES = 8  # half of them cross the scene from top to bottom, half from left to right; a class of their own


@dataclass(frozen=True)
class BigScene:
    """`objects` ellipses in each square of `cell` pixels, on a scene of `size` by `size`."""

    size: int
    cell: int
    objects: int
    seed: int = 0

    def tiles(self, grid: Grid) -> Iterator[tuple[Tile, MaskSet]]:
        """What a perfect model sees: the truth in every tile, row-major, the objects of a tile shuffled."""
        lines = self.lines()
        for tile in grid:
            if tile.index[1] == 0:
                rows = tile.window[0]
                first, last = max(rows.start // self.cell - 1, 0), min(rows.stop // self.cell + 1, self.bands - 1)
                here = MaskSet.concatenate([*(self.band(n) for n in range(first, last + 1)), lines])
                here = here.crop((rows, slice(0, self.size)))
            seen = here.crop((slice(0, tile.shape[0]), tile.window[1]))
            rng = np.random.default_rng((self.seed, 1, *tile.index))
            yield tile, seen[rng.permutation(len(seen))]

    @property
    def bands(self) -> int:
        return -(-self.size // self.cell)

    def truth(self) -> MaskSet:
        """The whole scene in canonical order."""
        return MaskSet.concatenate([*(self.band(n) for n in range(self.bands)), self.lines()]).canonical()

    @lru_cache(maxsize=4)  # noqa: B019 - a scene lives as long as its benchmark
    def band(self, number: int) -> MaskSet:
        """The ellipses whose centres lie in one band of `cell` rows."""
        rng = np.random.default_rng((self.seed, 0, number))
        count = int(self.objects * self.size / self.cell)
        y = number * self.cell + rng.uniform(0, self.cell, count)
        x = rng.uniform(0, self.size, count)
        ry, rx = rng.uniform(*RADII, (2, count))
        top = np.ceil(y - ry).astype(np.int64)
        rows = np.floor(y + ry).astype(np.int64) - top + 1
        owner = np.repeat(np.arange(count), rows)
        line = rle.expand(top, rows)
        half = rx[owner] * np.sqrt(np.maximum(1 - ((line - y[owner]) / ry[owner]) ** 2, 0))
        start = np.ceil(x[owner] - half).astype(np.int64).clip(0, self.size)
        stop = (np.floor(x[owner] + half).astype(np.int64) + 1).clip(0, self.size)
        inside = (line >= 0) & (line < self.size) & (stop > start)
        runs = np.column_stack([line, start, stop])[inside]
        counts = np.bincount(owner[inside], minlength=count)
        kept = counts > 0
        offsets = np.concatenate([[0], np.cumsum(counts[kept])])
        labels = rng.integers(0, CLASSES, count)[kept]
        return MaskSet((self.size, self.size), runs, offsets, labels, rng.random(count, np.float32)[kept])

    @lru_cache(maxsize=1)  # noqa: B019
    def lines(self) -> MaskSet:
        """Rivers from top to bottom and roads from left to right, 6 px wide, every one in one piece."""
        rng = np.random.default_rng((self.seed, 2))
        at = np.arange(self.size)
        owners, starts, stops = [], [], []
        for number in range(LINES):
            knots = np.linspace(0, self.size - 1, 40)
            swing = (np.cumsum(rng.normal(0, self.size / 60, 40)) + rng.uniform(0, self.size)).clip(8, self.size - 9)
            middle = np.round(np.interp(at, knots, swing)).astype(np.int64)
            low, high = np.minimum(middle, np.roll(middle, 1)), np.maximum(middle, np.roll(middle, 1))
            low[0] = high[0] = middle[0]
            if number % 2:  # a river: one run a row
                start, stop = at * (self.size + 1) + low - 3, at * (self.size + 1) + high + 3
            else:  # a road: a column of short runs, joined row by row
                heights = high - low + 6
                rows = rle.expand(low - 3, heights)
                start = rows * (self.size + 1) + np.repeat(at, heights)
                stop = start + 1
            owners.append(np.full(len(start), number))
            starts.append(start)
            stops.append(stop)
        shape, labels = (self.size, self.size), np.full(LINES, CLASSES)
        scores = rng.random(LINES).astype(np.float32)
        return MaskSet.from_flat(
            shape, np.concatenate(owners), np.concatenate(starts), np.concatenate(stops), labels, scores
        )
