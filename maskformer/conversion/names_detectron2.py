"""What MaskFormer's and Mask2Former's own detectron2 checkpoints call each tensor.

Heads older than version 2 lack `pixel_decoder.` in their names, and the first Mask2Former heads say `static_query`; a
row has both spellings. See `conversion.renaming` for the notation.
"""

from __future__ import annotations

from maskformer.conversion.renaming import Table, under

_NETWORK = "backbone.network."
_DECODER = "sem_seg_head.(pixel_decoder.|)"
_PREDICTOR = "sem_seg_head.predictor."


def _swin() -> Table:
    block = "layers.{i}.blocks.{j}."
    same = [
        "patch_embed.proj",
        "patch_embed.norm",
        f"{block}norm{{k}}",
        f"{block}attn.qkv",
        f"{block}attn.proj",
        f"{block}attn.relative_position_bias_table",
        f"{block}mlp.fc{{k}}",
        "layers.{i}.downsample.norm",
        "layers.{i}.downsample.reduction",
        "norm{i}",
    ]
    return under("backbone.", _NETWORK, [(name, name) for name in same])


def _resnet() -> Table:
    rows = [("backbone.stem.conv1", f"{_NETWORK}conv1"), ("backbone.stem.conv1.norm", f"{_NETWORK}bn1")]
    for stage in range(1, 5):
        theirs, ours = f"backbone.res{stage + 1}.{{j}}.", f"{_NETWORK}layer{stage}.{{j}}."
        rows += [
            (f"{theirs}conv{{n}}", f"{ours}conv{{n}}"),
            (f"{theirs}conv{{n}}.norm", f"{ours}bn{{n}}"),
            (f"{theirs}shortcut", f"{ours}downsample.0"),
            (f"{theirs}shortcut.norm", f"{ours}downsample.1"),
        ]
    return rows


def _conv_norm(theirs: str, ours: str) -> Table:
    """A convolution that has its norm inside → a sequence of both."""
    return [(theirs, f"{ours}.0"), (f"{theirs}.norm", f"{ours}.1")]


def _fpn() -> Table:
    """Counted from the coarsest map here, from the finest there."""
    rows = [*_conv_norm(f"{_DECODER}layer_4", "pixel_decoder.top")]
    for ours, theirs in enumerate((3, 2, 1)):
        rows += _conv_norm(f"{_DECODER}adapter_{theirs}", f"pixel_decoder.lateral.{ours}")
        rows += _conv_norm(f"{_DECODER}layer_{theirs}", f"pixel_decoder.output.{ours}")
    return [*rows, (f"{_DECODER}mask_features", "pixel_decoder.mask_features")]


def _attention(theirs: str, ours: str) -> Table:
    return [(f"{theirs}in_proj", f"{ours}in_proj"), (f"{theirs}out_proj", f"{ours}out_proj")]


def _transformer_encoder() -> Table:
    theirs, ours = f"{_DECODER}transformer.encoder.layers.{{i}}.", "pixel_decoder.encoder.{i}."
    return [
        (f"{_DECODER}input_proj", "pixel_decoder.input_proj"),
        *_attention(f"{theirs}self_attn.", f"{ours}self_attention."),
        (f"{theirs}linear{{n}}", f"{ours}feedforward.linear{{n}}"),
        (f"{theirs}norm{{n}}", f"{ours}norm{{n}}"),
    ]


def _deformable() -> Table:
    theirs, ours = f"{_DECODER}transformer.encoder.layers.{{i}}.", "pixel_decoder.encoder.{i}."
    return [
        (f"{_DECODER}input_proj.{{i}}.{{j}}", "pixel_decoder.input_proj.{i}.{j}"),
        (f"{_DECODER}transformer.level_embed", "pixel_decoder.level_embed"),
        *(
            (f"{theirs}self_attn.{name}", f"{ours}self_attn.{name}")
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        ),
        (f"{theirs}linear{{n}}", f"{ours}linear{{n}}"),
        (f"{theirs}norm{{n}}", f"{ours}norm{{n}}"),
        *_conv_norm(f"{_DECODER}adapter_1", "pixel_decoder.adapter_1"),
        *_conv_norm(f"{_DECODER}layer_1", "pixel_decoder.layer_1"),
        (f"{_DECODER}mask_features", "pixel_decoder.mask_features"),
    ]


def _heads() -> Table:
    return [
        (f"{_PREDICTOR}query_embed", "query_decoder.query_embed"),
        (f"{_PREDICTOR}class_embed", "query_decoder.class_embed"),
        (f"{_PREDICTOR}mask_embed.layers.{{i}}", "query_decoder.mask_embed.layers.{i}"),
    ]


def _detr() -> Table:
    theirs, ours = f"{_PREDICTOR}transformer.decoder.layers.{{i}}.", "query_decoder.layers.{i}."
    return [
        *_heads(),
        (f"{_PREDICTOR}input_proj", "query_decoder.input_proj"),
        *_attention(f"{theirs}self_attn.", f"{ours}self_attention."),
        *_attention(f"{theirs}multihead_attn.", f"{ours}cross_attention."),
        (f"{theirs}linear{{n}}", f"{ours}feedforward.linear{{n}}"),
        (f"{theirs}norm{{n}}", f"{ours}norm{{n}}"),
        (f"{_PREDICTOR}transformer.decoder.norm", "query_decoder.norm"),
    ]


def _masked() -> Table:
    """A layer's three parts stand in lists of their own there."""
    rows = [
        *_heads(),
        (f"{_PREDICTOR}(query_feat|static_query)", "query_decoder.query_feat"),
        (f"{_PREDICTOR}level_embed", "query_decoder.level_embed"),
        (f"{_PREDICTOR}input_proj.{{i}}", "query_decoder.input_proj.{i}"),
        (f"{_PREDICTOR}decoder_norm", "query_decoder.decoder_norm"),
    ]
    ours = "query_decoder.layers.{i}."
    cross = f"{_PREDICTOR}transformer_cross_attention_layers.{{i}}."
    self_ = f"{_PREDICTOR}transformer_self_attention_layers.{{i}}."
    feedforward = f"{_PREDICTOR}transformer_ffn_layers.{{i}}."
    return [
        *rows,
        *_attention(f"{cross}multihead_attn.", f"{ours}cross_attention."),
        (f"{cross}norm", f"{ours}norm1"),
        *_attention(f"{self_}self_attn.", f"{ours}self_attention."),
        (f"{self_}norm", f"{ours}norm2"),
        (f"{feedforward}linear{{n}}", f"{ours}feedforward.linear{{n}}"),
        (f"{feedforward}norm", f"{ours}norm3"),
    ]


BACKBONES = {"swin": _swin, "resnet": _resnet}
PIXEL_DECODERS = {"fpn": _fpn, "transformer_fpn": lambda: [*_transformer_encoder(), *_fpn()], "deformable": _deformable}
QUERY_DECODERS = {"detr": _detr, "masked": _masked}


def table_of(backbone: str, pixel_decoder: str, query_decoder: str) -> Table:
    """All rows of a checkpoint with these parts."""
    return [*BACKBONES[backbone](), *PIXEL_DECODERS[pixel_decoder](), *QUERY_DECODERS[query_decoder]()]


LEFT_OVER: Table = [
    ("criterion.empty_weight", "a constant of the loss"),
    ("(pixel_mean|pixel_std)", "of the input, not of the model: in the account's mean and std"),
    ("backbone.layers.{i}.blocks.{j}.attn.relative_position_index", "follows from the window"),
    ("backbone.layers.{i}.blocks.{j}.attn_mask", "follows from the size of the picture"),
]
