"""A whole scene against the bare forward of its tiles, and beside SAHI and a plain loop over transformers' model.

About 8 minutes, and once 5 more to train the model of the comparison (kept where `MASKBRIDGE_BENCH_CACHE` says).

The share: `predict_scene`, from file to files, against the model alone over the same tiles in the same batches, which
lie ready in memory; bare, whole, bare again, in one process. Weights are random, so the answers would be noise: the
forward is computed in full, and then answered by a lattice of ellipses, 49 a tile, that agrees between tiles.

The rivals (`benchmarks.scene_rivals`): each in a process of its own, with the same trained weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import THREADS
from benchmarks.record import write_result
from maskformer.config import ModelConfig
from maskformer.model import build_model
from maskformer.prediction import Prediction

PRESETS = {"EfficientNet-lite0": "mfenet-efficientnet-lite0", "Swin-T": "maskformer-swin-tiny"}
WANTED = {"EfficientNet-lite0": 0.85, "Swin-T": 0.95}
TILE, OVERLAP, CLASSES = 512, 64, 10
STRIDE = TILE - OVERLAP
LATTICE = 64  # px between objects; divides the stride, so neighbouring tiles see the same ones
RADII = (17, 23)  # px, of every ellipse
TILES_A_SIDE = {"EfficientNet-lite0": 18, "Swin-T": 12}


def main(sides: dict[str, int] | None = None) -> None:
    torch.set_num_threads(THREADS)
    values: dict[str, Any] = {"tile": TILE, "overlap": OVERLAP, "classes": CLASSES, "share": {}}
    for name, tiles_a_side in (sides or TILES_A_SIDE).items():
        with tempfile.TemporaryDirectory() as folder:
            values["share"][name] = share(name, tiles_a_side, Path(folder))
        print(name, json.dumps(values["share"][name]), flush=True)
    from benchmarks.scene_rivals import comparison

    values["rivals"] = comparison()
    print("\n".join(rows(values)))
    print(write_result("scene_speed", None, values))


class Answering(nn.Module):
    """Computes `model` in full, and answers with the lattice instead of what random weights say."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.answer = lattice(int(self.config.num_queries))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Prediction:
        prediction = self.model(x)
        classes, masks = self.answer
        shapes = (prediction.class_logits.shape, prediction.mask_logits.shape)
        assert (shapes[0][1:], shapes[1][1:]) == (classes.shape, masks.shape), "tiles are of one size"
        return Prediction(classes.expand(shapes[0]), masks.expand(shapes[1]))


