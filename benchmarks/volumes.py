"""A 512x512x280 CT of 120 classes from file to files: memory, seconds a stage, and two peers. A quarter of an hour.

The scan is a phantom of 120 ellipsoids whose values tell the class. `Reader` runs a real network on every slice, for
its cost, and answers what it reads, as queries with masks at a quarter of the size: objects of real sizes to link, send
back and write. Peers: MONAI's SliceInferer over a 2-D U-Net of as many operations, and the accumulation of all classes'
logits in half precision, as nnU-Net and TotalSegmentator do it. Both hold every class of every voxel, for which this
machine is too small at 280 slices: they run on slabs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from adapters.classes import Class, ClassSet
from adapters.medical import ct
from benchmarks.measure import THREADS, gigaflops, in_fresh_process, peak_rss_mib
from benchmarks.record import write_result
from maskformer.config import ModelConfig
from maskformer.model import build_model
from maskformer.prediction import Prediction

SHAPE, SPACING, CLASSES = (512, 512, 280), (0.8, 0.8, 2.5), 120
COARSE = (1.0, 1.0, 2.5)  # mm: the model's grid in the run that resamples
STEP = 8.0  # HU between classes
QUERIES = 100
SLABS = (4, 8, 16)
FEW = 40  # slices of the runs that compare numbers of classes
GOAL = {"memory_gib_without_model": 3.0, "reading_resampling_writing_share": 0.2}


def main() -> None:
    record: dict[str, Any] = {"goal": GOAL, "shape": SHAPE, "classes": CLASSES, "threads": THREADS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = phantom(folder / "scan.nii.gz", SHAPE)
        _run(record, "objects", scan)
        _run(record, "objects_resampled", scan)
        _run(record, "classes", scan)
        for classes in (4, CLASSES):
            part = phantom(folder / f"{classes}.nii.gz", (*SHAPE[:2], FEW), classes)
            _run(record, f"{FEW}_slices_{classes}_classes", part, "objects", str(classes))
        for peer in ("monai", "full_logits"):
            for depth in SLABS:
                _run(record, f"{peer}_{depth}_slices", phantom(folder / "slab.nii.gz", (*SHAPE[:2], depth)), peer)
            rows = [record[f"{peer}_{depth}_slices"] for depth in SLABS]
            record[f"{peer}_extrapolated_gib"] = extrapolated(rows)
    record["seconds_per_slice"] = {
        "maskbridge": round(record["objects"]["seconds"] / SHAPE[2], 3),
        "monai": round(record[f"monai_{SLABS[-1]}_slices"]["seconds"] / SLABS[-1], 3),
    }
    print(write_result("volumes", None, record))


def _run(record: dict[str, Any], name: str, scan: Path, *arguments: str) -> None:
    """One side in a process of its own; what is known so far is kept."""
    side, *rest = arguments or (name,)
    record[name] = in_fresh_process("benchmarks.volumes", side, str(scan), *rest)
    print(name, record[name], flush=True)
    write_result("volumes", None, record)


def phantom(path: Path, shape: tuple[int, int, int], classes: int = CLASSES) -> Path:
    """A body with `classes` ellipsoids of 10 to 60 voxels, each in its own grey, and noise; LPS, int16, gzip."""
    random = np.random.default_rng(0)
    volume = np.full(shape, -1000, np.int16)
    y, x = np.ogrid[: shape[0], : shape[1]]
    body = ((y - shape[0] / 2) / (0.44 * shape[0])) ** 2 + ((x - shape[1] / 2) / (0.4 * shape[1])) ** 2 < 1
    volume[body] = 0
    for k in range(classes):
        radius = random.uniform(10, 60, 3) * (1, 1, 0.4)
        angle, far = random.uniform(0, 2 * np.pi), 0.33 * np.sqrt(random.random())
        centre = (
            shape[0] * (0.5 + far * np.sin(angle)),
            shape[1] * (0.5 + far * np.cos(angle)),
            random.random() * shape[2],
        )
        box = [slice(max(0, int(c - r)), min(n, int(c + r) + 2)) for c, r, n in zip(centre, radius, shape)]
        axes = np.ogrid[tuple(box)]
        volume[tuple(box)][sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radius)) < 1] = int((k + 1) * STEP)
    volume[body] += random.integers(-2, 3, volume[body].shape, np.int16)
    image = nibabel.Nifti1Image(volume, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1]))
    nibabel.save(image, path)
    return path


class Reader(nn.Module):
    """A real network for its cost; the answer is read off the middle slice: a query a class that is there."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.network = build_model(network_config(classes))

    def forward(self, x: Tensor) -> Prediction:
        spent = self.network(x)
        middle = x[:, 1:2] * 500 + 500  # see `adapter`: the window is 0 to 1000 HU
        read = torch.round(middle[:, 0, 2::4, 2::4] / STEP)
        # of a border that was resampled the grey is any class's between the two: no model sees rims of a third one
        even = max_pool2d(read[:, None], 3, 1, 1) + max_pool2d(-read[:, None], 3, 1, 1)
        found = torch.where(even[:, 0] == 0, read, 0).long()
        classes = torch.full((len(x), QUERIES, self.classes + 1), -4.0)
        classes[..., -1] = 4.0
        masks = torch.full((len(x), QUERIES, *found.shape[1:]), -6.0)
        for b, picture in enumerate(found):
            there = [k for k in picture.unique().tolist() if 0 < k <= self.classes][:QUERIES]
            for query, k in enumerate(there):
                classes[b, query, k - 1], classes[b, query, -1] = 6.0, -4.0
                masks[b, query] = torch.where(picture == k, 6.0, -6.0)
        # the network's own numbers are weighed with nothing, so that nothing can leave them out
        return Prediction(classes + 0 * spent.class_logits.mean(), masks + 0 * spent.mask_logits.mean())


