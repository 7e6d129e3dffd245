"""Targets: what a model should have said about one picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskformer.masks import MaskSet


class Target(NamedTuple):
    """N objects that may overlap: labels (N,) int64 class indices, masks (N, H, W) bool, valid (H, W) bool.

    Pixels that are not valid (ignored, nodata or padding) take part in no cost and no loss.
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor

    @classmethod
    def from_mask_set(cls, objects: MaskSet, valid: np.ndarray) -> Target:
        """The target of a 2-D MaskSet; objects without a single valid pixel are dropped (they would teach nothing)."""
        if valid.shape != tuple(objects.shape):
            raise ValueError(f"target: valid is {valid.shape}, the objects' canvas is {tuple(objects.shape)}")
        masks = objects.to_dense()
        seen = (masks & valid).any(axis=(1, 2))
        return cls(
            torch.from_numpy(np.asarray(objects.labels, np.int64)[seen]),
            torch.from_numpy(masks[seen]),
            torch.from_numpy(np.array(valid, bool)),
        )

    def to(self, device: torch.device | str) -> Target:
        """The same target on another device."""
        return Target(*(tensor.to(device, non_blocking=True) for tensor in self))


def check_targets(targets: list[Target], num_classes: int, size: tuple[int, int]) -> None:
    """ValueError that names the target where a label is not a class or a mask is not of `size` (H, W) pixels.

    Labels are looked at on the CPU only: on a GPU that would cost a wait, and the loader has had them on the CPU.
    """
    for index, target in enumerate(targets):
        masks, valid = tuple(target.masks.shape[1:]), tuple(target.valid.shape)
        if masks != size or valid != size:
            raise ValueError(f"target {index}: masks {masks} and valid {valid}, expected the input's {size} pixels")
        if len(target.labels) != len(target.masks):
            raise ValueError(f"target {index}: {len(target.labels)} labels for {len(target.masks)} masks")
        if target.labels.device.type == "cpu" and len(target.labels):
            low, high = int(target.labels.min()), int(target.labels.max())
            if low < 0 or high >= num_classes:
                wrong = low if low < 0 else high
                raise ValueError(f"target {index}: label {wrong}, but there are {num_classes} classes (0-based)")
