"""What a model returns: the two currencies between models, losses and inference."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

STRIDE = 4  # mask logits are at a quarter of the (padded) input, in every model of the family


class PixelMaps(NamedTuple):
    """What a located decoder draws in training: semantic (B, K, H/4, W/4) and centres (B, K, h, w), both logits."""

    semantic: Tensor
    centres: Tensor


class Prediction(NamedTuple):
    """A set of Q masks with a class each (mask classification).

    class_logits (B, Q, K+1), "no object" last; mask_logits (B, Q, H/4, W/4); auxiliary: the same two of the earlier
    decoder layers, first layer first (empty where the model is not training or does not supervise them); maps: more to
    supervise in training, where the query decoder draws any.
    """

    class_logits: Tensor
    mask_logits: Tensor
    auxiliary: tuple[Prediction, ...] = ()
    maps: PixelMaps | None = None


class DensePrediction(NamedTuple):
    """A class for every pixel: logits (B, K+1, H, W), "nothing" last."""

    logits: Tensor
