"""Rule `grid_shift`: what is found must not depend on where the tiles lie.

A place is predicted twice, the second time with the grid half a step further. Where the two answers differ more at tile
borders than away from them, the artifact has seams: too little context, statistics of the tile in its features, padding
that leaks in. Away from borders a network differs too, by a little; that is its noise, and is taken off.

Two numbers, each at borders minus elsewhere: the share of foreground whose class changed, and the share of the objects'
outlines that moved or are new.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from pipelines.grid import Grid
from pipelines.metrics import UNSEEN
from pipelines.promotion.frozen import Part
from pipelines.promotion.outputs import Artifact, Outputs
from pipelines.promotion.policy import Policy, Verdict, points

Bools = NDArray[np.bool_]
TILES = 3  # along an axis: two seams and their crossings; a whole scene would say no more
BESIDE = 2  # pixels beside a strip that belong to the border
LEAST = 500  # pixels that must have something in them before a share means anything


@dataclass(frozen=True)
class Shift:
    """Shares that changed at borders minus elsewhere, and the pixels (foreground at borders) they are of."""

    classes: float
    outlines: float
    pixels: int


def measure_shift(artifact: Artifact, parts: Sequence[Part]) -> Shift | None:
    """Predict a piece of the largest place twice; None where one tile covers every place or nothing is found."""
    options = artifact.options
    assert options.tile is not None and options.overlap is not None
    tile, overlap = options.tile, options.overlap
    step = tile - overlap
    part = max(parts, key=lambda one: min(one.shape))
    most = tile + (TILES - 1) * step + step // 2
    region = (min(part.shape[0], most), min(part.shape[1], most))
    shift = tuple(step // 2 if side > tile + step // 2 else 0 for side in region)
    if not any(shift):
        return None
    with part.open(artifact.adapter) as source:
        first = artifact(source.view(tuple(slice(0, side) for side in region)))
        second = artifact(source.view(tuple(slice(s, side) for s, side in zip(shift, region, strict=True))))
    shapes = region, tuple(side - s for s, side in zip(shift, region, strict=True))
    borders = [_borders(Grid(shape, tile, overlap)) for shape in shapes]
    return _compare(first, second, (shift[0], shift[1]), borders, edge=max(8, tile // 8))


def check_shift(mine: Shift | None, theirs: Shift | None, policy: Policy) -> Verdict:
    """The candidate's shift within the policy's limit of the champion's."""
    if mine is None:
        return Verdict("grid_shift", True, "no tile border in the data, or nothing found there: not judged")
    numbers = {"classes": mine.classes, "outlines": mine.outlines, "pixels": mine.pixels}
    faults = []
    for name in ("classes", "outlines"):
        own = getattr(mine, name)
        known = 0.0 if theirs is None else max(0.0, getattr(theirs, name))
        allowed = policy.seam_alone if theirs is None else known + policy.seam
        if not own <= allowed:
            faults.append(f"{name} differ by {points(own)} more at tile borders, allowed {points(allowed)}")
    if faults:
        return Verdict("grid_shift", False, "outputs shift with the grid: " + "; ".join(faults), numbers)
    says = f"at tile borders classes differ by {points(mine.classes)}, outlines by {points(mine.outlines)}"
    return Verdict("grid_shift", True, says, numbers)


def _compare(first: Outputs, second: Outputs, shift: tuple[int, int], borders: list[Bools], edge: int) -> Shift | None:
    """Both on the ground they share, without its own rim, which is the scene's border to one of them."""
    inner = (slice(edge, -edge), slice(edge, -edge))
    cut = (slice(shift[0], None), slice(shift[1], None))
    a, b = first.ids[cut][inner], second.ids[inner]
    border = (borders[0][cut] | borders[1])[inner]
    seen = (a != UNSEEN) & (b != UNSEEN)
    foreground = seen & ((a > 0) | (b > 0))
    lines = _outlines(first)[cut][inner] & seen, _outlines(second)[inner] & seen
    near = [binary_dilation(line, np.ones((3, 3))) for line in lines]
    moved = (lines[0] & ~near[1]) | (lines[1] & ~near[0])
    pixels = int((foreground & border).sum())
    if pixels < LEAST:
        return None
    return Shift(_excess(a != b, foreground, border), _excess(moved, lines[0] | lines[1], border), pixels)


def _excess(changed: Bools, asked: Bools, border: Bools) -> float:
    """Share of the asked pixels that changed, at borders minus elsewhere."""
    there, elsewhere = asked & border, asked & ~border
    here = (changed & there).sum() / max(1, there.sum())
    noise = (changed & elsewhere).sum() / elsewhere.sum() if elsewhere.sum() >= LEAST else 0.0
    return float(here - noise)


def _borders(grid: Grid) -> Bools:
    """(H, W) True in and beside the strips that neighbouring tiles share."""
    lines = []
    for axis, side in enumerate(grid.shape):
        line = np.zeros(side, bool)
        starts, size = grid.starts[axis], min(grid.tile[axis], side)
        for before, after in itertools.pairwise(starts):
            line[max(0, after - BESIDE) : before + size + BESIDE] = True
        lines.append(line)
    return lines[0][:, None] | lines[1][None]


def _outlines(outputs: Outputs) -> Bools:
    """(H, W) True where the object of a pixel is another one than that below or to the right."""
    owner = outputs.objects.to_label_map()
    line = np.zeros(owner.shape, bool)
    line[:-1] |= owner[:-1] != owner[1:]
    line[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    return line
