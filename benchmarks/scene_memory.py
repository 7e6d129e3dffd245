"""Peak memory of `predict` against the scene's area, at 10 classes, with a stub for the model. About 20 minutes.

Scenes are drawn on the fly and deleted: a river over the whole height, a road over the whole width, and ellipses in a
quarter of the cells of 1024 px, as many as 200 000 at 100 000 x 100 000 px. Every pixel is valid, so nothing is
skipped. The stub reads objects and probabilities off the pixels; all else is `predict_scene`, from file to files.

Every scene is predicted in a process of its own, which tells its peak (VmHWM) in each stage. GDAL's cache fills to its
limit with the first 100 Mpx, so the slope is taken from there on, over square scenes and narrow ones alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy import ndimage
from scipy.stats import linregress

from benchmarks.record import RESULTS, ROOT, write_result

SHAPES = ((5_000, 5_000), (10_000, 10_000), (20_000, 5_000), (60_000, 5_000), (5_000, 60_000), (25_000, 25_000))
SATURATED = 100e6  # px; from here on caches are full
WANTED = (100_000, 100_000)
GOAL_BYTES = 2e9
TILE, OVERLAP, CLASSES = 512, 64, 10
CELL, ACROSS = 1024, 9  # px; ellipses a side of a cell that has any: 81 in a quarter of them are 200 000 in all
SHARE = 0.25  # of the cells
ROAD, RIVER = 16, 32  # bits of a pixel; the lower four say the class of an ellipse, plus 1
LIMIT_S = 2400


def main(shapes: Sequence[tuple[int, int]] = SHAPES) -> None:
    runs = []
    for rows, columns in shapes:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.scene_memory", str(rows), str(columns), folder]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT_S)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(runs[-1]), flush=True)
    values = {"tile": TILE, "overlap": OVERLAP, "classes": CLASSES, "runs": runs, "fit": fit(runs)}
    draw(runs, RESULTS / "scene_memory.png")
    print(write_result("scene_memory", None, values))


def fit(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Least squares of peak = a + b * area over scenes of SATURATED px and more, and what that says of the scene that
    is wanted.
    """
    large = [run for run in runs if run["rows"] * run["columns"] >= SATURATED]
    found = linregress([run["rows"] * run["columns"] for run in large], [run["peak_bytes"] for run in large])
    return {
        "constant_bytes": float(found.intercept),
        "bytes_a_pixel": float(found.slope),
        "bytes_a_pixel_stderr": float(found.stderr),
        "expected_at_100000_bytes": float(found.intercept + found.slope * WANTED[0] * WANTED[1]),
    }


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    kinds = {"square": lambda r: r["rows"] == r["columns"], "narrow": lambda r: r["rows"] > r["columns"]}
    kinds["wide"] = lambda r: r["rows"] < r["columns"]
    for name, belongs in kinds.items():
        chosen = sorted((r for r in runs if belongs(r)), key=lambda r: r["rows"] * r["columns"])
        area = [r["rows"] * r["columns"] / 1e6 for r in chosen]
        axes.plot(area, [r["peak_bytes"] / 1e9 for r in chosen], "o-", label=name)
    before = max(r["before_bytes"] for r in runs)
    axes.axhline((before + GOAL_BYTES) / 1e9, color="grey", linestyle=":", label="goal: 2 GB beyond the loaded model")
    axes.set(xlabel="area, Mpx", ylabel="peak memory, GB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def one(rows: int, columns: int, folder: Path) -> dict[str, Any]:
    """Draw and predict one scene in this process. Bytes are the peaks of resident memory, stage by stage."""
    from maskformer.config import ModelConfig
    from maskformer.model import build_model
    from pipelines import manifest, shards
    from pipelines.bundle import save_bundle
    from pipelines.config import PredictOptions
    from pipelines.prediction import predict_scene

    scene, objects = draw_scene(folder / "scene.tif", rows, columns)
    adapter = described()
    preset = "mfenet-efficientnet-lite0"
    config = ModelConfig.from_preset(preset, num_classes=CLASSES, in_channels=1, num_queries=8)
    bundle = save_bundle(folder / "bundle", build_model(config), adapter)
    peaks: dict[str, int] = {}
    stage = manifest.Stopwatch.stage

    @contextmanager
    def watched(self: Any, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        with stage(self, name):
            yield
        peaks[name] = high_water()

    options = PredictOptions(task="instance", batch=1, device="cpu", precision="fp32")
    with (
        mock.patch.object(shards, "warm_predictor", lambda plan: Stub(adapter)),
        mock.patch.object(manifest.Stopwatch, "stage", watched),
    ):
        before, began = resident(), time.perf_counter()
        out = predict_scene(scene, bundle, folder / "out", options)
        seconds = time.perf_counter() - began
    run = json.loads((out / "run.json").read_text())
    return {
        "rows": rows,
        "columns": columns,
        "objects_drawn": objects,
        "objects": run["objects"],
        "ambiguous_links": run["ambiguous_links"],
        "before_bytes": before,
        "peak_bytes": max(peaks.values()),
        "peaks_bytes": peaks,
        "seconds": round(seconds, 1),
        "stages_s": run["timings_s"],
    }


class Stub:
    """Answers as a predictor does, from the pixels: no network."""

    batch = 1

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter

    def __call__(self, arrays: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        return [self._answer(array[0].astype(np.uint8), valid) for array, valid in arrays]

    def _answer(self, pixels: np.ndarray, valid: np.ndarray) -> Any:
        from maskformer.masks import MaskSet
        from pipelines.predictor import TileResult

        planes = [(pixels & 15) == number + 1 for number in range(CLASSES - 2)]
        planes += [(pixels & bit) > 0 for bit in (ROAD, RIVER)]
        sets = []
        for number, plane in enumerate(planes):
            numbered, count = ndimage.label(plane)
            if count:
                found = MaskSet.from_label_map(numbered, dict.fromkeys(range(1, count + 1), number))
                scores = np.full(count, 0.9, np.float32)
                sets.append(MaskSet(found.shape, found.runs, found.offsets, found.labels, scores))
        objects = MaskSet.concatenate(sets) if sets else MaskSet.empty(pixels.shape)
        return TileResult(objects, np.stack(planes).astype(np.float16), valid)


def described() -> Any:
    from adapters.base import DomainAdapter
    from adapters.channels import Channel, ChannelSet
    from adapters.classes import Class, ClassSet

    classes = ClassSet(tuple(Class(f"kind {number}") for number in range(CLASSES)))
    plane = ChannelSet((Channel("value", (1,)),))
    return DomainAdapter("memory", plane, classes, overlap="free", tile=TILE, tile_overlap=OVERLAP)


def draw_scene(path: Path, rows: int, columns: int) -> tuple[Path, int]:
    """Write the scene, a row of cells at a time; its path, and how many objects are in it."""
    import rasterio
    from affine import Affine

    kind = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": rows, "width": columns, "crs": "EPSG:32633"}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "bigtiff": "yes"}
    total = 2
    with rasterio.open(path, "w", transform=Affine(0.5, 0, 4e5, 0, -0.5, 6e6), **kind, **layout) as file:
        for top in range(0, rows, CELL):
            band, count = draw_cells(top, min(CELL, rows - top), rows, columns)
            total += count
            file.write(band, 1, window=((top, top + len(band)), (0, columns)))
    return path, total


def draw_cells(top: int, height: int, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """The pixels of scene rows `top` to `top + height`; an ellipse that the scene's border cuts off is left out."""
    band = np.zeros((height, columns), np.uint8)
    count, pitch = 0, CELL // ACROSS
    y, x = np.ogrid[:pitch, :pitch]
    for left in range(0, columns, CELL):
        random = np.random.default_rng([top, left])
        if random.random() >= SHARE:
            continue
        radii, kinds = random.uniform(12, 45, (ACROSS**2, 2)), random.integers(1, CLASSES - 1, ACROSS**2)
        for number in range(ACROSS**2):
            row, column = number // ACROSS * pitch, left + number % ACROSS * pitch
            if row + pitch > height or column + pitch > columns:
                continue
            inside = ((y - pitch / 2) / radii[number, 0]) ** 2 + ((x - pitch / 2) / radii[number, 1]) ** 2 < 1
            band[row : row + pitch, column : column + pitch][inside] = kinds[number]
            count += 1
    down, across = np.arange(top, top + height), np.arange(columns)
    middle = columns / 2 + columns / 8 * np.sin(down / 3000)
    for number, centre in enumerate(middle):
        band[number, int(centre) - 60 : int(centre) + 60] |= RIVER
    centres = (rows / 2 + rows / 8 * np.sin(across / 2000)).astype(int)
    for step in range(-8, 9):
        line = centres + step - top
        here = (line >= 0) & (line < height)
        band[line[here], across[here]] |= ROAD
    return band, count


def high_water() -> int:
    return _status("VmHWM")


def resident() -> int:
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(one(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main()
