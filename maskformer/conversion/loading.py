"""A renamed checkpoint becomes a model. Every tensor on either side is accounted for, or it is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskformer.config import ModelConfig
from maskformer.conversion.account import Conversion, Facts, name_some
from maskformer.conversion.fit import Changes, fit
from maskformer.conversion.renaming import Renaming, Table, assemble, rename
from maskformer.conversion.weight_files import check_finite
from maskformer.model import MaskFormer

# Tensors a published checkpoint may lack, by the end of our name, and why that changes nothing.
_DISPENSABLE = {"num_batches_tracked": "counts training steps; frozen batch norms are published without it"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was understood: the config of its model, its tensors, and how they are called.

    source: what it is, in words for the account. left_over: a table of tensors nobody needs, and why.
    """

    source: str
    config: ModelConfig
    weights: Mapping[str, Tensor]
    table: Table
    left_over: Table
    facts: Facts = field(default_factory=Facts)


def load(checkpoint: Checkpoint, changes: Changes) -> MaskFormer:
    """The checkpoint's model, changed by `changes`; float32, eval mode. Its `conversion` is the account.

    ValueError lists tensors the table does not know, tensors the model has and the checkpoint has not, tensors of
    another shape or of other things than numbers, and those that are not finite. All of it is found on a model without
    memory: what the checkpoint's config claims is never allocated before its tensors bear it out.
    """
    weights, source = checkpoint.weights, checkpoint.source
    renaming = rename(weights, checkpoint.table, checkpoint.left_over)
    model = _without_memory(checkpoint)
    own = model.state_dict()
    _check_names(source, renaming, own)
    given = {name: _like(assemble(weights, parts), own[name]) for name, parts in renaming.sources.items()}
    _check_shapes(source, given, own)
    check_finite(given, source)
    adapted: dict[str, str] = {}
    config = changes.apply(checkpoint.config)
    if changes != Changes():
        model = MaskFormer(config)
        own = model.state_dict()
        given, adapted = fit(own, given, changes, checkpoint.facts.classes)
        _check_shapes(source, given, own)
    model = _filled(model, given, config)
    model.conversion = Conversion(
        source=source,
        loaded=tuple(given),
        renamed=_renamed(renaming),
        adapted=adapted,
        fresh={name: _dispensable(name) for name in own if name not in given},
        left_over=renaming.left_over,
        facts=changes.facts(checkpoint.facts),
    )
    return model.float().eval()


def _without_memory(checkpoint: Checkpoint) -> MaskFormer:
    """The config's model on the meta device; ValueError where no such model can be built."""
    config, tensors = checkpoint.config, len(checkpoint.weights)
    options = config.backbone_options
    depths = [*_numbers(options.get("depths")), *_numbers(options.get("layers")), *_numbers(options.get("depth"))]
    for name, layers in (
        ("layers of the query decoder", config.decoder_layers),
        ("layers of the pixel decoder", config.encoder_layers),
        ("layers of the backbone", sum(depths)),
    ):
        if layers > max(tensors, 100):  # building a million takes hours even without memory
            raise ValueError(f"{checkpoint.source}: {layers} {name} cannot be, with {tensors} tensors")
    try:
        with torch.device("meta"):
            return MaskFormer(config)
    except Exception as error:  # settings that fit no network fail wherever they happen to be used
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{checkpoint.source}: no such model can be built: {reason}") from error


def _numbers(value: Any) -> list[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return [number for number in values if isinstance(number, int)]


def _filled(model: MaskFormer, given: Mapping[str, Tensor], config: ModelConfig) -> MaskFormer:
    """The model with these tensors. One on the meta device takes them over, unless it has anything beside them."""
    if next(model.parameters()).is_meta:
        own = model.state_dict()
        counters = {name: torch.zeros_like(own[name], device="cpu") for name in own if name not in given}
        model.load_state_dict({**given, **counters}, assign=True)
        if not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            return model
        model = MaskFormer(config)  # a buffer that no file has can only come from building it
    model.load_state_dict(given, strict=False)
    return model


def _like(tensor: Tensor, own: Tensor) -> Tensor:
    """float32, contiguous; axes of length 1 as our tensor has them (a table of positions may lack the batch axis).

    A tensor of another shape is left alone: no memory is taken for what will be refused.
    """
    if math.prod(tensor.shape) != math.prod(own.shape):
        return tensor
    tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    if [n for n in tensor.shape if n != 1] == [n for n in own.shape if n != 1]:
        return tensor.reshape(own.shape)
    return tensor


def _dispensable(name: str) -> str:
    return next((reason for end, reason in _DISPENSABLE.items() if name.endswith(end)), "")


def _renamed(renaming: Renaming) -> dict[str, str]:
    return {ours: ", ".join(parts.values()) for ours, parts in renaming.sources.items() if ours not in parts.values()}


def _check_names(source: str, renaming: Renaming, own: Mapping[str, Tensor]) -> None:
    """ValueError where a tensor has no place on the other side."""
    strangers = [name for ours, parts in renaming.sources.items() if ours not in own for name in parts.values()]
    unexpected = [*renaming.unexpected, *strangers]
    missing = [name for name in own if name not in renaming.sources and not _dispensable(name)]
    missing += renaming.incomplete()
    faults = []
    if unexpected:
        faults.append(f"{len(unexpected)} tensors of the checkpoint have no place here: {name_some(unexpected)}")
    if missing:
        faults.append(f"{len(missing)} tensors of the model are missing in the checkpoint: {name_some(missing)}")
    if faults:
        raise ValueError(f"{source}: {'; '.join(faults)}")


def _check_shapes(source: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"{source}: {len(wrong)} tensors of another shape: {name_some(wrong)}")
    wrong = [
        f"{name} is {tensor.dtype}, expected {own[name].dtype}"
        for name, tensor in given.items()
        if tensor.is_floating_point() != own[name].is_floating_point()
    ]
    if wrong:  # quantised weights without their scale, for one
        raise ValueError(f"{source}: {len(wrong)} tensors of another kind of number: {name_some(wrong)}")