def lattice(queries: int) -> tuple[Tensor, Tensor]:
    """Class logits (Q, K + 1) and mask logits (Q, TILE / 4, TILE / 4) of an ellipse in each cell of the lattice."""
    across = TILE // LATTICE
    classes = torch.full((queries, CLASSES + 1), -4.0)
    classes[:, CLASSES] = 4.0
    y, x = torch.meshgrid(*[torch.arange(2.0, TILE, 4)] * 2, indexing="ij")
    masks = torch.full((queries, TILE // 4, TILE // 4), -8.0)
    for number in range(min(across**2, queries)):
        row, column = (LATTICE * (part + 0.5) for part in divmod(number, across))
        distance = ((y - row) / RADII[0]) ** 2 + ((x - column) / RADII[1]) ** 2
        masks[number] = 8 * (1 - distance).clamp(-1, 1)
        # The class by the place in the scene modulo the stride, so that the next tile says the same.
        kind = (number // across % (STRIDE // LATTICE) + number % across % (STRIDE // LATTICE)) % CLASSES
        classes[number, CLASSES], classes[number, kind] = -4.0, 4.0
    return classes, masks


def share(name: str, tiles_a_side: int, folder: Path) -> dict[str, Any]:
    """Seconds of the bare forward and of the whole run over a scene of so many tiles a side."""
    from adapters.base import DomainAdapter
    from adapters.channels import Channel, ChannelSet
    from adapters.classes import Class, ClassSet
    from pipelines.bundle import load_bundle, save_bundle
    from pipelines.config import PredictOptions
    from pipelines.prediction import predict_scene
    from pipelines.predictor import Predictor, settle

    planes = tuple(Channel(c, (c, n + 1), 127.5, 127.5) for n, c in enumerate(("red", "green", "blue")))
    kinds = ClassSet(tuple(Class(f"kind {n}") for n in range(CLASSES)))
    adapter = DomainAdapter("speed", ChannelSet(planes), kinds, overlap="free", tile=TILE, tile_overlap=OVERLAP)
    torch.manual_seed(0)
    config = ModelConfig.from_preset(PRESETS[name], num_classes=CLASSES)
    bundle = save_bundle(folder / "bundle", build_model(config), adapter)
    size = tiles_a_side * STRIDE + OVERLAP
    scene = draw_scene(folder / "scene.tif", size)

    predictor = Predictor(load_bundle(bundle).build(), adapter, settle(PredictOptions(), adapter, {}))
    bare_forward(predictor, 2)  # the first ones build what the libraries keep for this shape
    bare = [bare_forward(predictor, tiles_a_side**2)]
    with answering(), stitcher_clock() as clock:
        began = time.perf_counter()
        out = predict_scene(scene, bundle, folder / "out", PredictOptions())
        whole = time.perf_counter() - began
    run = json.loads((out / "run.json").read_text())
    batch = run["speed"]["batch"]
    bare = [*(bare if batch == 1 else []), bare_forward(predictor, tiles_a_side**2, batch)]
    return {
        "preset": PRESETS[name],
        "scene_px": size,
        "tiles": tiles_a_side**2,
        "objects": run["objects"],
        "bare_s": [round(seconds, 2) for seconds in bare],
        "whole_s": round(whole, 2),
        "share": round(sum(bare) / len(bare) / whole, 4),
        "wanted": WANTED[name],
        "stitcher_s": round(clock["seconds"], 2),
        "stitching_share": round(clock["seconds"] / whole, 4),
        "stages_s": run["timings_s"],
        "speed": run["speed"],
        "precision": run["parameters"]["precision"],
        "peak_rss_mib": round(run["peak_rss_bytes"] / 2**20),
    }


def draw_scene(path: Path, size: int) -> Path:
    """A tiled, compressed 8-bit GeoTIFF of smooth noise, as an orthophoto compresses."""
    import rasterio
    from scipy import ndimage

    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": size, "width": size, "crs": "EPSG:32617"}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
    place = rasterio.Affine(0.3, 0, 400_000, 0, -0.3, 3_300_000)
    with rasterio.open(path, "w", transform=place, photometric="RGB", **profile, **blocks) as file:
        for (_, _), window in file.block_windows(1):
            noise = ndimage.gaussian_filter(random.normal(0, 60, (3, window.height, window.width)), (0, 2, 2))
            file.write(np.clip(noise * 4 + 127, 0, 255).astype(np.uint8), window=window)
    return path


def bare_forward(predictor: Any, tiles: int, batch: int = 1) -> float:
    """Seconds of the model alone over so many tiles that lie ready, as the predictor runs it."""
    x = torch.randn(batch, 3, TILE, TILE).to(memory_format=torch.channels_last)
    began = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", predictor.dtype, enabled=predictor.dtype != torch.float32):
        for _ in range(tiles // batch):
            predictor.model(x)
    return time.perf_counter() - began


@contextmanager
def answering() -> Iterator[None]:
    """Within the block the shards' predictors answer with the lattice."""
    from pipelines import shards
    from pipelines.predictor import Predictor

    def make(model: nn.Module, adapter: Any, options: Any) -> Predictor:
        return Predictor(Answering(model), adapter, options)

    shards._predictor.cache_clear()
    with mock.patch.object(shards, "Predictor", make):
        yield
    shards._predictor.cache_clear()


@contextmanager
def stitcher_clock() -> Iterator[dict[str, float]]:
    """Seconds spent inside the stitcher's own calls within the block."""
    from pipelines.stitching import Stitcher

    clock = {"seconds": 0.0}

    def timed(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                clock["seconds"] += time.perf_counter() - began

        return call

    slow = {name: timed(getattr(Stitcher, name)) for name in ("add", "finish")}
    with mock.patch.multiple(Stitcher, **slow):
        yield clock


def rows(values: dict[str, Any]) -> list[str]:
    """Markdown rows of both tables."""
    lines = [
        "| model | tiles | bare, s | whole, s | share | wanted | stitcher | waited | objects | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in values["share"].items():
        bare = sum(one["bare_s"]) / len(one["bare_s"])
        lines.append(
            f"| {name} | {one['tiles']} | {bare:.1f} | {one['whole_s']:.1f} | {one['share']:.1%} | {one['wanted']:.0%} "
            f"| {one['stitching_share']:.1%} | {one['speed']['waited_share']:.1%} | {one['objects']} "
            f"| {one['peak_rss_mib']} |"
        )
    lines += ["", "| side | seconds | s a tile | peak MiB | objects | PQ | F1 |", "|---|---|---|---|---|---|---|"]
    for name, one in values["rivals"]["sides"].items():
        lines.append(
            f"| {name} | {one['seconds']:.1f} | {one['seconds'] / one['tiles']:.3f} | {one['peak_rss_mib']:.0f} "
            f"| {one['objects']} | {one['pq']:.3f} | {one['f1']:.3f} |"
        )
    return lines


if __name__ == "__main__":
    main(dict.fromkeys(PRESETS, int(sys.argv[1])) if len(sys.argv) > 1 else None)
