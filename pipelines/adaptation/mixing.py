"""Objects of one crop pasted into another: the student meets them on other ground."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maskformer.targets import Target
from pipelines.checkpoints import sha256_of
from pipelines.datasets import without_specks
from pipelines.loading import Samples

FAR = 1_000_003  # the guest of item k is item k + FAR: never a neighbour in the same batch


class MixedCrops:
    """Items of `crops`, a `share` of them with half of the objects of another item pasted in. Item k depends on k."""

    def __init__(self, crops: Samples, share: float = 0.5, seed: int = 0) -> None:
        self.crops, self.share, self.seed = crops, share, seed

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.crops[index]
        random = np.random.default_rng([self.seed, index, 1])
        if random.random() >= self.share:
            return image, target
        guest_image, guest = self.crops[index + FAR]
        count = len(guest.labels)
        if not count:
            return image, target
        chosen = np.sort(random.permutation(count)[: -(-count // 2)])
        return paste(image, target, guest_image, guest, torch.from_numpy(chosen))

    def fingerprint(self) -> str:
        return sha256_of({"crops": self.crops.fingerprint(), "mixed": [self.share, self.seed]})


def paste(image: Tensor, target: Target, guest_image: Tensor, guest: Target, chosen: Tensor) -> tuple[Tensor, Target]:
    """The guest's `chosen` objects (numbers) over the image (C, H, W): they cover what lies below them."""
    number = torch.zeros(len(guest.labels) + 1, dtype=torch.int32)
    number[chosen + 1] = torch.arange(1, len(chosen) + 1, dtype=torch.int32) + len(target.labels)
    layers = number[guest.layers.long()] * guest.valid
    covered = (layers > 0).any(0)
    own = target.layers.clone()
    own[:, covered] = 0
    merged = Target(
        torch.cat((target.labels, guest.labels[chosen])),
        torch.cat((own, layers)),
        target.valid | covered,
    )
    return torch.where(covered, guest_image, image), without_specks(merged, 4)


def same_size(image: Tensor, height: int, width: int) -> Tensor:
    """(C, h, w) cut or repeated to (C, height, width)."""
    image = image[:, :height, :width]
    missing = (0, width - image.shape[2], 0, height - image.shape[1])
    return functional.pad(image, missing, mode="replicate") if any(missing) else image
