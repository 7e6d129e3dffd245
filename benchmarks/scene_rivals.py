"""One scene by three ways, each in a process of its own: ours, SAHI over transformers' model, a plain loop over it.

The model is transformers' Mask2Former over EfficientNet-lite0, trained by `benchmarks.finetune` on the western part of
the buildings scene; ours is the same weights, converted. Seconds and memory are of a scene of the same picture laid out
several times, panoptic quality is of the held-out part, which is nowhere in the training.

SAHI has its defaults but for what would be unfair: no least area of a segment, and no pass over the whole picture at
once (`perform_standard_pred`), which no memory would hold. The plain loop takes the same tiles, keeps of each what lies
nearer to its centre than to any other, and puts nothing together.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import finetune
from benchmarks.measure import THREADS, in_fresh_process, peak_rss_mib
from maskformer.masks import MaskSet

STEPS = 300  # of training; about five minutes on two cores
TILE, OVERLAP = finetune.CROP, 64
REPEATED = 3  # times the scene is laid out along each axis, for seconds and memory
SCORE = 0.5
SIDES = ("ours", "sahi", "loop", "loop, bfloat16")


def comparison() -> dict[str, Any]:
    """Every side's seconds, peak memory, objects, PQ and F1; skipped where the data or SAHI is missing."""
    if not finetune.SCENE.exists():
        return {"skipped": f"there is no {finetune.SCENE}", "sides": {}}
    folder = work_folder()
    trained(folder)
    scenes(folder)
    sides = {}
    for side in SIDES:
        try:
            sides[side] = in_fresh_process("benchmarks.scene_rivals", side)
        except Exception as error:  # noqa: BLE001  (one side that fails does not cost the others)
            print(f"{side}: {getattr(error, 'stderr', error)}", flush=True)
            continue
        print(side, sides[side], flush=True)
    return {"steps": STEPS, "tile": TILE, "overlap": OVERLAP, "repeated": REPEATED, "sides": sides}


def work_folder() -> Path:
    root = Path(os.environ.get("MASKBRIDGE_BENCH_CACHE") or tempfile.gettempdir())
    folder = root / f"maskbridge-rivals-{STEPS}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---------------------------------------------------------------- model and scenes, made once


def trained(folder: Path) -> None:
    """Their trained weights, and a bundle of the same in our model."""
    from adapters.base import DomainAdapter
    from adapters.channels import Channel, ChannelSet
    from adapters.classes import Class, ClassSet
    from pipelines.bundle import save_bundle

    if (folder / "bundle").exists():
        return
    torch.set_num_threads(THREADS)
    learn, _ = finetune.read(finetune.SCENE)
    torch.manual_seed(0)
    model = finetune.build_theirs()
    finetune.STEPS = STEPS
    finetune.fit(model, learn, 0, None)
    torch.save(model.state_dict(), folder / "theirs.pt")
    planes = tuple(Channel(c, (c, n + 1), 127.5, 127.5) for n, c in enumerate(("red", "green", "blue")))
    adapter = DomainAdapter(
        "buildings", ChannelSet(planes), ClassSet((Class("building"),)), overlap="free", tile=TILE, tile_overlap=OVERLAP
    )
    save_bundle(folder / "bundle", finetune.converted(model), adapter, thresholds={"score": SCORE})


def theirs(folder: Path) -> nn.Module:
    model = finetune.build_theirs()
    model.load_state_dict(torch.load(folder / "theirs.pt", weights_only=True))
    return model.eval()


def scenes(folder: Path) -> None:
    """`held_out.tif` and `large.tif`, tiled and compressed; `truth.npz` of the held-out part."""
    import rasterio

    if (folder / "truth.npz").exists():
        return
    parts = finetune.read(finetune.SCENE)
    pictures = [((part.pixels + 1) * 127.5).round().clamp(0, 255).byte().numpy() for part in parts]
    whole = np.concatenate(pictures, 2)
    for name, picture in (("held_out", pictures[1]), ("large", np.tile(whole, (1, REPEATED, REPEATED)))):
        _, height, width = picture.shape
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": height, "width": width}
        blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "photometric": "RGB"}
        place = rasterio.Affine(0.15, 0, 400_000, 0, -0.15, 3_300_000)
        with rasterio.open(folder / f"{name}.tif", "w", crs="EPSG:32617", transform=place, **profile, **blocks) as file:
            file.write(picture)
    np.savez_compressed(folder / "truth.npz", objects=parts[1].objects.numpy())


# ---------------------------------------------------------------- the sides


