"""100 queries to 2048 × 2048, panoptic and instances, beside transformers' Mask2Former processor. Ten minutes.

Same logits for both: noisy discs, 5, 20 or 100 of them kept, the rest sure of "nothing"; masks of 128 × 128 (an input
of 512 pixels) and 512 × 512 (one of 2048). Theirs ends in a map (which loses overlaps of instances, but is its quicker
form), ours in run lengths. Peak memory: how much one run adds to the largest resident size of a fresh process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import THREADS, alternating, in_fresh_process, peak_rss_mib
from benchmarks.record import write_result
from maskformer import inference
from maskformer.prediction import Prediction

SIZE = (2048, 2048)
QUERIES, CLASSES = 100, 8
KEPT, SIDES = (5, 20, 100), (128, 512)
TASKS = ("panoptic", "instance")
ROUNDS = 5


def main() -> None:
    torch.set_num_threads(THREADS)
    rows = [measured(task, kept, side) for task in TASKS for kept in KEPT for side in SIDES]
    settings = {"size": list(SIZE), "queries": QUERIES, "threads": THREADS, "rounds": ROUNDS}
    print(write_result("postprocessing", None, {**settings, "rows": rows}))


def measured(task: str, kept: int, side: int) -> dict[str, Any]:
    prediction = picture(kept, side)
    covered = F.interpolate(prediction.mask_logits[:, :kept].amax(1, keepdim=True), size=SIZE, mode="bilinear") > 0
    times = alternating({name: run(name, task, prediction) for name in ("ours", "theirs")}, ROUNDS)
    memory = {
        name: in_fresh_process("benchmarks.postprocessing", name, task, str(kept), str(side))["peak_mib"]
        for name in ("ours", "theirs")
    }
    row = {
        "task": task,
        "kept": kept,
        "mask_side": side,
        "covered": round(covered.float().mean().item(), 3),
        "found": {name: run(name, task, prediction)() for name in ("ours", "theirs")},
        "seconds": times,
        "times_faster": round(times["theirs"]["median_s"] / times["ours"]["median_s"], 1),
        "peak_mib": memory,
        "memory_ratio": round(memory["ours"] / memory["theirs"], 3),
    }
    print(json.dumps(row), flush=True)
    return row


def picture(kept: int, side: int) -> Prediction:
    """Logits like a trained model's: discs on a lattice, each within ±8 and with smooth noise, `kept` of them sure."""
    generator = torch.Generator().manual_seed(kept)
    across = int((kept - 1) ** 0.5) + 1
    down = -(-kept // across)
    axis = (torch.arange(side) + 0.5) / side
    masks = torch.empty(QUERIES, side, side)
    for query in range(QUERIES):
        y, x = ((query // across) % down + 0.5) / down, (query % across + 0.5) / across
        distance = (((axis - y) * down)[:, None].square() + ((axis - x) * across)[None].square()).sqrt()
        noise = torch.randn(1, 1, 17, 17, generator=generator)
        noise = F.interpolate(noise, size=(side, side), mode="bilinear", align_corners=True)[0, 0]
        masks[query] = ((0.5 - distance) * 40).clamp(-8, 8) + noise
    return Prediction(_classes(kept, generator)[None], masks[None])


def _classes(kept: int, generator: torch.Generator) -> Tensor:
    logits = 0.3 * torch.randn(QUERIES, CLASSES + 1, generator=generator)
    best = torch.randint(CLASSES, (QUERIES,), generator=generator)
    best[kept:] = CLASSES
    return logits.scatter_add(1, best[:, None], torch.full((QUERIES, 1), 7.0))


def run(name: str, task: str, prediction: Prediction) -> Callable[[], int]:
    """One side, ready to be timed; it returns how many objects or segments it found."""
    if name == "ours":
        find = inference.panoptic if task == "panoptic" else inference.instances
        return lambda: len(find(prediction, SIZE, score=0.5)[0])
    from transformers import Mask2FormerImageProcessor

    processor = Mask2FormerImageProcessor()
    process = getattr(processor, f"post_process_{task}_segmentation")
    more: dict[str, Any] = {"label_ids_to_fuse": set()} if task == "panoptic" else {}
    outputs = SimpleNamespace(class_queries_logits=prediction.class_logits, masks_queries_logits=prediction.mask_logits)
    return lambda: len(process(outputs, target_sizes=[SIZE], **more)[0]["segments_info"])


def memory_of(name: str, task: str, kept: int, side: int) -> None:
    """Print how much one run adds to this process' peak, on a line of its own."""
    torch.set_num_threads(THREADS)
    prediction = picture(kept, side)
    once = run(name, task, prediction)
    small = Prediction(prediction.class_logits, prediction.mask_logits[..., :8, :8].contiguous())
    inference.panoptic(small, (32, 32))  # torch's own buffers
    before = peak_rss_mib()
    once()
    print(json.dumps({"peak_mib": round(peak_rss_mib() - before, 1)}))


if __name__ == "__main__":
    if len(sys.argv) == 5:
        memory_of(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
