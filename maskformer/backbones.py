"""Backbones: what a config's `backbone` names, as four maps at strides 4, 8, 16 and 32 and any number of channels."""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskformer.config import ModelConfig
from maskformer.swin import Swin
from maskformer.vit_pyramid import ViTPyramid, is_plain_vit
from maskformer.weights import WeightAccount, inflate_stem, load_backbone_weights

__all__ = ["Backbone", "WeightAccount", "build_backbone", "inflate_stem", "load_backbone_weights"]

STRIDES = (4, 8, 16, 32)


def build_backbone(config: ModelConfig) -> nn.Module:
    """The freshly initialised backbone of a config: image (B, C, H, W) → maps, finest first; `channels`: their widths.

    The network that pretrained weights are for is its `network`. With the pixel decoder "tokens" the backbone is the
    trunk of a ViT and has one map. ValueError for an unknown name or option, or a network without one of the strides.
    """
    if config.pixel_decoder == "tokens":
        from maskformer.eomt import Trunk

        return Trunk(config)
    name, options = config.backbone, dict(config.backbone_options)
    if name.startswith("swin-"):
        network: nn.Module = Swin(name, config.in_channels, **options)
    elif name in ("stdc1", "stdc2"):
        from maskformer.stdc import STDC

        network = STDC(name, config.in_channels, **options)
    elif is_plain_vit(name):
        return ViTPyramid(name, config.in_channels, **_timm_options(options))  # it has no batch norm
    else:
        network = create_features(name, config.in_channels, **_timm_options(options))
    return Backbone(network, config.freeze_batch_norm)


class Backbone(nn.Module):
    """Image (B, C, H, W) → features at strides 4, 8, 16, 32, finest first. `channels` has their widths.

    With `freeze_batch_norm`, batch norms keep their statistics and affine parameters through training (what
    detectron2 calls FrozenBN), everything else trains.
    """

    def __init__(self, network: nn.Module, freeze_batch_norm: bool = False) -> None:
        super().__init__()
        self.network = network
        info = getattr(network, "feature_info", None)
        self.channels: tuple[int, ...] = tuple(cast(Any, network).channels if info is None else info.channels())
        # Some of timm's networks (Swin, MetaFormer-like ones) hand out (B, H, W, C).
        self.channels_behind = str(getattr(getattr(network, "output_fmt", None), "value", "")) == "NHWC"
        self.freeze_batch_norm = freeze_batch_norm
        if freeze_batch_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.network(x)
        return [one.permute(0, 3, 1, 2) for one in maps] if self.channels_behind else maps

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.freeze_batch_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them. ValueError where the network cannot."""
        if not hasattr(self.network, "set_grad_checkpointing"):
            raise ValueError(f"gradient checkpointing: {type(self.network).__name__} has none")
        cast(Any, self.network).set_grad_checkpointing(enable)

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]


def takes_any_size(network: nn.Module) -> bool:
    """Whether what a network computes is the same program at every size; windows and partitions belong to one."""
    names = ("window", "window_size", "partition_size")
    return not any(getattr(module, name, None) for module in network.modules() for name in names)


def create_features(name: str, in_channels: int = 3, **options: Any) -> nn.Module:
    """timm's network `name` as a feature pyramid of exactly the strides 4-32, without pretrained weights.

    `options` are timm's for the network. ValueError where timm has no such network or option, or it lacks a stride.
    """
    if not timm.is_model(name):
        raise ValueError(f"backbone: timm has no model {name!r}")
    make = _maker(name, in_channels, options)
    with torch.device("meta"):
        strides = _feature_info(make()).reduction()
    missing = [stride for stride in STRIDES if stride not in strides]
    if missing:
        raise ValueError(f"backbone: {name} has features at strides {strides}, but not at {missing}")
    # The last feature of a stride is the deepest one that still has that resolution.
    wanted = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
    return make() if wanted == list(range(len(strides))) else make(out_indices=tuple(wanted))


def _maker(name: str, in_channels: int, options: dict[str, Any]) -> Any:
    def make(**more: Any) -> nn.Module:
        try:
            return timm.create_model(
                name, features_only=True, pretrained=False, in_chans=in_channels, **options, **more
            )
        except TypeError as error:
            raise ValueError(f"backbone_options: {name} does not take {options}: {error}") from None

    return make


def _timm_options(options: dict[str, Any]) -> dict[str, Any]:
    """`drop_path` is the family's word for what timm calls `drop_path_rate`."""
    return {"drop_path_rate" if name == "drop_path" else name: value for name, value in options.items()}


def _feature_info(network: nn.Module) -> timm.models.FeatureInfo:
    return cast(timm.models.FeatureInfo, network.feature_info)
