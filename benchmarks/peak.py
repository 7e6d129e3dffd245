"""How fast this machine multiplies matrices: the yardstick of the other benchmarks. Under a minute."""

from __future__ import annotations

import torch

from benchmarks.measure import THREADS, matmul_peak
from benchmarks.record import write_result

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    torch.set_num_threads(THREADS)
    peak = {name: round(matmul_peak(dtype), 1) for name, dtype in DTYPES.items()}
    for name, value in peak.items():
        print(f"{name}: {value:.0f} GFLOP/s on {THREADS} threads")
    print(write_result("peak", None, {"threads": THREADS, "gflops_per_s": peak}))


if __name__ == "__main__":
    main()
