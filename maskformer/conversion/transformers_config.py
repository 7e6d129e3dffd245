"""transformers' config.json → ModelConfig. Settings a file leaves out have the defaults of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskformer.config import ModelConfig
from maskformer.swin import SIZES

SUPPORTED = ("maskformer", "mask2former", "eomt")

_SWIN = {
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "drop_path_rate": 0.1,
    "num_channels": 3,
}
_RESNET = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "num_channels": 3,
}
_DETR = {
    "d_model": 256,
    "decoder_layers": 6,
    "decoder_ffn_dim": 2048,
    "decoder_attention_heads": 8,
    "dropout": 0.1,
    "num_queries": 100,
}
# What a folder without a backbone_config means.
_MASKFORMER_BACKBONE = {
    "model_type": "swin",
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
    "drop_path_rate": 0.3,
}
_MASK2FORMER_BACKBONE = {"model_type": "swin", "depths": [2, 2, 18, 2], "drop_path_rate": 0.3}

# Settings that change what is computed and that only their default is built for here.
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "swin": {
        "hidden_act": ("gelu",),
        "patch_size": (4, [4, 4]),
        "qkv_bias": (True,),
        "use_absolute_embeddings": (False,),
        "layer_norm_eps": (1e-5,),
    },
    "resnet": {"hidden_act": ("relu",), "downsample_in_bottleneck": (False,), "downsample_in_first_stage": (False,)},
    "detr": {"activation_function": ("relu",), "position_embedding_type": ("sine",)},
    "mask2former": {
        "activation_function": ("relu",),
        "pre_norm": (False,),
        "common_stride": (4,),
        "feature_strides": ([4, 8, 16, 32], (4, 8, 16, 32)),
    },
    "eomt": {"hidden_act": ("gelu",), "use_swiglu_ffn": (False,), "layer_norm_eps": (1e-6,)},
}


def model_type(raw: Mapping[str, Any]) -> str:
    """Which of the supported models this is; ValueError names them."""
    found = raw.get("model_type")
    if found not in SUPPORTED:
        raise ValueError(f"model type {found!r} cannot be converted; supported are {', '.join(SUPPORTED)}")
    return str(found)


def model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The config of the same model here; ValueError for what no model here computes."""
    build = {"maskformer": _maskformer, "mask2former": _mask2former, "eomt": _eomt}[model_type(raw)]
    try:
        return ModelConfig.from_dict({"num_classes": _num_classes(raw), **build(raw)})
    except (KeyError, TypeError) as error:
        raise ValueError(f"config.json: {type(error).__name__}: {error}") from error


def _maskformer(raw: Mapping[str, Any]) -> dict[str, Any]:
    detr = {**_DETR, **(raw.get("decoder_config") or {})}
    if detr.get("model_type", "detr") != "detr":
        raise ValueError(f"decoder {detr['model_type']!r} cannot be converted; supported is detr")
    _refuse_others("detr", detr)
    return {
        **_backbone(raw.get("backbone_config") or _MASKFORMER_BACKBONE),
        "pixel_dim": raw.get("fpn_feature_size", 256),
        "mask_dim": raw.get("mask_feature_size", 256),
        "hidden_dim": detr["d_model"],
        "num_heads": detr["decoder_attention_heads"],
        "decoder_layers": detr["decoder_layers"],
        "feedforward_dim": detr["decoder_ffn_dim"],
        "dropout": detr["dropout"],
        "num_queries": detr["num_queries"],
        "class_weight": raw.get("cross_entropy_weight", 1.0),
        "mask_weight": raw.get("mask_weight", 20.0),
        "dice_weight": raw.get("dice_weight", 1.0),
        "no_object_weight": raw.get("no_object_weight", 0.1),
    }


