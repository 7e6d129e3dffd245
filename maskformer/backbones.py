"""Backbones: any timm `features_only` network with strides 4, 8, 16 and 32, and any number of input channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import timm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskformer.config import ModelConfig

if TYPE_CHECKING:
    from maskformer.eomt import Trunk

STRIDES = (4, 8, 16, 32)


def build_backbone(config: ModelConfig) -> Backbone | Trunk:
    """The backbone that `config.backbone` names."""
    if config.pixel_decoder == "tokens":
        from maskformer.eomt import Trunk

        return Trunk(config)
    return Backbone(config.backbone, config.in_channels, config.freeze_batch_norm)


class Backbone(nn.Module):
    """Image (B, C, H, W) → features at strides 4, 8, 16, 32, finest first. `channels` has their widths.

    With `freeze_batch_norm`, batch norms keep their statistics and affine parameters through training (what
    detectron2 calls FrozenBN), everything else trains. ValueError where timm has no such network or it lacks a stride.
    """

    def __init__(self, name: str, in_channels: int = 3, freeze_batch_norm: bool = False) -> None:
        super().__init__()
        self.network = create_features(name, in_channels)
        self.channels: tuple[int, ...] = tuple(_feature_info(self.network).channels())
        self.freeze_batch_norm = freeze_batch_norm
        if freeze_batch_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.network(x)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.freeze_batch_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]


def create_features(name: str, in_channels: int) -> nn.Module:
    """timm's network `name` as a feature pyramid of exactly the strides 4-32, without pretrained weights."""
    if not timm.is_model(name):
        raise ValueError(f"backbone: timm has no model {name!r}")
    probe = timm.create_model(name, features_only=True, pretrained=False, in_chans=in_channels)
    strides = _feature_info(probe).reduction()
    missing = [stride for stride in STRIDES if stride not in strides]
    if missing:
        raise ValueError(f"backbone: {name} has features at strides {strides}, but not at {missing}")
    # The last feature of a stride is the deepest one that still has that resolution.
    wanted = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
    if wanted == list(range(len(strides))):
        return probe
    return timm.create_model(
        name, features_only=True, pretrained=False, in_chans=in_channels, out_indices=tuple(wanted)
    )


def _feature_info(network: nn.Module) -> timm.models.FeatureInfo:
    return cast(timm.models.FeatureInfo, network.feature_info)


@dataclass(frozen=True)
class WeightAccount:
    """What became of each tensor: names in the model for loaded, inflated and missing; in the file for unexpected."""

    loaded: tuple[str, ...] = field(default=())
    inflated: tuple[str, ...] = field(default=())  # loaded into a stem with another number of channels
    missing: tuple[str, ...] = field(default=())  # in the model only: stays as initialised
    unexpected: tuple[str, ...] = field(default=())  # in the file only: the classifier head, usually


def load_backbone_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], rgb: Sequence[int] | None = None
) -> WeightAccount:
    """Load timm-named ImageNet weights into the timm network inside `model` (MaskFormer, U-Net or Backbone).

    `rgb` says which input channels are red, green and blue (default: the first three). The stem is inflated
    so that those channels with every other at 0 give the features of the original network: the other channels get the
    mean over red, green and blue; a one-channel stem gets their sum (a grey picture then counts as R=G=B).
    timm's own inflation rescales, and changes the features. ValueError where another shape differs or nothing fits.
    """
    network = timm_network(model)
    own = network.state_dict()
    # timm flattens nested names in some feature extractors (`stages.0` → `stages_0`).
    by_flat_name = {name.replace(".", "_"): name for name in own}
    new: dict[str, Tensor] = {}
    inflated, unexpected = [], []
    for source_name, tensor in state_dict.items():
        name = by_flat_name.get(source_name.replace(".", "_"))
        if name is None:
            unexpected.append(source_name)
            continue
        if own[name].shape != tensor.shape:
            if not _is_stem(own[name], tensor):
                raise ValueError(
                    f"backbone weights: {source_name} has shape {tuple(tensor.shape)}, "
                    f"expected {tuple(own[name].shape)}"
                )
            tensor = inflate_stem(tensor, own[name].shape[1], rgb)
            inflated.append(name)
        elif tensor.ndim == 4 and tensor.shape[1] == 3 and rgb not in (None, (0, 1, 2)) and "stem" in name:
            tensor = inflate_stem(tensor, 3, rgb)
        new[name] = tensor
    if not new:
        raise ValueError("backbone weights: no tensor of the file belongs to this network")
    network.load_state_dict(new, strict=False)
    return WeightAccount(
        loaded=tuple(name for name in new if name not in inflated),
        inflated=tuple(inflated),
        missing=tuple(name for name in own if name not in new),
        unexpected=tuple(unexpected),
    )


def timm_network(model: nn.Module) -> nn.Module:
    """The timm feature network inside a MaskFormer, a U-Net baseline or a Backbone."""
    backbone = getattr(model, "backbone", model)
    return getattr(backbone, "network", backbone)


def inflate_stem(weight: Tensor, in_channels: int, rgb: Sequence[int] | None = None) -> Tensor:
    """First convolution (out, 3, kh, kw) → (out, in_channels, kh, kw); see `load_backbone_weights`."""
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    places = tuple(rgb) if rgb is not None else tuple(range(min(3, in_channels)))
    mean = weight.mean(1, keepdim=True)
    if len(places) < 3:  # two channels and no colours: each counts half of a grey picture
        return (weight.sum(1, keepdim=True) / in_channels).repeat(1, in_channels, 1, 1)
    if len(set(places)) != 3 or not all(0 <= place < in_channels for place in places):
        raise ValueError(f"rgb: {places} are not three different channels of {in_channels}")
    inflated = mean.repeat(1, in_channels, 1, 1)
    inflated[:, list(places)] = weight
    return inflated


def _is_stem(own: Tensor, given: Tensor) -> bool:
    same = own.ndim == given.ndim == 4 and own.shape[0] == given.shape[0] and own.shape[2:] == given.shape[2:]
    return same and given.shape[1] == 3 and own.shape[1] != 3
