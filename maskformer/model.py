"""MaskFormer = backbone → pixel decoder → query decoder, and the factory for every architecture of a config."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from maskformer.backbones import build_backbone
from maskformer.config import ModelConfig
from maskformer.prediction import DensePrediction, Prediction

if TYPE_CHECKING:
    from maskformer.conversion.account import Conversion

__all__ = ["DensePrediction", "MaskFormer", "Prediction", "build_model", "freeze", "param_groups"]


# Where each choice of a config lives; imported when chosen. All are built with (widths they are given, config).
PIXEL_DECODERS = {
    "fpn": "maskformer.pixel_decoders:FPN",
    "transformer_fpn": "maskformer.pixel_decoders:TransformerFPN",
    "deformable": "maskformer.deformable:DeformablePixelDecoder",
    "pem": "maskformer.pem:PEMPixelDecoder",
    "tokens": "maskformer.eomt:Tokens",
}
QUERY_DECODERS = {
    "detr": "maskformer.query_decoders:DETRDecoder",
    "located": "maskformer.located_queries:LocatedDecoder",
    "masked": "maskformer.masked_decoder:MaskedDecoder",
    "prototype": "maskformer.prototypes:PrototypeDecoder",
    "encoder": "maskformer.eomt:EncoderDecoder",
}


class MaskFormer(nn.Module):
    """Mask classification (Cheng et al. 2021, arXiv 2107.06278) and the family that came of it."""

    conversion: Conversion  # of a model that `maskformer.convert` made: what went where

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.pixel_decoder = _class(PIXEL_DECODERS[config.pixel_decoder])(self.backbone.channels, config)
        self.query_decoder = _class(QUERY_DECODERS[config.query_decoder])(self.pixel_decoder.memory_channels, config)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> MaskFormer:
        """A freshly initialised model of a preset, e.g. `from_preset("maskformer-resnet50", num_classes=5)`."""
        config = ModelConfig.from_preset(name, **overrides)
        if config.architecture != "maskformer":
            raise ValueError(f"preset {name!r} is a {config.architecture}; build_model makes those")
        return cls(config)

    def forward(self, x: Tensor) -> Prediction:
        """x (B, C, H, W) normalised; never pads, resizes or normalises.

        In training the prediction carries the earlier layers as `auxiliary`. Sides need not be multiples of 32, yet
        each stage then rounds up by itself and coarse maps reach past the picture; the pipelines pad to 32.
        ValueError for an empty batch.
        """
        if x.shape[0] == 0:
            raise ValueError("expected at least one picture, got an empty batch")
        return self.query_decoder(self.pixel_decoder(self.backbone(x)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them, in every part that can: less memory.

        Losses and gradients stay the same. ValueError where the backbone, which keeps most of them, cannot.
        """
        if not hasattr(self.backbone, "set_grad_checkpointing"):
            raise ValueError(f"gradient checkpointing: {type(self.backbone).__name__} has none")
        parts: list[Any] = [self.backbone, self.pixel_decoder, self.query_decoder]
        for part in parts:
            if hasattr(part, "set_grad_checkpointing"):
                part.set_grad_checkpointing(enable)


def _class(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def build_model(config: ModelConfig) -> nn.Module:
    """The freshly initialised model of a config: a MaskFormer, or the per-pixel U-Net baseline."""
    if config.architecture == "unet":
        from maskformer.baseline import UNet  # imports segmentation-models-pytorch

        return UNet(config)
    return MaskFormer(config)


def param_groups(
    model: nn.Module,
    learning_rate: float,
    backbone_multiplier: float = 0.1,
    weight_decay: float = 1e-4,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: the backbone's rate × `backbone_multiplier`; no decay on norms and embeddings.

    With `layer_decay` each stage of the backbone learns at that share of the next one's rate, the stem the least.
    Frozen parameters are left out. Source: MaskFormer's training script (there one group per parameter).
    """
    depth = _depths(model)
    deepest = max(depth.values(), default=0)
    groups: dict[tuple[int | None, bool], list[nn.Parameter]] = {}
    for module in model.modules():
        undecayed = isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                plain = undecayed or "position" in name or "pos_embed" in name
                stage = depth.get(id(parameter))
                stage = stage if stage is None or layer_decay is not None else deepest
                groups.setdefault((stage, plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate
            * (1.0 if stage is None else backbone_multiplier * (layer_decay or 1.0) ** (deepest - stage)),
            "weight_decay": 0.0 if plain else weight_decay,
        }
        for (stage, plain), parameters in groups.items()
    ]


def _depths(model: nn.Module) -> dict[int, int]:
    """id of each backbone parameter → its stage, counted from the picture, by the first number in its name.

    timm counts blocks, stages or layers so in every network; what follows the last of them (norms, a head's
    convolution) counts with it.
    """
    depth: dict[int, int] = {}
    seen = 0
    for name, parameter in model.backbone.named_parameters():  # type: ignore[union-attr]
        number = re.search(r"\.(?:layer)?(\d+)(?:\.|_)", f".{name}")
        if number is not None:
            seen = int(number[1]) + 1
        depth[id(parameter)] = seen
    rank = {number: place for place, number in enumerate(sorted(set(depth.values())))}
    return {key: rank[number] for key, number in depth.items()}


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Keep parts of the model (`backbone`, `pixel_decoder`, `query_decoder`) as they are, their batch norms too.

    Call again after `model.train()`. ValueError where the model has no such part.
    """
    for part in parts:
        if not hasattr(model, part):
            raise ValueError(f"freeze: {type(model).__name__} has no {part}")
        getattr(model, part).requires_grad_(False).eval()
