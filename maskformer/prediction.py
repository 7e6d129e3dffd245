"""What a model returns: the two currencies between models, losses and inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STRIDE = 4  # mask logits are at a quarter of the (padded) input, in every model of the family


class PixelMaps(NamedTuple):
    """What a located decoder draws in training: semantic (B, K, H/4, W/4) and centres (B, K, h, w), both logits."""

    semantic: Tensor
    centres: Tensor


class LayerPrediction(NamedTuple):
    """An earlier decoder layer: class_logits (B, Q, K+1), mask_embed (B, Q, c), mask_features (B, c, H/4, W/4).

    The masks are kept as factors, because matching and loss need them at a few points and for a few queries only.
    """

    class_logits: Tensor
    mask_embed: Tensor
    mask_features: Tensor

    @property
    def mask_logits(self) -> Tensor:  # (B, Q, H/4, W/4)
        return dot_product_masks(self.mask_embed, self.mask_features)


class Prediction(NamedTuple):
    """A set of Q masks with a class each (mask classification).

    class_logits (B, Q, K+1), "no object" last; mask_logits (B, Q, ⌈H/4⌉, ⌈W/4⌉); auxiliary: the earlier decoder
    layers, first layer first (empty where the model is not training or does not supervise them); maps: more to
    supervise in training, where the query decoder draws any. mask_embed (B, Q, c) and, in training, mask_features
    (B, c, h, w) are the factors of mask_logits, where it is their plain product.
    """

    class_logits: Tensor
    mask_logits: Tensor
    auxiliary: tuple[Prediction | LayerPrediction, ...] = ()
    maps: PixelMaps | None = None
    mask_embed: Tensor | None = None
    mask_features: Tensor | None = None


class DensePrediction(NamedTuple):
    """A class for every pixel: logits (B, K+1, H, W), "nothing" last."""

    logits: Tensor


def dot_product_masks(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """(B, Q, c) · (B, c, h, w) → mask logits (B, Q, h, w); no bias, no scale."""
    pixels = mask_features.flatten(2)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or pixels.device.type != "cpu":
        product = torch.bmm(mask_embed, pixels)
    else:  # a plain product takes channels-last maps as they are; the batched one copies them (bf16: 12 against 5 ms)
        product = torch.stack([embed @ maps for embed, maps in zip(mask_embed, pixels, strict=True)])
    return product.unflatten(2, mask_features.shape[-2:])


def predict_layers(layers: Sequence[tuple[Tensor, Tensor]], mask_features: Tensor, keep_factors: bool) -> Prediction:
    """Class logits (B, Q, K+1) and mask embeddings (B, Q, c) of each layer → the last one's prediction.

    `keep_factors` (in training) keeps the factors, and the earlier layers as auxiliary.
    """
    class_logits, mask_embed = layers[-1]
    prediction = Prediction(class_logits, dot_product_masks(mask_embed, mask_features), mask_embed=mask_embed)
    if not keep_factors:
        return prediction
    earlier = tuple(LayerPrediction(c, m, mask_features) for c, m in layers[:-1])
    return prediction._replace(auxiliary=earlier, mask_features=mask_features)
