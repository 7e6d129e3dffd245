"""Hungarian matching of queries and objects, in float32, for every layer and picture at once.

Cost = class_weight·(−p(class)) + mask_weight·(focal or BCE) + dice_weight·dice. MaskFormer (arXiv 2107.06278) compares
whole masks at a quarter of the input, targets shrunk by nearest neighbour; Mask2Former (2112.01527) compares at one
set of random points a picture. Pixel costs are sums of "positive where the target is 1, negative where it is 0": that
is one matmul: Σ t·pos + (1−t)·neg = (pos − neg)·tᵀ + Σ neg. For BCE that is Σ softplus(x) − x·tᵀ.
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

from maskformer import points
from maskformer.config import ModelConfig
from maskformer.fast_linear import fast_affine
from maskformer.mask_losses import ALPHA
from maskformer.prediction import STRIDE, LayerPrediction, Prediction
from maskformer.targets import Target

logger = logging.getLogger(__name__)

Layer = Prediction | LayerPrediction
GROUND_POINTS = 1024  # to tell whether a mask lies in ignored ground: half or not half needs no more


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
    def __call__(self, layers: Sequence[Layer], targets: Sequence[Target]) -> Matching:
        """Predictions of L layers over B pictures, B targets of the input's size.

        One cost tensor for all layers and pictures, one copy to the host, then scipy. With more objects than
        queries, the worst fitting objects stay unmatched (warned once).
        """
        class_logits = torch.stack([layer.class_logits for layer in layers])
        with torch.autocast(class_logits.device.type, enabled=False):
            cost, elsewhere = self._costs(layers, class_logits.float(), targets)
        counts = [len(target.labels) for target in targets]
        self._warn_crowded(max(counts, default=0), class_logits.shape[2])
        on_host = self._finite(cost.cpu().numpy(), layers)
        pairs = [
            [self._assign(costs[:, :count], class_logits.device) for costs, count in zip(layer, counts, strict=True)]
            for layer in on_host
        ]
        return Matching(pairs, elsewhere)

    def _costs(self, layers: Sequence[Layer], class_logits: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """cost (L, B, Q, most objects), padded with 0; elsewhere (L, B, Q)."""
        count, batch, queries = class_logits.shape[:3]
        widest = max((len(target.labels) for target in targets), default=0)
        cost = class_logits.new_zeros(count, batch, queries, widest)
        elsewhere = torch.zeros(count, batch, queries, dtype=torch.bool, device=class_logits.device)
        for b, target in enumerate(targets):
            view = self._view(layers, b, target)
            for index in range(count):
                logits = view.logits(index)
                masks = self._mask_cost(logits[:, : len(view.weight)], view.inside, view.weight)
                elsewhere[index, b] = lies_elsewhere(logits[:, -len(view.ground) :], view.ground)
                chance = class_logits[index, b].softmax(-1)[:, target.labels]
                cost[index, b, :, : len(target.labels)] = masks - self.config.class_weight * chance
        return cost, elsewhere

    def _view(self, layers: Sequence[Layer], b: int, target: Target) -> _View:
        if self.config.loss_resolution == "points":
            places = points.draw(self.config.num_points, target.valid)
            seen = points.sample_target(target, places)
            anywhere = torch.rand(GROUND_POINTS, 2, device=places.device)
            ground = points.sample_target(target, anywhere).valid
            return _View(seen.inside, seen.valid, ground, _LogitsOf(layers, b, target, torch.cat((places, anywhere))))
        masks, valid = shrink(target, layers[-1].mask_logits.shape[-2:])
        weight = valid.flatten().float()
        return _View(masks.flatten(1).float(), weight, weight, _LogitsOf(layers, b, target, None))

    def _mask_cost(self, x: Tensor, inside: Tensor, v: Tensor) -> Tensor:
        """x (Q, P) logits, inside (N, P) and v (P,) → cost (Q, N)."""
        t = inside * v
        p = x.sigmoid()
        area = v.sum().clamp(min=1)
        if self.config.mask_loss == "bce":
            pixel = ((F.softplus(x) @ v)[:, None] - x @ t.T) / area
        else:
            positive = ALPHA * (1 - p).square() * F.softplus(-x)
            negative = (1 - ALPHA) * p.square() * F.softplus(x)
            pixel = ((positive - negative) @ t.T + (negative @ v)[:, None]) / area
        seen = p @ v
        dice = 1 - (2 * (p @ t.T) + 1) / (seen[:, None] + t.sum(1) + 1)
        return self.config.mask_weight * pixel + self.config.dice_weight * dice

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

    def _finite(self, cost: np.ndarray, layers: Sequence[Layer]) -> np.ndarray:
        """The cost with NaN and inf replaced by a huge one, said once with their origin."""
        if np.isfinite(cost).all():
            return cost
        if not self._warned_finite:
            self._warned_finite = True
            layer, picture = (int(i) for i in np.argwhere(~np.isfinite(cost))[0][:2])
            logits = {"class_logits": layers[layer].class_logits, "mask_logits": layers[layer].mask_logits}
            origins = [
                f"{name} ({int((~torch.isfinite(values[picture])).sum())} values)"
                for name, values in logits.items()
                if not torch.isfinite(values[picture]).all()
            ]
            logger.warning(
                "matching cost is not finite in layer %d, picture %d; origin: %s",
                layer,
                picture,
                " and ".join(origins) or "neither class_logits nor mask_logits, so the targets",
            )
        return np.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)


class _View(NamedTuple):
    """Where the masks of a picture are compared: the objects (N, P), what counts (P,), a layer's logits (Q, P + R), and
    whether the last R of those places are valid (R,); on whole masks these are the P themselves.
    """

    inside: Tensor
    weight: Tensor
    ground: Tensor
    logits: _LogitsOf


class _LogitsOf:
    """Mask logits (Q, P) of a layer for one picture: of all pixels, or at points.

    Sampling commutes with the product of embeddings and features, so the features are sampled once for all layers that
    share them (equal to 1e-5), and no full mask is made.
    """

    def __init__(self, layers: Sequence[Layer], b: int, target: Target, places: Tensor | None) -> None:
        self.layers, self.b, self.places = layers, b, places
        if places is not None:
            features = layers[-1].mask_features
            maps = layers[-1].mask_logits if features is None else features
            self.places = points.on_logits(places, target.valid.shape, maps.shape[-2:])
        self._sampled: tuple[Tensor, Tensor] | None = None  # features, and they at the points

    def __call__(self, index: int) -> Tensor:
        layer = self.layers[index]
        if layer.mask_embed is None or layer.mask_features is None:
            logits = layer.mask_logits[self.b].float()
            return logits.flatten(1) if self.places is None else points.sample_maps(logits, self.places)
        return fast_affine(self._features(layer.mask_features), None, layer.mask_embed[self.b].float())

    def _features(self, features: Tensor) -> Tensor:  # (P, c)
        if self._sampled is None or self._sampled[0] is not features:
            maps = features[self.b].float()
            sampled = maps.flatten(1) if self.places is None else points.sample_maps(maps, self.places)
            self._sampled = features, sampled.t().contiguous()
        return self._sampled[1]


def lies_elsewhere(x: Tensor, ground: Tensor) -> Tensor:
    """(Q,) bool: masks of logits x (Q, R) that lie mostly where `ground` (R,) is 0."""
    p = x.sigmoid()
    return p @ ground < 0.5 * p.sum(1)


def shrink(target: Target, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """masks (N, *size) and valid (size) by nearest neighbour: every fourth pixel of the target.

    ValueError where `size` is not a quarter of the target's, rounded up.
    """
    small = target._replace(layers=target.layers[:, ::STRIDE, ::STRIDE], valid=target.valid[::STRIDE, ::STRIDE])
    if small.valid.shape != tuple(size):
        height, width = target.valid.shape
        raise ValueError(f"target of {height} x {width} pixels does not fit masks of {tuple(size)}")
    return small.masks, small.valid
