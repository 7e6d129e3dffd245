"""One process of a training, as `accelerate launch` starts it: FOLDER BATCH STEPS CLASS_WEIGHT.

Leaves FOLDER/history.json and FOLDER/weights.pt, written by the first process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from maskformer.losses import build_criterion
from maskformer.model import build_model
from maskformer.targets import Target
from pipelines.config import TrainOptions
from pipelines.training import fit
from tests.maskformer.families import SIDE, learner


class Discs:
    """Sample `index` is made of its index alone: a disc or two, in the colour of their class, on noise."""

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        random = torch.Generator().manual_seed(index)
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        picture = 0.3 * torch.randn(3, SIDE, SIDE, generator=random)
        masks, labels = [], []
        for label in range(1 + index % 2):
            row, column, radius = (10 + 40 * torch.rand(3, generator=random)).tolist()
            masks.append((y - row).square() + (x - column).square() < (radius / 2) ** 2)
            labels.append(label)
            picture[label] += 2.0 * masks[-1]
        valid = torch.ones(SIDE, SIDE, dtype=torch.bool)
        return picture, Target.from_masks(torch.tensor(labels), torch.stack(masks), valid)

    def fingerprint(self) -> str:
        return "discs"


def main(folder: Path, batch: int, steps: int, class_weight: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Without batch normalisation, whose statistics are each process' own.
    config = learner("mask2former-swin", loss_resolution="input", class_weight=class_weight)
    options = TrainOptions(
        steps=steps, batch=batch, workers=0, log_every=1, precision="fp32", learning_rate=3e-4, backbone_multiplier=1.0
    )
    model = build_model(config)
    rows = []
    result = fit(model, build_criterion(config), Discs(), options, folder / "checkpoints", rows.append)
    if rows:  # the first process is told
        (folder / "history.json").write_text(json.dumps(result.history))
        torch.save(model.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
