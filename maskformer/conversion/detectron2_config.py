"""A detectron2 checkpoint's names and shapes → ModelConfig: the file says nothing else of its model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from maskformer.config import ModelConfig
from maskformer.conversion.account import Facts
from maskformer.conversion.transformers_config import resnet_backbone, swin_backbone
from maskformer.conversion.transformers_facts import COCO_PANOPTIC, COCO_THINGS
from maskformer.presets import PRESETS

# RGB, 0..255: what every published model of the family was trained with.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_LEVELS, _POINTS = 3, 4  # of deformable attention, never published otherwise
_PREDICTOR = "sem_seg_head.predictor."


class Parts(NamedTuple):
    """Which of the family's parts a checkpoint is made of."""

    backbone: str
    pixel_decoder: str
    query_decoder: str


def parts_of(weights: Mapping[str, Tensor]) -> Parts:
    """ValueError, with the reason, for what is no MaskFormer or Mask2Former or has a part that is not built here."""
    if not any(name.startswith(_PREDICTOR) for name in weights):
        raise ValueError("not a MaskFormer or Mask2Former of detectron2: no tensor is called sem_seg_head.predictor...")
    if "backbone.patch_embed.proj.weight" in weights:
        backbone = "swin"
    elif "backbone.stem.conv1.weight" in weights:
        backbone = "resnet"
    else:
        raise ValueError("its backbone cannot be converted; supported are ResNet-50/101 and Swin")
    if "backbone.stem.conv2.weight" in weights:
        raise ValueError(
            "its backbone is R101c: a stem of three convolutions and dilations 1, 2, 4 in the last stage, which no "
            "backbone here has; convert the plain R50, R101 or a Swin model"
        )
    names = [name.removeprefix("sem_seg_head.").removeprefix("pixel_decoder.") for name in weights]
    if any("sampling_offsets" in name for name in names):
        pixel_decoder = "deformable"
    else:
        pixel_decoder = "transformer_fpn" if any(n.startswith("transformer.encoder.") for n in names) else "fpn"
    masked = any(name.startswith(f"{_PREDICTOR}transformer_cross_attention_layers.") for name in weights)
    return Parts(backbone, pixel_decoder, "masked" if masked else "detr")


def model_config(weights: Mapping[str, Tensor], parts: Parts, num_heads: int | None) -> ModelConfig:
    """The config that has these shapes. num_heads: attention heads, which only deformable attention's shapes tell.

    What no shape tells (losses, dropout) is the published models'. ValueError where a shape cannot be explained.
    """
    masked = parts.query_decoder == "masked"
    try:
        values = {
            **PRESETS["mask2former-resnet50" if masked else "maskformer-resnet50"],
            **(_swin(weights) if parts.backbone == "swin" else _resnet(weights)),
            "pixel_decoder": parts.pixel_decoder,
            "query_decoder": parts.query_decoder,
            **_pixel_decoder(weights, parts),
            **_query_decoder(weights, masked),
        }
    except KeyError as error:
        raise ValueError(f"tensor {error} is missing in the checkpoint") from error
    inferred = values.pop("num_heads", None)
    return ModelConfig.from_dict({**values, "num_heads": num_heads or inferred or 8})


def facts_of(weights: Mapping[str, Tensor], num_classes: int) -> Facts:
    """Mean and spread of the input, and things and stuff where the number of classes is COCO panoptic's."""
    mean, std = (weights.get(name) for name in ("pixel_mean", "pixel_std"))
    things = tuple(i < COCO_THINGS for i in range(COCO_PANOPTIC)) if num_classes == COCO_PANOPTIC else None
    return Facts(
        things=things,
        mean=_MEAN if mean is None else tuple(mean.flatten().tolist()),
        std=_STD if std is None else tuple(std.flatten().tolist()),
        ignore_index=255,
    )


def _swin(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    depths = [_count(weights, rf"backbone\.layers\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    tables = [weights[f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(4)]
    width, channels = weights["backbone.patch_embed.proj.weight"].shape[:2]
    return swin_backbone(
        {
            "embed_dim": width,
            "depths": depths,
            "num_heads": [table.shape[1] for table in tables],
            "window_size": (math.isqrt(len(tables[0])) + 1) // 2,
            "mlp_ratio": weights["backbone.layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width,
            "drop_path_rate": 0.3,
            "num_channels": channels,
        }
    )


def _resnet(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    depths = [_count(weights, rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6)]
    channels = [weights[f"backbone.res{stage}.0.conv1.weight"].shape[0] for stage in range(2, 6)]
    return {
        **resnet_backbone(depths, channels),
        "in_channels": weights["backbone.stem.conv1.weight"].shape[1],
        # detectron2's frozen batch norm counts no batches
        "freeze_batch_norm": not any(name.endswith("num_batches_tracked") for name in weights),
    }


def _pixel_decoder(weights: Mapping[str, Tensor], parts: Parts) -> dict[str, Any]:
    prefix = "sem_seg_head.pixel_decoder."
    if f"{prefix}mask_features.weight" not in weights:
        prefix = "sem_seg_head."
    mask_dim, pixel_dim = weights[f"{prefix}mask_features.weight"].shape[:2]
    found: dict[str, Any] = {"mask_dim": mask_dim, "pixel_dim": pixel_dim}
    if parts.pixel_decoder != "fpn":
        layers = f"{prefix}transformer.encoder.layers."
        found["encoder_layers"] = _count(weights, rf"{re.escape(layers)}(\d+)\.")
        found["encoder_feedforward_dim"] = weights[f"{layers}0.linear1.weight"].shape[0]
    if parts.pixel_decoder == "deformable":
        offsets = weights[f"{prefix}transformer.encoder.layers.0.self_attn.sampling_offsets.weight"]
        found["num_heads"] = len(offsets) // (_LEVELS * _POINTS * 2)
    return found


def _query_decoder(weights: Mapping[str, Tensor], masked: bool) -> dict[str, Any]:
    queries, width = weights[f"{_PREDICTOR}query_embed.weight"].shape
    layers = f"{_PREDICTOR}{'transformer_ffn_layers' if masked else 'transformer.decoder.layers'}."
    return {
        "num_classes": len(weights[f"{_PREDICTOR}class_embed.weight"]) - 1,
        "num_queries": queries,
        "hidden_dim": width,
        "decoder_layers": _count(weights, rf"{re.escape(layers)}(\d+)\."),
        "feedforward_dim": len(weights[f"{layers}0.linear1.weight"]),
    }


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    found = {match[1] for name in names if (match := re.match(pattern, name))}
    if not found:
        raise ValueError(f"no tensor is called {pattern}")
    return len(found)
