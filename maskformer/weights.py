"""Pretrained backbone weights into a model: found by name, the stem inflated to the channels, and an account of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from maskformer.eomt import EncoderDecoder, Trunk, whole_vit

# What Swin's files hold though it follows from the shape.
DERIVED = ("relative_position_index", "attn_mask")
QUERY_NOISE = 0.01  # of the table's standard deviation, on copies of queries


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
    """Load ImageNet weights into the backbone inside `model` (MaskFormer, U-Net or a backbone alone).

    Names are timm's; for Swin also those of its own repository, for STDC its own. `rgb` says which input channels are
    red, green and blue (default: the first three). The stem is inflated so that those channels with every other at 0
    give the features of the original network: the other channels get the mean over red, green and blue; a one-channel
    stem gets their sum (a grey picture then counts as R=G=B). timm's own inflation rescales, and changes the features.
    A ViT's patches and position embeddings are resampled to its patch and image size. ValueError where another shape
    differs or nothing fits.
    """
    network = backbone_network(model)
    own = network.state_dict()
    stem = next((name for name, tensor in own.items() if tensor.ndim == 4), None)
    # timm flattens nested names in some feature extractors (`stages.0` → `stages_0`).
    by_flat_name = {name.replace(".", "_"): name for name in own}
    shift = _has_timm_merging(state_dict)
    new: dict[str, Tensor] = {}
    inflated, unexpected = [], []
    for source_name, tensor in state_dict.items():
        if source_name.endswith(DERIVED):
            continue
        wanted = _earlier_merging(source_name) if shift and _has_own_merging(own) else source_name
        name = by_flat_name.get(wanted.replace(".", "_"))
        if name is None:
            unexpected.append(source_name)
            continue
        tensor = _resampled(network, name, tensor, own[name])
        if name == stem and _is_inflatable(own[name], tensor):
            if own[name].shape != tensor.shape:
                inflated.append(name)
            tensor = inflate_stem(tensor, own[name].shape[1], rgb)
        if own[name].shape != tensor.shape:
            raise ValueError(_mismatch(source_name, tensor, own[name]))
        new[name] = tensor
    if not new:
        raise ValueError("backbone weights: no tensor of the file belongs to this network")
    if stem in inflated:
        _keep_standardised(network, stem, new, rgb)
    network.load_state_dict(new, strict=False)
    return WeightAccount(
        loaded=tuple(name for name in new if name not in inflated),
        inflated=tuple(inflated),
        missing=tuple(name for name in own if name not in new),
        unexpected=tuple(unexpected),
    )


def backbone_network(model: nn.Module) -> nn.Module:
    """The network that pretrained weights are for, inside a MaskFormer, a U-Net baseline or a backbone.

    EoMT keeps its ViT in two parts, of which this is a view that shares their tensors.
    """
    backbone, decoder = getattr(model, "backbone", model), getattr(model, "query_decoder", None)
    if isinstance(backbone, Trunk) and isinstance(decoder, EncoderDecoder):
        return whole_vit(backbone, decoder)
    return getattr(backbone, "network", backbone)


def inflate_stem(weight: Tensor, in_channels: int, rgb: Sequence[int] | None = None) -> Tensor:
    """First convolution (out, 3, kh, kw) → (out, in_channels, kh, kw); see `load_backbone_weights`.

    ValueError where `rgb` are not three different channels.
    """
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


def _is_inflatable(own: Tensor, given: Tensor) -> bool:
    same = given.ndim == 4 and own.shape[0] == given.shape[0] and own.shape[2:] == given.shape[2:]
    return same and given.shape[1] == 3


def _keep_standardised(network: nn.Module, stem: str, new: dict[str, Tensor], rgb: Sequence[int] | None) -> None:
    """Weight-standardised stems (ResNet-V2, NFNet) divide by the deviation over all inputs, the new ones too.

    The rows of the new channels get mean and variance of the others, so that the others come out as before; a scale
    by fan-in is taken back through the stem's gain.
    """
    place = stem.rpartition(".")[0]
    kind, channels = type(network.get_submodule(place)).__name__, new[stem].shape[1]
    if "StdConv" not in kind or channels < 4:
        return
    known = list(rgb or range(3))
    extra = [channel for channel in range(channels) if channel not in known]
    weight = new[stem].clone()
    deviation, mean = torch.std_mean(weight[:, known], dim=(1, 2, 3), keepdim=True, correction=0)
    own_deviation, own_mean = torch.std_mean(weight[:, extra], dim=(1, 2, 3), keepdim=True, correction=0)
    weight[:, extra] = (weight[:, extra] - own_mean) * (deviation / own_deviation.clamp(min=1e-12)) + mean
    new[stem] = weight
    if f"{place}.gain" in new:
        new[f"{place}.gain"] = new[f"{place}.gain"] * (channels / 3) ** 0.5


def _resampled(network: Any, name: str, given: Tensor, own: Tensor) -> Tensor:
    """A ViT's patch projection and position embedding at the network's own patch and grid."""
    if name == "patch_embed.proj.weight" and given.ndim == 4 and given.shape[2:] != own.shape[2:]:
        return resample_patch_embed(given, list(own.shape[2:]))
    if name == "pos_embed" and given.ndim == 3 and given.shape[1] != own.shape[1]:
        prefix = 0 if getattr(network, "no_embed_class", False) else network.num_prefix_tokens
        return resample_abs_pos_embed(given, new_size=network.patch_embed.grid_size, num_prefix_tokens=prefix)
    return given


# timm calls the merging before a stage that stage's own: `layers.1.downsample` there is `layers.0.downsample` as
# published. Only a file of timm's has one in the last stage, only a network as published one in the first.
def _has_timm_merging(names: Iterable[str]) -> bool:
    return any(name.startswith("layers.3.downsample.") for name in names)


def _has_own_merging(names: Iterable[str]) -> bool:
    return any(name.startswith("layers.0.downsample.") for name in names)


def _earlier_merging(name: str) -> str:
    return re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)


def _mismatch(name: str, given: Tensor, own: Tensor) -> str:
    if name.endswith("relative_position_bias_table") and given.shape[0] != own.shape[0]:
        theirs, ours = (int((len(table) ** 0.5 + 1) / 2) for table in (given, own))
        return f"backbone weights: {name} is for windows of {theirs}, expected {ours} (backbone_options: window)"
    return f"backbone weights: {name} has shape {tuple(given.shape)}, expected {tuple(own.shape)}"


def repeat_queries(table: Tensor, count: int) -> Tensor:
    """A table of learned queries (Q, d) with `count` rows: the first ones, or the table again and again.

    Copies carry noise of a hundredth of the table's spread: equal rows would receive the same gradient for ever.
    """
    if count <= len(table):
        return table[:count]
    rows = table.repeat(-(-count // len(table)), 1)[:count]
    noise = torch.randn(count - len(table), table.shape[1], generator=torch.Generator().manual_seed(0))
    rows[len(table) :] += QUERY_NOISE * table.std() * noise
    return rows
