"""Training the backbone through low-rank adapters (LoRA, Hu et al. 2021; by peft), merged into its weights at the end.

Each linear layer and plain convolution of the backbone gets a product of two thin matrices beside it, and only these
learn; decoders and heads learn in full. After merging the model is what it was before: same names, same shapes.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from adapters.errors import InputError

log = logging.getLogger(__name__)
NAME = "low_rank"
SCALE = 2.0  # of the product: its start is zero, and it has to get somewhere in the steps the rest has


def attach(model: nn.Module, rank: int, seed: int = 0) -> int:
    """Put adapters of `rank` beside the layers of `model.backbone`; how many. Everything else in it is frozen.

    InputError where peft is not installed or the backbone has no layer to adapt.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("train.low_rank: needs peft: pip install 'maskbridge[low-rank]'") from None
    backbone: nn.Module = model.backbone  # type: ignore[assignment]
    # A convolution of a subclass pads in a way of its own, which the adapter beside it would not follow.
    names = [
        name
        for name, part in backbone.named_modules()
        if type(part) is nn.Linear or (type(part) is nn.Conv2d and part.groups == 1)
    ]
    if not names:
        raise InputError("train.low_rank: this backbone has no linear layer or plain convolution")
    config = LoraConfig(r=rank, lora_alpha=round(SCALE * rank), target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, backbone, NAME)
    learn = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    log.info("low rank: %d layers at rank %d, %d of the backbone's weights learn", len(names), rank, learn)
    return len(names)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the adapters' products to the weights beside them and take the adapters away."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return
    backbone: nn.Module = model.backbone  # type: ignore[assignment]
    for name, part in list(backbone.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            above, _, own = name.rpartition(".")
            setattr(backbone.get_submodule(above), own, part.get_base_layer())
    for attribute in ("peft_config", "active_adapter"):
        vars(backbone).pop(attribute, None)
