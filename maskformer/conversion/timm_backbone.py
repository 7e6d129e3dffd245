"""timm's pretrained backbones into a fresh model, with the account of a conversion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.conversion.account import Conversion, name_some
from maskformer.conversion.weight_files import check_finite, load_weights
from maskformer.model import MaskFormer
from maskformer.weights import DERIVED, backbone_network, load_backbone_weights

# Names of what a classifier has and no pyramid needs, in networks that are not timm's own here (Swin, STDC).
_CLASSIFIER = ("head.", "norm.", "fc.", "linear.", "bn.", "conv_last.", "classifier.")
_BESIDE = "the classifier's, or behind the last map"
_FRESH = "no part of a pretrained backbone"
_OUTPUT_NORM = re.compile(r"norm[0-3]\.")  # of Swin's maps, which no classifier has


def load_backbone(
    name_or_weights: str | Path | Mapping[str, Tensor], config: ModelConfig, rgb: Sequence[int] | None
) -> MaskFormer:
    """See `convert.from_timm`."""
    weights, source = _weights(name_or_weights)
    check_finite(weights, source)
    model = MaskFormer(config)
    account = load_backbone_weights(model, weights, rgb)
    here = _names_in(model)
    whole = _names_of_timm(config)
    strangers = [name for name in account.unexpected if name not in whole and not name.startswith(_CLASSIFIER)]
    lost = [name for name in account.missing if not _OUTPUT_NORM.match(name) and "num_batches_tracked" not in name]
    if strangers or lost:
        faults = [f"{len(strangers)} tensors have no place here: {name_some(strangers)}"] if strangers else []
        faults += [f"{len(lost)} tensors of the backbone are missing: {name_some(lost)}"] if lost else []
        raise ValueError(f"{source}: not the weights of {config.backbone}: {'; '.join(faults)}")
    loaded = tuple(here[name] for name in (*account.loaded, *account.inflated))
    model.conversion = Conversion(
        source=f"{source} (timm, {config.backbone})",
        loaded=loaded,
        adapted={here[name]: f"stem inflated to {config.in_channels} channels" for name in account.inflated},
        fresh={name: _FRESH for name in model.state_dict() if name not in set(loaded)},
        left_over={
            **dict.fromkeys(account.unexpected, _BESIDE),
            **{name: "follows from the shape" for name in weights if name.endswith(DERIVED)},
        },
    )
    return model.float().eval()


def _weights(name_or_weights: str | Path | Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    if isinstance(name_or_weights, Mapping):
        return name_or_weights, "weights"
    path = Path(name_or_weights)
    if path.is_file():
        return load_weights(path), str(path)
    name = str(name_or_weights)
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"{name}: neither a file nor a model of timm")
    try:
        return timm.create_model(name, pretrained=True).state_dict(), name
    except Exception as error:  # the hub fails in many ways: no network, no such weights, a half file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name}: timm's weights cannot be had: {reason}; put them into timm's cache (HF_HOME), or pass their path"
        ) from error


def _names_of_timm(config: ModelConfig) -> set[str]:
    """What timm's whole network is made of; empty for networks that are our own."""
    if not timm.is_model(config.backbone):
        return set()
    with torch.device("meta"):
        return set(timm.create_model(config.backbone, pretrained=False).state_dict())


def _names_in(model: nn.Module) -> dict[str, str]:
    """Name in the network that pretrained weights are for → name in the model, whose tensor it is."""
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    return {name: names[id(tensor)] for name, tensor in backbone_network(model).state_dict(keep_vars=True).items()}
