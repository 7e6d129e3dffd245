"""Soft-tissue sarcoma in T1 MR, 7 patients in 3 folds: mask model and per-pixel U-Net."""

from __future__ import annotations

from benchmarks.record import ROOT
from benchmarks.volume_training import cross_validate

CONFIG = ROOT / "configs" / "medical" / "sarcoma-mr.yaml"
GOAL = {"dice_behind_unet": 0.01}


def main() -> None:
    cross_validate("sarcoma_mr", CONFIG, GOAL)


if __name__ == "__main__":
    main()