def ours(folder: Path) -> Callable[[Path], MaskSet]:
    from pipelines.config import PredictOptions
    from pipelines.prediction import predict_scene

    def run(scene: Path) -> MaskSet:
        from rasterio.features import rasterize

        with tempfile.TemporaryDirectory() as out:
            done = predict_scene(scene, folder / "bundle", out, PredictOptions(min_area=1))
            if scene.stem == "large":
                return MaskSet.empty((1, 1))
            import geopandas
            import rasterio

            found = geopandas.read_parquet(done / "objects.parquet")
            with rasterio.open(scene) as file:
                shape, transform = file.shape, file.transform
        masks = [rasterize([g], shape, transform=transform).astype(bool) for g in found.geometry]
        dense = np.stack(masks) if masks else np.zeros((0, *shape), bool)
        return MaskSet.from_dense(dense, np.zeros(len(dense), np.int64), found["score"].to_numpy(np.float32))

    return run


def sahi(folder: Path) -> Callable[[Path], MaskSet]:
    from sahi.models.huggingface_segmentation import HuggingfaceSegmentationModel
    from sahi.predict import get_sliced_prediction

    detector = HuggingfaceSegmentationModel(
        model=theirs(folder), processor=processor(), device="cpu", confidence_threshold=SCORE, min_segment_area=0
    )

    def run(scene: Path) -> MaskSet:
        result = get_sliced_prediction(
            str(scene),
            detector,
            slice_height=TILE,
            slice_width=TILE,
            overlap_height_ratio=OVERLAP / TILE,
            overlap_width_ratio=OVERLAP / TILE,
            perform_standard_pred=False,
            verbose=0,
        )
        if scene.stem == "large":
            return MaskSet.empty((1, 1))
        found = result.object_prediction_list
        masks = [one.mask.bool_mask for one in found]
        dense = np.stack(masks) if masks else np.zeros((0, result.image_height, result.image_width), bool)
        scores = np.array([one.score.value for one in found], np.float32)
        return MaskSet.from_dense(dense, np.zeros(len(dense), np.int64), scores)

    return run


def loop(folder: Path, dtype: torch.dtype = torch.float32) -> Callable[[Path], MaskSet]:
    import rasterio

    from pipelines.grid import Grid

    model, prepare = theirs(folder), processor()

    def run(scene: Path) -> MaskSet:
        with rasterio.open(scene) as file:
            picture = file.read()
        grid = Grid(picture.shape[1:], TILE, OVERLAP)
        canvas = np.zeros(grid.shape, np.int32)
        scores: list[float] = []
        for tile in grid:
            values = prepare(picture[:, *tile.window].transpose(1, 2, 0), return_tensors="pt")["pixel_values"]
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
                out = model(pixel_values=values)
            found = prepare.post_process_instance_segmentation(out, threshold=SCORE, target_sizes=[tile.shape])[0]
            drawn = found["segmentation"].numpy()
            core = tuple(slice(*grid.cores[axis][i : i + 2]) for axis, i in enumerate(tile.index))
            inside = tuple(slice(c.start - w.start, c.stop - w.start) for c, w in zip(core, tile.window, strict=True))
            part = np.zeros(drawn[inside].shape, np.int32)
            for one in found["segments_info"]:
                scores.append(one["score"])
                part[drawn[inside] == one["id"]] = len(scores)
            canvas[core] = part
        if scene.stem == "large":
            return MaskSet.empty((1, 1))
        found_set = MaskSet.from_label_map(canvas, dict.fromkeys(range(1, len(scores) + 1), 0))
        return found_set[found_set.areas > 0]

    return run


def processor() -> Any:
    """transformers' own image processor, told that tiles are to stay as large as they are."""
    from transformers import Mask2FormerImageProcessor

    return Mask2FormerImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def alone(side: str) -> dict[str, Any]:
    """One side in this process."""
    from pipelines.grid import Grid
    from pipelines.metrics import f1, panoptic_quality

    torch.set_num_threads(THREADS)
    folder = work_folder()
    if side == "ours":
        run = ours(folder)
    elif side == "sahi":
        run = sahi(folder)
    else:
        run = loop(folder, torch.bfloat16 if "bfloat16" in side else torch.float32)
    numbered = np.load(folder / "truth.npz")["objects"]
    truth = MaskSet.from_label_map(numbered, dict.fromkeys(range(1, int(numbered.max()) + 1), 0))
    found = run(folder / "held_out.tif")
    import rasterio

    with rasterio.open(folder / "large.tif") as file:
        tiles = len(Grid(file.shape, TILE, OVERLAP))
    began = time.perf_counter()
    run(folder / "large.tif")
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 2),
        "tiles": tiles,
        "peak_rss_mib": round(peak_rss_mib()),
        "objects": len(found),
        "truth": len(truth),
        "pq": round(float(panoptic_quality(found, truth, 1)["pq"]), 4),
        "f1": round(float(f1(found, truth)), 4),
    }


if __name__ == "__main__":
    print(json.dumps(alone(sys.argv[1])))
