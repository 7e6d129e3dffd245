"""ModelConfig: everything that decides what a model computes, as one frozen value.

Importing this module does not import torch, so plans, bundles and the command line can read and check configs
without paying for it. A field's default is the published MaskFormer (arXiv 2107.06278, COCO/ADE R50 settings).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskformer.presets import PRESETS

__all__ = ["CHOICES", "PRESETS", "ModelConfig"]

CHOICES: dict[str, tuple[str | int, ...]] = {
    "architecture": ("maskformer", "unet"),
    "pixel_decoder": ("fpn", "transformer_fpn", "deformable", "pem", "tokens"),
    "query_decoder": ("detr", "masked", "prototype", "encoder", "located"),
    "mask_prior": ("none", "ellipse"),
    "query_stride": (4, 8, 16, 32),
    "memory_stride": (8, 16, 32),
    "mask_loss": ("focal", "bce"),
    "loss_resolution": ("input", "mask", "points"),
}


COUNTS = (
    *("in_channels", "num_classes", "pixel_dim", "mask_dim", "num_queries", "hidden_dim", "num_heads"),
    *("decoder_layers", "encoder_layers", "feedforward_dim", "encoder_feedforward_dim", "num_points"),
)
RANGES = {
    "dropout": (0.0, 1.0),
    "importance_ratio": (0.0, 1.0),
    "oversample_ratio": (1.0, 100.0),
    **dict.fromkeys(("class_weight", "mask_weight", "dice_weight", "no_object_weight"), (0.0, 1e6)),
    **dict.fromkeys(("semantic_weight", "centre_weight"), (0.0, 1e6)),
    "prior_radius": (1e-3, 1e6),
}


@dataclass(frozen=True)
class ModelConfig:
    """What a model is. Backbone, pixel decoder and query decoder are orthogonal choices.

    Raises ValueError for an unknown choice or an impossible size, naming the field.
    """

    architecture: str = "maskformer"
    # swin-*, stdc1, stdc2, a plain ViT of timm, or any timm `features_only` network with strides 4, 8, 16 and 32
    backbone: str = "resnet50"
    backbone_options: Mapping[str, Any] = field(default_factory=dict, hash=False)  # e.g. drop_path, window, img_size
    in_channels: int = 3
    num_classes: int = 150  # K; "no object" is an extra last logit and is not counted here
    freeze_batch_norm: bool = True  # detectron2's default for ResNets: statistics and affine fixed, convs train

    pixel_decoder: str = "fpn"
    pixel_dim: int = 256  # width of the pixel decoder
    mask_dim: int = 256  # width of mask features and mask embeddings
    encoder_layers: int = 6  # transformer_fpn and deformable
    encoder_feedforward_dim: int = 2048  # of that encoder; Mask2Former's has 1024

    query_decoder: str = "detr"
    num_queries: int = 100
    hidden_dim: int = 256
    num_heads: int = 8
    decoder_layers: int = 6
    feedforward_dim: int = 2048
    dropout: float = 0.1

    # Of the "located" query decoder alone; no published model has these.
    query_stride: int = 8  # of the map whose local maxima become queries: objects this close are told apart
    memory_stride: int = 16  # of the map the queries look at
    mask_prior: str = "none"  # "ellipse": a mask starts as an ellipse round its query's place
    prior_radius: float = 20.0  # of that ellipse at the start, pixels: about the median object's
    semantic_weight: float = 1.0
    centre_weight: float = 1.0

    auxiliary: bool = True  # supervise every decoder layer
    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1
    mask_loss: str = "focal"
    # "input" (MaskFormer): masks upsampled to the input; "points" (Mask2Former): logits and targets sampled at points,
    # in matching too; "mask": targets averaged down to the mask logits.
    loss_resolution: str = "input"
    num_points: int = 12544  # of "points": so many a mask
    oversample_ratio: float = 3.0  # candidates drawn for each point ...
    importance_ratio: float = 0.75  # ... of which this share are the most uncertain ones, the rest fresh

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(str, known))}"
                    f"{_did_you_mean(getattr(self, name), known)}"
                )
        object.__setattr__(self, "backbone_options", _plain(self.backbone_options))
        for name in COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a positive whole number")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name}: {value!r} is not a number from {low:g} to {high:g}")
        if self.hidden_dim % (2 * self.num_heads):
            raise ValueError(f"hidden_dim: {self.hidden_dim} is not a multiple of 2 x num_heads ({self.num_heads})")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """The preset `name` with some fields replaced; ValueError (did you mean …?) for unknown names."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{_did_you_mean(name, PRESETS)}")
        return cls.from_dict({**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The config with these fields, the others at their defaults; ValueError for a field that is not there."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown model setting {name!r}{_did_you_mean(name, known)}")
        if values.get("pixel_decoder") == "transformer_fpn" and "encoder_feedforward_dim" not in values:
            # Bundles from before the field: one width served both transformers.
            values = {**values, "encoder_feedforward_dim": values.get("feedforward_dim", cls.feedforward_dim)}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values; `from_dict` gives the same config back."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked like a new one."""
        return type(self).from_dict({**self.to_dict(), **changes})


def _plain(value: Any) -> Any:
    """A copy in which sequences are lists, as JSON has them: equal before and after a trip through a file."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _did_you_mean(word: object, known: Iterable[object]) -> str:
    close = difflib.get_close_matches(str(word), [str(one) for one in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
