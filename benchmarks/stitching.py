"""A million fragments stitched on one core: seconds, memory, cost of a strip, and whether the truth comes back.

The scene is drawn tile by tile (`benchmarks.stitching_scene`); only the stitcher's own calls are timed, by the clock
and in seconds of the processor, which tell more where others use the machine too. Its memory is that of a process which
draws, stitches and keeps all objects; the truth is drawn for comparison afterwards.
What others do on the same scenes: `benchmarks.stitching_rivals`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.measure import in_fresh_process, peak_rss_mib
from benchmarks.record import write_result
from benchmarks.stitching_scene import BigScene
from maskformer.masks import MaskSet
from pipelines.grid import Grid
from pipelines.stitching import Stitcher

TILE, OVERLAP, TILES_A_SIDE = 512, 64, 100
OBJECTS = 72  # ellipses in each square of the grid's stride, about 100 fragments a tile


def main() -> None:
    million = in_fresh_process("benchmarks.stitching", "million", str(TILES_A_SIDE))
    print(json.dumps(million), flush=True)
    print(write_result("stitching", None, {"million": million}))


def million(tiles_a_side: int) -> dict[str, Any]:
    """Stitch a scene of so many tiles a side on one thread."""
    stride = TILE - OVERLAP
    size = tiles_a_side * stride + OVERLAP
    scene, grid = BigScene(size, stride, OBJECTS), Grid((size, size), TILE, OVERLAP)
    stitcher = Stitcher(grid)
    closed = []
    fragments = area = touching = most_open = 0
    seconds = cpu = 0.0
    for tile, masks in scene.tiles(grid):
        fragments += len(masks)
        area += int(masks.areas.sum())
        touching += _touching(masks, tile.window, size)
        began, cpu_began = time.perf_counter(), time.process_time()
        closed.append(stitcher.add(tile, masks))
        seconds += time.perf_counter() - began
        cpu += time.process_time() - cpu_began
        most_open = max(most_open, stitcher.open_fragments)
    began, cpu_began = time.perf_counter(), time.process_time()
    closed.append(stitcher.finish())
    found = MaskSet.concatenate(closed).canonical()
    seconds += time.perf_counter() - began
    cpu += time.process_time() - cpu_began
    peak = peak_rss_mib()
    strips = sum(len(grid.meetings(tile).numbers) for tile in grid) // 2
    return {
        "scene_px": size,
        "tiles": len(grid),
        "fragments": fragments,
        "fragments_a_tile": round(fragments / len(grid), 1),
        "mean_area_px": round(area / fragments, 1),
        "touching_a_strip": round(touching / fragments, 3),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "microseconds_a_fragment": round(seconds / fragments * 1e6, 1),
        "microseconds_a_strip": round(seconds / strips * 1e6, 1),
        "strips": strips,
        "peak_rss_mib": round(peak),
        "most_open_fragments": most_open,
        "objects": len(found),
        "ambiguous_links": stitcher.ambiguous_links,
        "truth_recovered": found == scene.truth(),
    }


def _touching(masks: MaskSet, window: tuple[slice, ...], size: int) -> int:
    """How many objects of a tile have pixels that another tile sees."""
    out = 0
    for axis, part in enumerate(window):
        low = 0 if part.start == 0 else OVERLAP
        high = TILE if part.stop == size else TILE - OVERLAP
        out = out | (masks.boxes[:, axis] < low) | (masks.boxes[:, 2 + axis] > high)
    return int(out.sum())


if __name__ == "__main__":
    print(json.dumps(million(int(sys.argv[2]))))
