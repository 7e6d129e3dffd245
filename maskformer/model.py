"""MaskFormer = backbone → pixel decoder → query decoder, and the factory for every architecture of a config."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maskformer.backbones import Backbone
from maskformer.config import ModelConfig
from maskformer.pixel_decoders import build_pixel_decoder
from maskformer.prediction import DensePrediction, Prediction
from maskformer.query_decoders import build_query_decoder

__all__ = ["DensePrediction", "MaskFormer", "Prediction", "build_model", "param_groups"]


class MaskFormer(nn.Module):
    """Mask classification (Cheng et al. 2021, arXiv 2107.06278)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, config.in_channels, config.freeze_batch_norm)
        self.pixel_decoder = build_pixel_decoder(self.backbone.channels, config)
        self.query_decoder = build_query_decoder(self.pixel_decoder.memory_channels, config)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> MaskFormer:
        """A freshly initialised model of a preset, e.g. `from_preset("maskformer-resnet50", num_classes=5)`."""
        config = ModelConfig.from_preset(name, **overrides)
        if config.architecture != "maskformer":
            raise ValueError(f"preset {name!r} is a {config.architecture}; build_model makes those")
        return cls(config)

    def forward(self, x: Tensor) -> Prediction:
        """x (B, C, H, W) normalised, H and W multiples of 32; never pads, resizes or normalises.

        In training mode the prediction carries the earlier layers as `auxiliary`.
        """
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise ValueError(f"image of {tuple(x.shape[-2:])} pixels: height and width must be multiples of 32")
        return self.query_decoder(self.pixel_decoder(self.backbone(x)))


def build_model(config: ModelConfig) -> nn.Module:
    """The freshly initialised model of a config: a MaskFormer, or the per-pixel U-Net baseline."""
    if config.architecture == "unet":
        from maskformer.baseline import UNet  # imports segmentation-models-pytorch

        return UNet(config)
    return MaskFormer(config)


def param_groups(
    model: nn.Module, learning_rate: float, backbone_multiplier: float = 0.1, weight_decay: float = 1e-4
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: the backbone's rate × `backbone_multiplier`; no decay on norms and embeddings.

    Frozen parameters are left out. Source: MaskFormer's training script (there one group per parameter).
    """
    backbone = {id(parameter) for parameter in model.backbone.parameters()}  # type: ignore[union-attr]
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module in model.modules():
        undecayed = isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                plain = undecayed or "position" in name or "pos_embed" in name
                groups.setdefault((id(parameter) in backbone, plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * (backbone_multiplier if inside else 1.0),
            "weight_decay": 0.0 if plain else weight_decay,
        }
        for (inside, plain), parameters in groups.items()
    ]