def _mask2former(raw: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_others("mask2former", raw)
    return {
        **_backbone(raw.get("backbone_config") or _MASK2FORMER_BACKBONE),
        **_point_losses(raw),
        "pixel_decoder": "deformable",
        "query_decoder": "masked",
        "pixel_dim": raw.get("feature_size", 256),
        "mask_dim": raw.get("mask_feature_size", 256),
        "hidden_dim": raw.get("hidden_dim", 256),
        "num_heads": raw.get("num_attention_heads", 8),
        "encoder_layers": raw.get("encoder_layers", 6),
        "encoder_feedforward_dim": raw.get("encoder_feedforward_dim", 1024),
        # transformers counts the prediction from the queries alone as a layer
        "decoder_layers": raw.get("decoder_layers", 10) - 1,
        "feedforward_dim": raw.get("dim_feedforward", 2048),
        "dropout": raw.get("dropout", 0.0),
        "num_queries": raw.get("num_queries", 100),
    }


def _eomt(raw: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_others("eomt", raw)
    width = raw.get("hidden_size", 1024)
    patch = _square(raw.get("patch_size", 16), "patch_size")
    if (doublings := raw.get("num_upscale_blocks", 2)) != patch.bit_length() - 3:
        raise ValueError(f"num_upscale_blocks: {doublings} of patches of {patch} do not end at stride 4")
    return {
        "backbone": {384: "vit_small_patch14_reg4_dinov2", 768: "vit_base_patch14_reg4_dinov2"}.get(
            width, "vit_large_patch14_reg4_dinov2"
        ),
        "backbone_options": {
            "img_size": _square(raw.get("image_size", 640), "image_size"),
            "patch_size": patch,
            "embed_dim": width,
            "depth": raw.get("num_hidden_layers", 24),
            "num_heads": raw.get("num_attention_heads", 16),
            "mlp_ratio": raw.get("mlp_ratio", 4),
            "reg_tokens": raw.get("num_register_tokens", 4),
            "drop_path_rate": raw.get("drop_path_rate", 0.0),
        },
        "in_channels": raw.get("num_channels", 3),
        "freeze_batch_norm": False,
        **_point_losses(raw),
        "pixel_decoder": "tokens",
        "query_decoder": "encoder",
        "hidden_dim": width,
        "mask_dim": width,
        "num_heads": raw.get("num_attention_heads", 16),
        "decoder_layers": raw.get("num_blocks", 4),
        "dropout": 0.0,
        "num_queries": raw.get("num_queries", 200),
    }


def _point_losses(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "class_weight": raw.get("class_weight", 2.0),
        "mask_weight": raw.get("mask_weight", 5.0),
        "dice_weight": raw.get("dice_weight", 5.0),
        "no_object_weight": raw.get("no_object_weight", 0.1),
        "mask_loss": "bce",
        "loss_resolution": "points",
        "num_points": raw.get("train_num_points", 12544),
        "oversample_ratio": raw.get("oversample_ratio", 3.0),
        "importance_ratio": raw.get("importance_sample_ratio", 0.75),
    }


def _backbone(raw: Mapping[str, Any]) -> dict[str, Any]:
    kind = raw.get("model_type")
    if kind in ("swin", "maskformer-swin"):
        _refuse_others("swin", raw)
        return swin_backbone({**_SWIN, **raw})
    if kind == "resnet":
        _refuse_others("resnet", raw)
        return _resnet({**_RESNET, **raw})
    raise ValueError(f"backbone {kind!r} cannot be converted; supported are swin and resnet")


def swin_backbone(swin: Mapping[str, Any]) -> dict[str, Any]:
    """Backbone fields of a Swin given by transformers' words; the published size it is, else the tiny one changed."""
    depths, heads = tuple(swin["depths"]), tuple(swin["num_heads"])
    if len(depths) != 4 or len(heads) != 4:
        raise ValueError(f"swin: expected 4 stages, found {len(depths)}")
    shape = {"embed_dim": swin["embed_dim"], "depths": depths, "heads": heads, "window": swin["window_size"]}
    name = next((name for name, size in SIZES.items() if size[:2] == (swin["embed_dim"], depths)), "swin-tiny")
    published = dict(zip(shape, SIZES[name], strict=True))
    options = {key: value for key, value in shape.items() if value != published[key]}
    if swin["mlp_ratio"] != 4.0:
        options["mlp_ratio"] = swin["mlp_ratio"]
    return {
        "backbone": name,
        "backbone_options": {**options, "drop_path": swin["drop_path_rate"]},
        "in_channels": swin["num_channels"],
    }


def _resnet(resnet: Mapping[str, Any]) -> dict[str, Any]:
    depths, widths = list(resnet["depths"]), list(resnet["hidden_sizes"])
    if resnet["layer_type"] != "bottleneck" or resnet["embedding_size"] != 64:
        raise ValueError("resnet: only bottleneck layers over a stem of 64 channels can be converted")
    return {**resnet_backbone(depths, [width // 4 for width in widths]), "in_channels": resnet["num_channels"]}


def resnet_backbone(depths: list[int], channels: list[int]) -> dict[str, Any]:
    """Backbone fields of a bottleneck ResNet: blocks a stage, and the inner width of each stage's blocks."""
    names: dict[tuple[int, ...], str] = {
        (3, 4, 6, 3): "resnet50",
        (3, 4, 23, 3): "resnet101",
        (3, 8, 36, 3): "resnet152",
    }
    options: dict[str, Any] = {}
    name = names.get(tuple(depths), "resnet50")
    if tuple(depths) not in names:
        options["layers"] = depths
    if channels != [64, 128, 256, 512]:
        options["channels"] = channels
    return {"backbone": name, "backbone_options": options}


def _refuse_others(kind: str, raw: Mapping[str, Any]) -> None:
    for name, values in _FIXED[kind].items():
        if name in raw and raw[name] not in values:
            raise ValueError(f"{kind}: {name} = {raw[name]!r} cannot be converted, only {values[0]!r}")


def _square(value: Any, name: str) -> int:
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(set(sides)) != 1:
        raise ValueError(f"{name}: {sides} is not square")
    return int(sides[0])


def _num_classes(raw: Mapping[str, Any]) -> int:
    return len(raw["id2label"]) if raw.get("id2label") else int(raw.get("num_labels", 2))
