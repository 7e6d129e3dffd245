"""Synthetic truth for the stitching tests: scenes of overlapping masks whose tiles can be cut exactly.

Every family is a function `(rng, size) -> MaskSet` on a square canvas of `size` pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from maskformer.masks import MaskSet
from pipelines.grid import Grid, Tile

Rng = np.random.Generator


def from_rows(
    size: int, objects: Sequence[NDArray], labels: Sequence[int], scores: Sequence[float] | None = None
) -> MaskSet:
    """A scene of objects given as run rows (row, start, stop); clipped to the canvas, empty ones left out."""
    kept, classes, values = [], [], []
    for number, rows in enumerate(objects):
        rows = np.asarray(rows, np.int64).reshape(-1, 3)
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 0] < size)]
        rows[:, 1:] = rows[:, 1:].clip(0, size)
        rows = rows[rows[:, 2] > rows[:, 1]]
        if len(rows):
            kept.append(rows)
            classes.append(labels[number])
            values.append(1.0 if scores is None else scores[number])
    if not kept:
        return MaskSet.empty((size, size))
    offsets = np.cumsum([0, *(len(rows) for rows in kept)])
    return MaskSet((size, size), np.concatenate(kept), offsets, classes, values)


def disc(y: float, x: float, radius: float) -> NDArray:
    """Run rows of a disc."""
    rows = np.arange(int(np.ceil(y - radius)), int(np.floor(y + radius)) + 1)
    half = np.sqrt(np.maximum(radius**2 - (rows - y) ** 2, 0))
    return np.column_stack([rows, np.ceil(x - half), np.floor(x + half) + 1]).astype(np.int64)


def box(top: int, left: int, bottom: int, right: int) -> NDArray:
    """Run rows of a rectangle."""
    rows = np.arange(top, bottom)
    return np.column_stack([rows, np.full(len(rows), left), np.full(len(rows), right)])


def path(points: NDArray, width: float) -> NDArray:
    """Run rows of a polyline (P, 2) drawn with a round pen `width` pixels wide."""
    dense = [points[:1]]
    for a, b in itertools.pairwise(points):
        steps = int(np.ceil(np.abs(b - a).max())) + 1
        dense.append(a + (b - a) * np.linspace(0, 1, steps)[1:, None])
    return np.concatenate([disc(y, x, width / 2) for y, x in np.concatenate(dense)])


def ring(y: float, x: float, outer: float, inner: float) -> NDArray:
    """Run rows of an annulus."""
    full, hole = disc(y, x, outer), disc(y, x, inner)
    rows = []
    holes = {int(r): (a, b) for r, a, b in hole}
    for r, a, b in full:
        if int(r) in holes:
            rows += [(r, a, holes[int(r)][0]), (r, holes[int(r)][1], b)]
        else:
            rows.append((r, a, b))
    return np.array([row for row in rows if row[2] > row[1]])


def disjoint(rng: Rng, size: int) -> MaskSet:
    """Separate round crowns, radius 3 to 20, in three classes, some cut by the scene's border."""
    taken = np.zeros((size, size), bool)
    found = []
    for _ in range(size * size // 600):
        y, x, radius = *rng.uniform(-5, size + 5, 2), rng.uniform(3, 20)
        rows = disc(y, x, radius)
        inside = rows[(rows[:, 0] >= 0) & (rows[:, 0] < size)].clip(0, size)
        window = (
            slice(max(int(y - radius), 0), int(y + radius) + 2),
            slice(max(int(x - radius), 0), int(x + radius) + 2),
        )
        if len(inside) and not taken[window].any():
            for r, a, b in inside:
                taken[r, a:b] = True
            found.append(rows)
    return from_rows(size, found, rng.integers(0, 3, len(found)).tolist(), rng.random(len(found)).tolist())


def parcels(rng: Rng, size: int) -> MaskSet:
    """Touching parcels that tile the whole plane: the Voronoi cells of random points, two classes."""
    from scipy.spatial import cKDTree

    seeds = rng.uniform(0, size, (max(size * size // 4000, 4), 2))
    pixels = np.stack(np.mgrid[:size, :size], axis=-1).reshape(-1, 2)
    cell = cKDTree(seeds).query(pixels)[1].reshape(size, size) + 1
    masks = MaskSet.from_label_map(cell.astype(np.int32))
    return masks.with_labels(rng.integers(0, 2, len(masks))).with_scores(rng.random(len(masks)))


def linear(rng: Rng, size: int) -> MaskSet:
    """Rivers and roads that cross the whole scene and each other, and 3-px diagonals."""
    found = []
    for number in range(6):
        across = np.linspace(-10, size + 10, 12)
        swing = np.cumsum(rng.normal(0, size / 15, 12)) + rng.uniform(0, size)
        swing = swing.clip(2, size - 3)  # a river that left the scene and came back would be two parts
        points = np.column_stack([across, swing] if number % 2 else [swing, across])
        found.append(path(points, rng.uniform(4, 14)))
    found.append(path(np.array([[0.0, 0.0], [size - 1, size - 1]]), 3))
    found.append(path(np.array([[0.0, size - 1], [size - 1, 0.0]]), 3))
    return from_rows(size, found, [0, 0, 0, 1, 1, 1, 2, 3], rng.random(8).tolist())


def lakes(rng: Rng, size: int) -> MaskSet:
    """Lakes larger than a tile, with holes, islands in the holes (same class) and ponds."""
    found = [
        ring(0.45 * size, 0.5 * size, 0.42 * size, 0.2 * size),
        disc(0.45 * size, 0.5 * size, 0.15 * size),
        ring(0.9 * size, 0.2 * size, 0.3 * size, 0.05 * size),
        ring(0.9 * size, 0.85 * size, 0.12 * size, 0.08 * size),
    ]
    found += [disc(*rng.uniform(0, size, 2), rng.uniform(2, 6)) for _ in range(size // 20)]
    return from_rows(size, found, [0, 0, 0, 0, *[1] * (len(found) - 4)], rng.random(len(found)).tolist())


def nested(rng: Rng, size: int) -> MaskSet:
    """Concentric objects of one class, small ones inside large ones, and the same extent in two classes."""
    middle = size / 2
    found = [disc(middle, middle, size * r) for r in (0.1, 0.34, 0.46, 0.47)]
    labels = [0, 0, 0, 0]
    for _ in range(size // 12):
        y, x, radius = *rng.uniform(0, size, 2), rng.uniform(4, size / 12)
        found += [disc(y, x, radius), disc(y, x, radius * 0.5), disc(y, x, radius)]
        labels += [1, 1, 2]
    return from_rows(size, found, labels, rng.random(len(found)).tolist())


def crowns(rng: Rng, size: int) -> MaskSet:
    """Crowns of one class that partially overlap their neighbours."""
    count = size * size // 900
    found = [disc(*rng.uniform(0, size, 2), rng.uniform(6, 25)) for _ in range(count)]
    return from_rows(size, found, [0] * count, rng.random(count).tolist())


def chains(rng: Rng, size: int) -> MaskSet:
    """Daisy chains: overlapping discs in a row, each sharing nearly half its area with the next."""
    found = []
    for y in range(20, size, 45):
        slope = rng.uniform(-0.3, 0.3)
        found += [disc(y + slope * x, x, 16) for x in range(0, size, 14)]
    return from_rows(size, found, [0] * len(found), rng.random(len(found)).tolist())


def specks(rng: Rng, size: int) -> MaskSet:
    """One-pixel objects, packed into the corner where four tiles meet, and along the scene's border."""
    found = [box(y, x, y + 1, x + 1) for y in range(90, 112) for x in range(90, 112) if (y + x) % 2]
    found += [box(0, x, 1, x + 1) for x in range(0, size, 2)] + [
        box(y, size - 1, y + 1, size) for y in range(2, size, 3)
    ]
    return from_rows(size, found, rng.integers(0, 2, len(found)).tolist(), rng.random(len(found)).tolist())


def shapes(rng: Rng, size: int) -> MaskSet:
    """U shapes, combs and rings: one object which a tile sees in several parts.

    Crosses through tile corners.
    """
    found = []
    for _ in range(max(size // 40, 3)):
        y, x, a, b = (int(n) for n in (*rng.integers(0, size - 60, 2), *rng.integers(40, size // 2, 2)))
        teeth = [box(y, x + k, y + a, x + k + 4) for k in range(0, b, 17)]
        found.append(np.concatenate([box(y, x, y + 5, x + b), *teeth]))
    found.append(np.concatenate([box(0, size // 3, size, size // 3 + 2), box(size // 3, 0, size // 3 + 2, size)]))
    for radius in rng.uniform(20, size / 2 - 2, 4):  # inside the scene: a ring cut by its border would be two arcs
        found.append(ring(*rng.uniform(radius, size - radius, 2), radius, radius - 3))
    return from_rows(size, found, list(range(len(found))), rng.random(len(found)).tolist())


def overlapping_families() -> list[Callable[[Rng, int], MaskSet]]:
    """Families in which objects of one class partially overlap."""
    return [crowns, chains]


FAMILIES: dict[str, Callable[[Rng, int], MaskSet]] = {
    one.__name__: one for one in (disjoint, parcels, linear, lakes, nested, crowns, chains, specks, shapes)
}


def cut(truth: MaskSet, grid: Grid, rng: Rng | None = None, dense: bool = True) -> list[tuple[Tile, MaskSet]]:
    """The truth as seen by each tile of the grid.

    With `rng` the fragments are shuffled inside each tile; with `dense` they are rebuilt from boolean
    arrays, so that nothing but the pixels, classes and scores can reach the stitcher.
    """
    parts = []
    for tile in grid:
        seen = truth.crop(tile.window)
        if rng is not None:
            seen = seen[rng.permutation(len(seen))]
        if dense:
            seen = rebuilt(seen)
        parts.append((tile, seen))
    return parts


def rebuilt(seen: MaskSet, most: int = 1 << 26) -> MaskSet:
    """The same set made from boolean arrays of at most `most` pixels at once: 3000 objects on 1024² pixels are 3 GB."""
    few = len(seen) * math.prod(seen.shape) <= most
    if few:
        return MaskSet.from_dense(seen.to_dense(), seen.labels, seen.scores)
    parts = []
    for one in (seen[n : n + 1] for n in range(len(seen))):  # each on its own box
        low, high = one.boxes[0].reshape(2, -1)
        small = one.crop([slice(a, b) for a, b in zip(low, high)])
        dense = MaskSet.from_dense(small.to_dense(), one.labels, one.scores)
        parts.append(dense.place(seen.shape, low.tolist()))
    return MaskSet.concatenate(parts)


def shuffled(rng: Rng, parts: Iterable[tuple[Tile, MaskSet]]) -> list[tuple[Tile, MaskSet]]:
    """The parts in random order."""
    known = list(parts)
    return [known[n] for n in rng.permutation(len(known))]
