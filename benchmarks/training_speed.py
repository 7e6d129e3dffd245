"""One training step against transformers: forward, matching, loss, backward; seconds and peak memory of a process.

About 14 minutes, three quarters of them theirs. Swin-T, batch 2 of 512 x 512, 20 and 100 objects a picture that cover
it (a Voronoi partition). Mask2Former supervises all layers by default on both sides; MaskFormer's auxiliary losses are
off by default in transformers and on in the paper: both are here, alike on both sides.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import ours, theirs
from benchmarks.measure import THREADS, alternating, in_fresh_process, peak_rss_mib
from benchmarks.record import write_result

ROUNDS = 2
BATCH = 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDES = tuple(f"{who} {dtype}" for dtype in DTYPES for who in ("theirs", "ours"))


class Case(NamedTuple):
    """One column of the comparison: a model, its auxiliary losses, objects a picture."""

    model: str
    auxiliary: bool
    objects: int

    @property
    def title(self) -> str:
        return f"{self.model}, {'all layers' if self.auxiliary else 'last layer'}, {self.objects} objects"


# MaskFormer's last layer alone is transformers' default; with all layers and 100 objects theirs takes 64 s and 16 GB.
CASES = (
    *(Case("mask2former", True, objects) for objects in (20, 100)),
    *(Case("maskformer", False, objects) for objects in (20, 100)),
    Case("maskformer", True, 20),
)


def main() -> None:
    torch.set_num_threads(THREADS)
    values: dict[str, Any] = {"threads": THREADS, "batch": BATCH, "side": theirs.SIDE, "cases": {}}
    for case in CASES:
        x, labels, maps = pictures(case.objects)
        sides = {side: step(case, side, x, labels, maps) for side in SIDES}
        result: dict[str, Any] = alternating(sides, ROUNDS)
        for side in SIDES:
            arguments = (case.model, str(int(case.auxiliary)), str(case.objects), side)
            memory = in_fresh_process("benchmarks.training_speed", *arguments)
            result[side].update({name: round(value) for name, value in memory.items()})
        values["cases"][case.title] = result
        print("\n".join(rows(case.title, result)), flush=True)
    print(write_result("training_speed", None, values))


def step(case: Case, side: str, x: Tensor, labels: list[Tensor], maps: list[Tensor]) -> Any:
    """The callable that runs one step of a side."""
    who, dtype = side.split()
    if who == "theirs":
        model = theirs.build(case.model, case.auxiliary).train()
        return theirs.training_step(model, x, labels, maps, DTYPES[dtype])
    return ours.training_step(ours.build(case.model, case.auxiliary), x, labels, maps, DTYPES[dtype])


def pictures(objects: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Noise (BATCH, 3, S, S), labels (objects,) each, and maps (S, S) int32 where every pixel is its nearest seed's."""
    generator = torch.Generator().manual_seed(0)
    labels, maps = [], []
    line = torch.arange(theirs.SIDE) + 0.5
    for _ in range(BATCH):
        seeds = torch.rand(objects, 2, generator=generator) * theirs.SIDE
        away = (line[:, None, None] - seeds[:, 0]) ** 2 + (line[None, :, None] - seeds[:, 1]) ** 2
        maps.append(away.argmin(2).int() + 1)
        labels.append(torch.randint(theirs.CLASSES, (objects,), generator=generator))
    return torch.randn(BATCH, 3, theirs.SIDE, theirs.SIDE, generator=generator), labels, maps


def rows(title: str, result: dict[str, Any]) -> list[str]:
    """Markdown rows: case, precision, their and our seconds and ratio, their and our MiB and ratio."""
    lines = []
    for dtype in DTYPES:
        a, b = result[f"theirs {dtype}"], result[f"ours {dtype}"]
        lines.append(
            f"| {title} | {dtype} | {a['median_s']:.2f} | {b['median_s']:.2f} | {a['median_s'] / b['median_s']:.2f}x "
            f"| {a['peak_rss_mib']} | {b['peak_rss_mib']} | {b['peak_rss_mib'] / a['peak_rss_mib']:.2f} |"
        )
    return lines


def alone(model: str, auxiliary: str, objects: str, side: str) -> None:
    """Two steps of one side in this process, and its memory as JSON: run in a process of its own."""
    torch.set_num_threads(THREADS)
    case = Case(model, bool(int(auxiliary)), int(objects))
    x, labels, maps = pictures(case.objects)
    run = step(case, side, x, labels, maps)
    before = peak_rss_mib()
    for _ in range(2):
        run()
    print(json.dumps({"peak_rss_mib": peak_rss_mib(), "before_step_mib": before}))


if __name__ == "__main__":
    alone(*sys.argv[1:]) if len(sys.argv) > 1 else main()
