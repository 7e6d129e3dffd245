"""What transformers calls each tensor: names of hub files (written by any version 4 or 5) and of version 5 in memory.

Where two spellings of one tensor exist, a row has both. See `conversion.renaming` for the notation.
"""

from __future__ import annotations

from collections.abc import Mapping

from maskformer.config import ModelConfig
from maskformer.conversion.renaming import Table, split_attention, under

_ENCODER = "model.pixel_level_module.encoder."
_DECODER = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."
_NETWORK = "backbone.network."


def _swin() -> Table:
    theirs, ours = "encoder.layers.{i}.blocks.{j}.", "layers.{i}.blocks.{j}."
    tensors = [
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.norm", "patch_embed.norm"),
        (f"{theirs}layernorm_before", f"{ours}norm1"),
        (f"{theirs}attention.(self.query|q_proj)", f"{ours}attn.qkv[0]"),
        (f"{theirs}attention.(self.key|k_proj)", f"{ours}attn.qkv[1]"),
        (f"{theirs}attention.(self.value|v_proj)", f"{ours}attn.qkv[2]"),
        (
            f"{theirs}attention.(self|relative_position_bias).relative_position_bias_table",
            f"{ours}attn.relative_position_bias_table",
        ),
        (f"{theirs}attention.(output.dense|o_proj)", f"{ours}attn.proj"),
        (f"{theirs}layernorm_after", f"{ours}norm2"),
        (f"{theirs}(intermediate.dense|mlp.fc1)", f"{ours}mlp.fc1"),
        (f"{theirs}(output.dense|mlp.fc2)", f"{ours}mlp.fc2"),
        ("encoder.layers.{i}.downsample.norm", "layers.{i}.downsample.norm"),
        ("encoder.layers.{i}.downsample.reduction", "layers.{i}.downsample.reduction"),
    ]
    return [
        # MaskFormer nests them as `encoder.model.`, Mask2Former as `encoder.` in files and `encoder.swin.` in memory.
        *under(f"{_ENCODER}(model.|swin.|)", _NETWORK, tensors),
        # MaskFormer counts output norms from 0, Mask2Former stages from 1.
        *((f"{_ENCODER}hidden_states_norms.({i}|stage{i + 1})", f"{_NETWORK}norm{i}") for i in range(4)),
    ]


def _resnet() -> Table:
    stem = f"{_ENCODER}embedder.embedder."
    rows = [(f"{stem}convolution", f"{_NETWORK}conv1"), (f"{stem}normalization", f"{_NETWORK}bn1")]
    for stage in range(4):
        theirs, ours = f"{_ENCODER}encoder.stages.{stage}.layers.{{j}}.", f"{_NETWORK}layer{stage + 1}.{{j}}."
        for n in range(3):
            rows.append((f"{theirs}layer.{n}.convolution", f"{ours}conv{n + 1}"))
            rows.append((f"{theirs}layer.{n}.normalization", f"{ours}bn{n + 1}"))
        rows.append((f"{theirs}shortcut.convolution", f"{ours}downsample.0"))
        rows.append((f"{theirs}shortcut.normalization", f"{ours}downsample.1"))
    return rows


def _fpn() -> Table:
    return [
        (f"{_DECODER}fpn.stem.{{i}}", "pixel_decoder.top.{i}"),
        (f"{_DECODER}fpn.layers.{{i}}.proj.{{j}}", "pixel_decoder.lateral.{i}.{j}"),
        (f"{_DECODER}fpn.layers.{{i}}.block.{{j}}", "pixel_decoder.output.{i}.{j}"),
        (f"{_DECODER}mask_projection", "pixel_decoder.mask_features"),
    ]


def _detr() -> Table:
    theirs, ours = f"{_QUERIES}decoder.layers.{{i}}.", "query_decoder.layers.{i}."
    return [
        (f"{_QUERIES}queries_embedder", "query_decoder.query_embed"),
        (f"{_QUERIES}input_projection", "query_decoder.input_proj"),
        *split_attention(f"{theirs}self_attn.", f"{ours}self_attention.", "(out_proj|o_proj)"),
        *split_attention(f"{theirs}encoder_attn.", f"{ours}cross_attention.", "(out_proj|o_proj)"),
        (f"{theirs}(fc1|mlp.fc1)", f"{ours}feedforward.linear1"),
        (f"{theirs}(fc2|mlp.fc2)", f"{ours}feedforward.linear2"),
        (f"{theirs}self_attn_layer_norm", f"{ours}norm1"),
        (f"{theirs}encoder_attn_layer_norm", f"{ours}norm2"),
        (f"{theirs}final_layer_norm", f"{ours}norm3"),
        (f"{_QUERIES}decoder.layernorm", "query_decoder.norm"),
        ("class_predictor", "query_decoder.class_embed"),
        ("mask_embedder.{i}.0", "query_decoder.mask_embed.layers.{i}"),
    ]


