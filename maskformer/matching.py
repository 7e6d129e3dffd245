"""Hungarian matching of queries and objects, in float32, for every layer and picture at once.

Cost = class_weight·(−p(class)) + mask_weight·(focal or BCE) + dice_weight·dice at mask resolution, targets shrunk by
nearest neighbour (MaskFormer, arXiv 2107.06278). Pixel costs are sums over pixels of "positive where the target is 1,
negative where it is 0", which is one matmul: Σ t·pos + (1−t)·neg = (pos − neg)·tᵀ + Σ neg. For BCE that is
Σ softplus(x) − x·tᵀ.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from maskformer.config import ModelConfig
from maskformer.targets import Target

logger = logging.getLogger(__name__)

ALPHA = 0.25  # of the focal loss; its γ = 2 is written as a square below


class Match(NamedTuple):
    """Pairs of one layer and picture: query and object indices, (M,) int64, on the logits' device."""

    queries: Tensor
    objects: Tensor


class Matching(NamedTuple):
    """pairs[layer][picture]; elsewhere (L, B, Q) bool: queries whose mask lies mostly in ignored pixels."""

    pairs: list[list[Match]]
    elsewhere: Tensor


class Matcher:
    """Callable that matches; it remembers which warnings it has given."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._warned_crowded = False
        self._warned_finite = False

    @torch.no_grad()
    def __call__(self, class_logits: Tensor, mask_logits: Tensor, targets: Sequence[Target]) -> Matching:
        """class_logits (L, B, Q, K+1), mask_logits (L, B, Q, h, w), B targets whose size is a multiple of (h, w).

        One cost tensor for all layers and pictures, one copy to the host, then scipy. With more objects than
        queries, the worst fitting objects stay unmatched (warned once).
        """
        with torch.autocast(mask_logits.device.type, enabled=False):
            cost, elsewhere = self._costs(class_logits.float(), mask_logits.float(), targets)
        counts = [len(target.labels) for target in targets]
        self._warn_crowded(max(counts, default=0), class_logits.shape[2])
        on_host = self._finite(cost.cpu().numpy(), class_logits, mask_logits)
        pairs = [
            [self._assign(costs[:, :count], mask_logits.device) for costs, count in zip(layer, counts, strict=True)]
            for layer in on_host
        ]
        return Matching(pairs, elsewhere)

    def _costs(self, class_logits: Tensor, mask_logits: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """cost (L, B, Q, most objects), padded with 0; elsewhere (L, B, Q)."""
        layers, batch, queries = class_logits.shape[:3]
        widest = max((len(target.labels) for target in targets), default=0)
        cost = class_logits.new_zeros(layers, batch, queries, widest)
        elsewhere = torch.zeros(layers, batch, queries, dtype=torch.bool, device=class_logits.device)
        for b, target in enumerate(targets):
            masks, valid = shrink(target, mask_logits.shape[-2:])
            one = self._cost(class_logits[:, b].flatten(0, 1), mask_logits[:, b].flatten(0, 1), target, masks, valid)
            cost[:, b, :, : len(target.labels)] = one[0].unflatten(0, (layers, queries))
            elsewhere[:, b] = one[1].unflatten(0, (layers, queries))
        return cost, elsewhere

    def _cost(
        self, class_logits: Tensor, mask_logits: Tensor, target: Target, masks: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """class_logits (LQ, K+1), mask_logits (LQ, h, w), masks (N, h, w) and valid (h, w) → (LQ, N), (LQ,)."""
        x = mask_logits.flatten(1)
        v = valid.flatten().float()
        t = masks.flatten(1).float() * v  # (N, hw)
        p = x.sigmoid()
        area = v.sum().clamp(min=1)
        if self.config.mask_loss == "bce":
            pixel = ((F.softplus(x) @ v)[:, None] - x @ t.T) / area
        else:
            positive = ALPHA * (1 - p).square() * F.softplus(-x)
            negative = (1 - ALPHA) * p.square() * F.softplus(x)
            pixel = ((positive - negative) @ t.T + (negative @ v)[:, None]) / area
        inside = p @ v
        dice = 1 - (2 * (p @ t.T) + 1) / (inside[:, None] + t.sum(1) + 1)
        probability = class_logits.softmax(-1)[:, target.labels]
        config = self.config
        cost = config.mask_weight * pixel + config.dice_weight * dice - config.class_weight * probability
        return cost, inside < 0.5 * p.sum(1)

    def _assign(self, cost: np.ndarray, device: torch.device) -> Match:
        queries, objects = linear_sum_assignment(cost)
        return Match(torch.from_numpy(queries).to(device), torch.from_numpy(objects).to(device))

    def _warn_crowded(self, objects: int, queries: int) -> None:
        if objects > queries and not self._warned_crowded:
            self._warned_crowded = True
            logger.warning(
                "%d objects in one picture, but %d queries: %d go unmatched. Raise num_queries or crop smaller.",
                objects,
                queries,
                objects - queries,
            )

    def _finite(self, cost: np.ndarray, class_logits: Tensor, mask_logits: Tensor) -> np.ndarray:
        """The cost with NaN and inf replaced by a huge one, said once with their origin."""
        if np.isfinite(cost).all():
            return cost
        if not self._warned_finite:
            self._warned_finite = True
            layer, picture = (int(i) for i in np.argwhere(~np.isfinite(cost))[0][:2])
            origins = [
                f"{name} ({int((~torch.isfinite(values[layer, picture])).sum())} values)"
                for name, values in (("class_logits", class_logits), ("mask_logits", mask_logits))
                if not torch.isfinite(values[layer, picture]).all()
            ]
            logger.warning(
                "matching cost is not finite in layer %d, picture %d; origin: %s",
                layer,
                picture,
                " and ".join(origins) or "neither class_logits nor mask_logits, so the targets",
            )
        return np.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)


def shrink(target: Target, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """masks (N, *size) and valid (size) by nearest neighbour: every s-th pixel; ValueError if sizes do not divide."""
    height, width = target.valid.shape
    step = height // size[0]
    if (size[0] * step, size[1] * step) != (height, width):
        raise ValueError(f"target of {height} x {width} pixels is not a multiple of masks of {tuple(size)}")
    return target.masks[:, ::step, ::step], target.valid[::step, ::step]
