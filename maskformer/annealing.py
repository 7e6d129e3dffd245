"""Mask annealing: masked attention is switched off block by block while a model trains, so that inference needs none.

Source: EoMT (arXiv 2503.19108). There a schedule is a list of step numbers; in shares of the training they all come to
the same: every block's window is a sixth, the first begins after one sixth and the last ends at five (COCO, 4 blocks:
14782, 29564, 44346, 59128 of 88 692 steps; Cityscapes, 3 blocks: 3317, 8292, 13268 of 19 902).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 1 / 6  # share of the training in which one block goes from always masked to never
LAST_START = 4 / 6
POWER = 0.9


def masking_probability(block: int, blocks: int, progress: float) -> float:
    """The probability, in 0..1, that a query is masked in `block` (0: the first masked one) of `blocks`.

    `progress` is the share of the training that is done, 0..1. The first block is annealed first.
    """
    start = WINDOW + (LAST_START - WINDOW) * (block / (blocks - 1) if blocks > 1 else 0.0)
    done = min(max((progress - start) / WINDOW, 0.0), 1.0)
    return float((1 - done) ** POWER)


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell every annealed part of `model` that the share `progress` (0..1) of its training is done."""
    for module in model.modules():
        if isinstance(module, MaskAnnealing):
            module.set_progress(progress)


class MaskAnnealing(nn.Module):
    """Which queries of which block have their attention masked. Starts unannealed: all of them.

    `probability` (blocks,) is part of the state dict: a model stored half way predicts as it was trained. Which blocks
    need masks at all is known to Python too, because a graph may not depend on a tensor's value.
    """

    probability: Tensor

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.register_buffer("probability", torch.ones(blocks))
        self._remember([1.0] * blocks)
        self.register_load_state_dict_post_hook(_after_load)

    def set_progress(self, progress: float) -> None:
        """Take the probabilities of the schedule at `progress` 0..1."""
        blocks = len(self.probability)
        values = [masking_probability(block, blocks, progress) for block in range(blocks)]
        self.probability.copy_(torch.tensor(values))
        self._remember(values)

    def is_active(self, block: int) -> bool:
        """Whether `block` needs attention masks: in training while any query may be masked, else where most are.

        Predictions must not be drawn by lot: outside training a block is masked where its probability is at least ½.
        """
        return self.sometimes[block] if self.training else self.mostly[block]

    def spare(self, block: int, allowed: Tensor) -> Tensor:
        """allowed (B, Q, N) bool → the same, all true for queries that are spared the mask, by lot, in training."""
        if not self.training:
            return allowed
        lot = torch.rand(allowed.shape[:2], device=allowed.device)
        return allowed | (lot >= self.probability[block])[..., None]

    def _remember(self, values: list[float]) -> None:
        self.sometimes = tuple(value > 0 for value in values)
        self.mostly = tuple(value >= 0.5 for value in values)


def _after_load(annealing: nn.Module, _incompatible: Any) -> None:
    assert isinstance(annealing, MaskAnnealing)
    if not annealing.probability.is_meta:
        annealing._remember(annealing.probability.tolist())
