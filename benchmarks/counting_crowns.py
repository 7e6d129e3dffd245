"""Counting tree crowns in plots of 30 m, three seeds: the mask model and a density-map U-Net. Nothing but the package.

The seed is that of the weights and crops; the scene is cut by place, its north to learn from, its south to count.
"""

from __future__ import annotations

from benchmarks.counting import GOAL, measure
from benchmarks.record import ROOT

CONFIG = ROOT / "configs" / "counting" / "crowns.yaml"
PLOT = 300  # px of 10 cm


def main() -> None:
    measure("counting_crowns", CONFIG, GOAL, PLOT)


if __name__ == "__main__":
    main()