def network_config(classes: int) -> ModelConfig:
    return ModelConfig.from_preset(
        "maskformer-efficientnet-lite0-small", in_channels=3, num_classes=classes, num_queries=QUERIES
    )


def adapter(classes: int, spacing: tuple[float, ...] | None) -> Any:
    names = ClassSet(tuple(Class(f"organ {k + 1}") for k in range(classes)))
    return ct(names, [(0.0, 1000.0)], overlap="exclusive", context_slices=1, planes=("axial",), spacing=spacing)


def ours(scan: Path, task: str, spacing: tuple[float, ...] | None, classes: int) -> dict[str, Any]:
    """The whole way from the file to all files of a study."""
    from pipelines.volumes.options import VolumeOptions
    from pipelines.volumes.prediction import VolumeModel
    from pipelines.volumes.studies import predict_volume, volume_predictor

    network = Reader(classes)
    model = VolumeModel(network, adapter(classes, spacing))
    options = VolumeOptions(task=task, device="cpu", precision="fp32")
    predictor = volume_predictor(model, options)
    with torch.inference_mode():
        network.network(torch.zeros(1, 3, 512, 512))  # the libraries' own memory is the model's
    ready = peak_rss_mib()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        run = json.loads((predict_volume(scan, predictor, out) / "run.json").read_text())
    seconds = time.perf_counter() - began
    files = sum(run["timings_s"].get(stage, 0.0) for stage in ("read", "resample", "write", "report", "seg"))
    return {
        "seconds": round(seconds, 1),
        "timings_s": run["timings_s"],
        "reading_resampling_writing_share": round(files / seconds, 3),
        "objects": run["objects"],
        "memory_gib": round(peak_rss_mib() / 1024, 2),
        "memory_gib_without_model": round((peak_rss_mib() - ready) / 1024, 2),
    }


def unet() -> tuple[nn.Module, float, float]:
    """MONAI's 2-D BasicUNet of as many operations a slice as our network, and both numbers."""
    from monai.networks.nets import BasicUNet

    x = torch.zeros(1, 3, 512, 512)
    network = build_model(network_config(CLASSES)).eval().requires_grad_(False)  # the counter trips over learnt queries
    with torch.no_grad():
        wanted = gigaflops(lambda: network(x))

        def made(f: int) -> tuple[nn.Module, float]:
            one = BasicUNet(2, 3, CLASSES + 1, features=(f, f, 2 * f, 4 * f, 8 * f, f)).eval()
            return one, gigaflops(lambda: one(x))

        model, flops = min((made(f) for f in range(8, 49, 4)), key=lambda pair: abs(pair[1] - wanted))
    return model, flops, wanted


def monai(scan: Path) -> dict[str, Any]:
    """File to file with MONAI: read, turn, scale, slice by slice, argmax, save."""
    from monai.inferers import SliceInferer
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, SaveImage, ScaleIntensityRange

    model, flops, wanted = unet()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as out, torch.inference_mode():
        steps = [LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None)]
        image = Compose([*steps, ScaleIntensityRange(0, 1000, -1, 1, clip=True)])(scan)
        volume = torch.cat([image] * 3)[None].as_tensor()
        inferer = SliceInferer(roi_size=SHAPE[:2], spatial_dim=2, sw_batch_size=4, overlap=0.0)
        logits = inferer(volume, model)
        labels = image.clone()
        labels[:] = logits[0].argmax(0, keepdim=True)
        SaveImage(output_dir=out, output_dtype=np.uint8, print_log=False)(labels)
    return {
        "slices": volume.shape[-1],
        "seconds": round(time.perf_counter() - began, 2),
        "memory_gib": round(peak_rss_mib() / 1024, 2),
        "gigaflops_a_slice": round(flops, 2),
        "ours_gigaflops_a_slice": round(wanted, 2),
    }


def full_logits(scan: Path) -> dict[str, Any]:
    """All classes of all voxels in half precision, then their argmax; no network at all."""
    depth = nibabel.load(scan).shape[2]
    total = torch.zeros((CLASSES + 1, depth, *SHAPE[:2]), dtype=torch.half)
    weight = torch.zeros((depth, *SHAPE[:2]), dtype=torch.half)
    for z in range(depth):
        total[:, z] += torch.randn(CLASSES + 1, *SHAPE[:2]).half()
        weight[z] += 1
    total /= weight
    total.argmax(0)
    return {"slices": depth, "memory_gib": round(peak_rss_mib() / 1024, 2)}


def extrapolated(rows: list[dict[str, Any]]) -> float:
    """GiB at the scan's full depth: the line through the slabs."""
    slope, start = np.polyfit([row["slices"] for row in rows], [row["memory_gib"] for row in rows], 1)
    return round(float(slope * SHAPE[2] + start), 1)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    what, where, *rest = sys.argv[1:]
    scan_path, count = Path(where), int(rest[0]) if rest else CLASSES
    sides = {
        "objects": lambda: ours(scan_path, "instance", None, count),
        "objects_resampled": lambda: ours(scan_path, "instance", COARSE, count),
        "classes": lambda: ours(scan_path, "semantic", None, count),
        "monai": lambda: monai(scan_path),
        "full_logits": lambda: full_logits(scan_path),
    }
    print(json.dumps(sides[what]()))
