"""What masks cannot decide: how often class probabilities and query embeddings name the right partner.

Two to four discs or squares of one class lie across the seam of two tiles and overlap in part. Kept are the scenes in
which the stitcher, given the masks alone, has to guess (`ambiguous_links`). A scene is right if the truth comes back.
Traits are drawn: each object has a vector of its own, and each tile sees it through noise. Nested objects, which masks
do decide, stand beside them: traits must not spoil those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import write_result
from maskformer.masks import MaskSet
from pipelines.grid import Grid
from pipelines.stitching import Stitcher
from tests.scenes import box, disc, from_rows

SIDE, SCENES = 96, 200
OVERLAPS = (2, 4, 8)
CLASSES, EMBEDDING = 10, 64
NOISE = (0.25, 0.5, 1.0, 2.0)  # of a fragment, in units of the deviation from object to object

Rng = np.random.Generator
Draw = Callable[[Rng, int], NDArray[np.float16]]  # (N, D), each time through new noise


def main() -> None:
    values: dict[str, Any] = {"scenes": SCENES, "rows": [], "nested": []}
    for overlap in OVERLAPS:
        values["rows"].append(row(overlap, list(ambiguous(overlap, np.random.default_rng(0)))))
        values["nested"].append(row(overlap, list(nested(overlap, np.random.default_rng(1)))))
        print(values["rows"][-1], values["nested"][-1], sep="\n", flush=True)
    print(write_result("stitching_traits", None, values))


def row(overlap: int, scenes: list[MaskSet]) -> dict[str, Any]:
    """Share of the scenes that come back, by the masks alone and with traits of each kind and noise."""
    rates: dict[str, Any] = {"overlap": overlap, "masks": rate(scenes, overlap, None)}
    for name, make in (("classes", class_probabilities), ("embedding", embeddings)):
        for noise in NOISE:
            rates[f"{name}, noise {noise}"] = rate(scenes, overlap, lambda rng, n, m=make, s=noise: m(rng, n, s))
    return rates


def rate(scenes: list[MaskSet], overlap: int, make: Callable[[Rng, int], Callable[[], NDArray]] | None) -> float:
    rng = np.random.default_rng(2)
    right = [stitched(truth, overlap, make(rng, len(truth)) if make else None, rng)[0] == truth for truth in scenes]
    return round(float(np.mean(right)), 3)


def stitched(truth: MaskSet, overlap: int, traits: Callable[[], NDArray] | None, rng: Rng) -> tuple[MaskSet, int]:
    """The truth cut into two tiles, put together again, and how many links were ambiguous."""
    grid = Grid((SIDE, SIDE), (SIDE, (SIDE + overlap) // 2), overlap)
    stitcher, closed = Stitcher(grid), []
    for tile in grid:
        seen, places = truth.crop_indexed(tile.window)
        order = rng.permutation(len(seen))
        closed.append(stitcher.add(tile, seen[order], None if traits is None else traits()[places[order]]))
    return MaskSet.concatenate([*closed, stitcher.finish()]).canonical(), stitcher.ambiguous_links


def class_probabilities(rng: Rng, count: int, noise: float) -> Callable[[], NDArray[np.float16]]:
    """Softmax of logits with the same best class for all; object to object the logits deviate by 1."""
    logits = rng.normal(size=(count, CLASSES))
    logits[:, 0] += 4

    def see() -> NDArray[np.float16]:
        seen = np.exp(logits + noise * rng.normal(size=logits.shape))
        return (seen / seen.sum(axis=1, keepdims=True)).astype(np.float16)

    return see


def embeddings(rng: Rng, count: int, noise: float) -> Callable[[], NDArray[np.float16]]:
    """Vectors with a common part, as the queries of one class have."""
    own = 2 * rng.normal(size=EMBEDDING) + rng.normal(size=(count, EMBEDDING))
    return lambda: (own + noise * rng.normal(size=own.shape)).astype(np.float16)


def ambiguous(overlap: int, rng: Rng) -> Iterator[MaskSet]:
    """Scenes of partially overlapping objects that the masks do not decide."""
    found = 0
    while found < SCENES:
        truth = across_the_seam(rng)
        shared = truth.intersections(truth)
        smaller = np.minimum(truth.areas[:, None], truth.areas[None, :])
        if (shared[~np.eye(len(truth), dtype=bool)] == smaller[~np.eye(len(truth), dtype=bool)]).any():
            continue
        if stitched(truth, overlap, None, rng)[1]:
            found += 1
            yield truth


def nested(overlap: int, rng: Rng) -> Iterator[MaskSet]:
    """Scenes of objects inside each other that the masks do not tell apart inside the strip."""
    found = 0
    while found < SCENES:
        top, left, high, wide = (int(n) for n in rng.integers((10, 2, 20, 40), (30, 8, 40, 50)))
        step = np.sort(rng.integers(1, 12, (3, 2)), axis=0)
        rows = [box(top, left + a, top + high, left + 45 + wide - b) for a, b in step.tolist()]
        truth = from_rows(SIDE, rows, [0] * len(rows)).canonical()
        if stitched(truth, overlap, None, rng)[1]:
            found += 1
            yield truth


def across_the_seam(rng: Rng) -> MaskSet:
    count = int(rng.integers(2, 5))
    rows = []
    for _ in range(count):
        y, x, half = SIDE / 2, SIDE / 2 + rng.uniform(-20, 20), rng.uniform(18, 26)
        square = rng.random() < 0.5
        size = int(half)
        top = SIDE // 2 - 20
        rows.append(box(top, int(x) - size, top + 40, int(x) + size) if square else disc(y, x, half))
    return from_rows(SIDE, rows, [0] * count).canonical()


if __name__ == "__main__":
    main()
