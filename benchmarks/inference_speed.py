"""Inference against transformers: same weights, one process, runs in turn; seconds, distance, memory, share of peak.

About 4 minutes. Swin-T, 512 x 512, batch 1, random weights of the published sizes. "bf16" is autocast on both sides,
and ours as `pipelines.predictor` runs models where the processor multiplies bfloat16: weights are cast once, before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours, theirs
from benchmarks.measure import THREADS, alternating, gigaflops, in_fresh_process, matmul_peak, peak_rss_mib
from benchmarks.record import write_result

ROUNDS = 9
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Logits = tuple[Tensor, Tensor]


def main() -> None:
    torch.set_num_threads(THREADS)
    peak = {name: round(matmul_peak(dtype), 1) for name, dtype in DTYPES.items()}
    values: dict[str, Any] = {"threads": THREADS, "side": theirs.SIDE, "matmul_gflops_per_s": peak}
    for name in theirs.MODELS:
        values[name] = compare(name, peak)
        print("\n".join(rows(name, values[name])), flush=True)
    print(write_result("inference_speed", None, values))


def compare(name: str, peak: dict[str, float]) -> dict[str, Any]:
    """Every side of one model: seconds, GFLOP, share of peak, distance of its logits to float32, memory."""
    from maskformer.convert import from_transformers

    torch.manual_seed(1)
    x = torch.randn(1, 3, theirs.SIDE, theirs.SIDE)
    their_model = theirs.build(name).eval().requires_grad_(False)
    our_model = from_transformers(their_model).eval().requires_grad_(False)
    sides: dict[str, Callable[[Tensor], Logits]] = {}
    for dtype_name, dtype in DTYPES.items():
        sides[f"theirs {dtype_name}"] = theirs.forward(their_model, dtype)
        sides[f"ours {dtype_name}"] = ours.forward(our_model, dtype)

    with torch.no_grad():  # the counter's hooks do not stand inference mode
        work = {"theirs": gigaflops(lambda: their_model(pixel_values=x)), "ours": gigaflops(lambda: our_model(x))}
    exact = sides["theirs fp32"](x)
    seconds = alternating({side: lambda run=run: run(x) for side, run in sides.items()}, ROUNDS)
    result: dict[str, Any] = {}
    for side, run in sides.items():
        done = work[side.split()[0]]
        limit = peak["fp32" if "fp32" in side else "bf16"]
        result[side] = {
            **seconds[side],
            "gflop": round(done, 1),
            "share_of_matmul_peak": round(done / seconds[side]["median_s"] / limit, 3),
            "logits_off": distance(run(x), exact),
            "peak_rss_mib": round(in_fresh_process("benchmarks.inference_speed", name, side)["peak_rss_mib"]),
        }
    return result


def distance(logits: Logits, exact: Logits) -> dict[str, float]:
    """Mean absolute distance of class and mask logits to `exact`."""
    return {
        part: float(f"{(a.float() - b).abs().mean():.3g}")
        for part, a, b in zip(("class", "mask"), logits, exact, strict=True)
    }


def rows(name: str, result: dict[str, Any]) -> list[str]:
    """Markdown rows: model, side, seconds, times theirs fp32, times theirs bf16, GFLOP, of peak, MiB, distances."""
    lines = []
    for side, value in result.items():
        ratios = [result[f"theirs {dtype}"]["median_s"] / value["median_s"] for dtype in DTYPES]
        off, share = value["logits_off"], value["share_of_matmul_peak"]
        lines.append(
            f"| {name} | {side} | {value['median_s']:.3f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x | {value['gflop']:.0f} "
            f"| {share:.0%} | {value['peak_rss_mib']} | {off['class']:.2g} | {off['mask']:.2g} |"
        )
    return lines


def alone(name: str, side: str) -> None:
    """Two forwards of one side in this process, and its peak memory as JSON: run in a process of its own."""
    torch.set_num_threads(THREADS)
    x = torch.randn(1, 3, theirs.SIDE, theirs.SIDE)
    dtype = DTYPES["fp32" if "fp32" in side else "bf16"]
    if side.startswith("theirs"):
        run = theirs.forward(theirs.build(name).eval(), dtype)
    else:
        run = ours.forward(ours.build(name), dtype)
    for _ in range(2):
        run(x)
    print(json.dumps({"peak_rss_mib": peak_rss_mib()}))


if __name__ == "__main__":
    alone(*sys.argv[1:]) if len(sys.argv) > 1 else main()
