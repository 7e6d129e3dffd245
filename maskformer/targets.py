"""What a picture should become: objects that may overlap, and where nobody knows.

Objects are kept as label maps, so that a picture costs what its pixels cost, however many objects lie in it: one map
where nothing overlaps, one more where two objects share a pixel, and so on. Binary masks are never stacked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskformer.masks import MaskSet


class Target(NamedTuple):
    """Objects of one picture: labels (N,) int64; layers (L, H, W) int32: 0 nothing, n + 1 object n; valid (H, W) bool.

    Every object lies in one layer, whole. Pixels that are not valid (ignored, or padding) count in no loss and no cost.
    """

    labels: Tensor
    layers: Tensor
    valid: Tensor

    @classmethod
    def from_mask_set(cls, objects: MaskSet, valid: np.ndarray) -> Target:
        """From the objects of a crop and its valid pixels (H, W) bool; objects without a valid pixel are dropped."""
        if objects.shape != valid.shape:
            raise ValueError(f"objects on a canvas of {objects.shape}, valid pixels of {valid.shape}")
        seen = objects[_visible(objects, valid)] if len(objects) else objects
        layers = seen.layers() or [np.zeros(valid.shape, np.int32)]
        return cls(
            torch.from_numpy(seen.labels.copy()),
            torch.from_numpy(np.stack(layers).astype(np.int32)),
            torch.from_numpy(valid.astype(bool, copy=True)),
        )

    @classmethod
    def from_masks(cls, labels: Tensor, masks: Tensor, valid: Tensor) -> Target:
        """From labels (N,), masks (N, H, W) bool and valid (H, W) bool; empty masks stay: objects of no pixel."""
        objects = MaskSet.from_dense(masks.cpu().numpy(), np.zeros(len(masks), np.int64))
        layers = objects.layers() or [np.zeros(tuple(valid.shape), np.int32)]
        return cls(labels, torch.from_numpy(np.stack(layers).astype(np.int32)).to(masks.device), valid)

    @property
    def masks(self) -> Tensor:
        """(N, H, W) bool: the stack that is otherwise avoided; for looking at, and for tests."""
        numbers = torch.arange(1, len(self.labels) + 1, device=self.layers.device)
        return (self.layers[None] == numbers[:, None, None, None]).any(1)

    def to(self, device: torch.device | str) -> Target:
        return Target(*(tensor.to(device, non_blocking=True) for tensor in self))

    def areas(self) -> Tensor:
        """(N,) int64: valid pixels of each object."""
        seen = (self.layers * self.valid).flatten().long()
        return torch.bincount(seen, minlength=len(self.labels) + 1)[1:]


def check_targets(targets: Sequence[Target], num_classes: int, size: tuple[int, int], stride: int = 1) -> None:
    """ValueError that names what is wrong: a class out of range, an object without a label, maps that do not fit.

    size (h, w): of logits that are at a `stride`-th of the input, rounded up. Labels are looked at on the CPU only: on
    a GPU that would cost a wait. Training looks at them before they go there (`check_labels`).
    """
    for index, target in enumerate(targets):
        layers, valid = tuple(target.layers.shape[1:]), tuple(target.valid.shape)
        if layers != valid or tuple(-(-side // stride) for side in valid) != tuple(size):
            whole = tuple(side * stride for side in size)
            raise ValueError(f"target {index}: layers {layers} and valid {valid}, expected the input's {whole} pixels")
        if target.labels.device.type == "cpu":
            check_labels(target, num_classes, f"target {index}")


def check_labels(target: Target, num_classes: int, name: str = "target") -> None:
    """ValueError that names a class out of range, or an object without a label; for targets on the CPU."""
    most = int(target.layers.max()) if target.layers.numel() else 0
    if most > len(target.labels):
        raise ValueError(f"{name}: {len(target.labels)} labels, but its layers know object {most}")
    if len(target.labels):
        low, high = int(target.labels.min()), int(target.labels.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise ValueError(f"{name}: label {wrong}, but there are {num_classes} classes (0-based)")


def _visible(objects: MaskSet, valid: np.ndarray) -> np.ndarray:
    """(N,) bool: objects with at least one valid pixel."""
    if valid.all():
        return objects.areas > 0
    seen = MaskSet.from_dense(valid[None].astype(bool), np.zeros(1, np.int64))
    return objects.intersections(seen)[:, 0] > 0
