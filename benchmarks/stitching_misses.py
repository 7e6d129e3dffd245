"""What missed tiles cost linear objects: the stitcher, and an oracle that knows which fragments are one object.

Every tile misses 5 % of its objects. The oracle unites the same fragments by their true identity, so its loss is that
of pixels no tile saw; what the stitcher loses beyond it is lost by links.
"""

from __future__ import annotations

import numpy as np

from benchmarks.record import write_result
from maskformer.masks import MaskSet
from pipelines.grid import Grid
from pipelines.stitching import stitch
from tests.noise import NoisyModel, quality
from tests.scenes import FAMILIES

MISS, DRAWS = 0.05, 20
SETTINGS = ((800, 200, 40), (800, 200, 20), (1200, 200, 40), (800, 128, 32))  # scene, tile, overlap, pixels


def measure(size: int, tile: int, overlap: int) -> dict[str, float]:
    """Panoptic quality lost against untiled draws with the same miss rate, and objects found a draw."""
    truth = FAMILIES["linear"](np.random.default_rng(7), size)
    grid, whole = Grid((size, size), tile, overlap), Grid((size, size), size, 0)
    model = NoisyModel(truth, 0, MISS, DRAWS)
    untiled = np.mean([quality(parts[0][1], truth) for parts in model.views(whole, 0)])
    found = [stitch(grid, parts) for parts in model.views(grid, 0)]
    known = MaskSet(truth.shape, truth.runs, truth.offsets, np.arange(len(truth)))
    oracle = []
    for parts in NoisyModel(known, 0, MISS, DRAWS).views(grid, 0):
        placed = MaskSet.concatenate([masks.place(grid.shape, at.offset) for at, masks in parts])
        oracle.append(quality(placed.union(placed.labels), known))
    return {
        "size": size,
        "tile": tile,
        "overlap": overlap,
        "objects": len(truth),
        "untiled_pq": round(float(untiled), 4),
        "loss": round(float(untiled - np.mean([quality(one, truth) for one in found])), 4),
        "oracle_loss": round(float(untiled - np.mean(oracle)), 4),
        "objects_per_draw": round(float(np.mean([len(one) for one in found])), 3),
    }


def main() -> None:
    rows = [measure(*setting) for setting in SETTINGS]
    print(write_result("stitching_misses", None, {"miss": MISS, "draws": DRAWS, "rows": rows}))


if __name__ == "__main__":
    main()