def _deformable() -> Table:
    theirs, ours = f"{_DECODER}encoder.layers.{{i}}.", "pixel_decoder.encoder.{i}."
    return [
        (f"{_DECODER}input_projections.{{i}}.{{j}}", "pixel_decoder.input_proj.{i}.{j}"),
        (f"{_DECODER}level_embed", "pixel_decoder.level_embed"),
        *(
            (f"{theirs}self_attn.{name}", f"{ours}self_attn.{name}")
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        ),
        (f"{theirs}fc{{n}}", f"{ours}linear{{n}}"),
        (f"{theirs}self_attn_layer_norm", f"{ours}norm1"),
        (f"{theirs}final_layer_norm", f"{ours}norm2"),
        (f"{_DECODER}adapter_1.{{i}}", "pixel_decoder.adapter_1.{i}"),
        (f"{_DECODER}layer_1.{{i}}", "pixel_decoder.layer_1.{i}"),
        (f"{_DECODER}mask_projection", "pixel_decoder.mask_features"),
    ]


def _masked() -> Table:
    """Self-attention is split there, cross-attention is not."""
    theirs, ours = f"{_QUERIES}decoder.layers.{{i}}.", "query_decoder.layers.{i}."
    return [
        (f"{_QUERIES}queries_embedder", "query_decoder.query_embed"),
        (f"{_QUERIES}queries_features", "query_decoder.query_feat"),
        (f"{_QUERIES}level_embed", "query_decoder.level_embed"),
        (f"{_QUERIES}input_projections.{{i}}", "query_decoder.input_proj.{i}"),
        *split_attention(f"{theirs}self_attn.", f"{ours}self_attention."),
        (f"{theirs}cross_attn.in_proj", f"{ours}cross_attention.in_proj"),
        (f"{theirs}cross_attn.out_proj", f"{ours}cross_attention.out_proj"),
        (f"{theirs}fc{{n}}", f"{ours}feedforward.linear{{n}}"),
        (f"{theirs}cross_attn_layer_norm", f"{ours}norm1"),
        (f"{theirs}self_attn_layer_norm", f"{ours}norm2"),
        (f"{theirs}final_layer_norm", f"{ours}norm3"),
        (f"{_QUERIES}decoder.layernorm", "query_decoder.decoder_norm"),
        ("class_predictor", "query_decoder.class_embed"),
        (f"{_QUERIES}decoder.mask_predictor.mask_embedder.{{i}}.0", "query_decoder.mask_embed.layers.{i}"),
    ]


def _eomt(depth: int, trunk: int) -> Table:
    """The first `trunk` blocks are the backbone's, the others the query decoder's."""
    rows = [
        ("embeddings.cls_token", f"{_NETWORK}cls_token"),
        ("embeddings.register_tokens", f"{_NETWORK}reg_token"),
        ("embeddings.patch_embeddings.projection", f"{_NETWORK}patch_embed.proj"),
        ("embeddings.position_embeddings.weight", f"{_NETWORK}pos_embed"),
        ("layernorm", "query_decoder.norm"),
        ("query", "query_decoder.query_embed"),
        ("class_predictor", "query_decoder.class_embed"),
        *((f"mask_head.fc{n + 1}", f"query_decoder.mask_embed.layers.{n}") for n in range(3)),
        ("upscale_block.block.{i}.conv{j}", "query_decoder.upscale.{i}.conv{j}"),
        ("upscale_block.block.{i}.layernorm2d", "query_decoder.upscale.{i}.norm"),
        ("attn_mask_probs", "query_decoder.annealing.probability"),
    ]
    for block in range(depth):
        theirs = f"layers.{block}."
        ours = f"{_NETWORK}blocks.{block}." if block < trunk else f"query_decoder.blocks.{block - trunk}."
        rows += [
            *((f"{theirs}attention.{name}_proj", f"{ours}attn.qkv[{part}]") for part, name in enumerate("qkv")),
            (f"{theirs}attention.out_proj", f"{ours}attn.proj"),
            (f"{theirs}norm{{i}}", f"{ours}norm{{i}}"),
            (f"{theirs}layer_scale{{i}}.lambda1", f"{ours}ls{{i}}.gamma"),
            (f"{theirs}mlp.fc{{i}}", f"{ours}mlp.fc{{i}}"),
        ]
    return rows


def table_of(kind: str, config: ModelConfig) -> Table:
    """All rows for a model type of transformers' config.json."""
    if kind == "eomt":
        depth = config.backbone_options["depth"]
        return _eomt(depth, depth - config.decoder_layers)
    backbone = _swin() if config.backbone.startswith("swin") else _resnet()
    decoders: Mapping[str, Table] = {
        "maskformer": [*_fpn(), *_detr()],
        "mask2former": [*_deformable(), *_masked()],
    }
    return [*backbone, *decoders[kind]]


LEFT_OVER: Table = [
    ("criterion.empty_weight", "a constant of the loss"),
    (
        f"{_ENCODER}(model.|swin.|)encoder.layers.{{i}}.blocks.{{j}}.attention."
        "(self|relative_position_bias).relative_position_index",
        "follows from the window",
    ),
    (f"{_ENCODER}(model.|swin.|)layernorm", "a norm of the backbone alone, which no map of the pyramid goes through"),
]
