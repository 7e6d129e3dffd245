"""Every key and shape of FAIR's published R50 and Swin-T checkpoints, written from the specification."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

DIM, FFN, QUERIES = 256, 2048, 100


def maskformer(backbone: str, classes: int, encoder: bool = False) -> Shapes:
    """The semantic models' FPN, or with `encoder` the COCO-panoptic ResNets' 6-layer transformer encoder under it."""
    widths, shapes = _backbone(backbone)
    decoder = "sem_seg_head.pixel_decoder."
    top = widths[3]
    if encoder:
        shapes |= _linear(f"{decoder}input_proj", (DIM, top, 1, 1))
        for i in range(6):
            layer = f"{decoder}transformer.encoder.layers.{i}."
            shapes |= _attention(f"{layer}self_attn.") | _feedforward(layer, FFN) | _norms(layer, 2)
        top = DIM
    shapes |= _conv_norm(f"{decoder}layer_4", (DIM, top, 3, 3))
    for i, width in enumerate(widths[:3], 1):
        shapes |= _conv_norm(f"{decoder}adapter_{i}", (DIM, width, 1, 1))
        shapes |= _conv_norm(f"{decoder}layer_{i}", (DIM, DIM, 3, 3))
    shapes |= _linear(f"{decoder}mask_features", (DIM, DIM, 3, 3))
    predictor = "sem_seg_head.predictor."
    if not encoder:
        shapes |= _linear(f"{predictor}input_proj", (DIM, widths[3], 1, 1))
    for i in range(6):
        layer = f"{predictor}transformer.decoder.layers.{i}."
        shapes |= _attention(f"{layer}self_attn.") | _attention(f"{layer}multihead_attn.")
        shapes |= _feedforward(layer, FFN) | _norms(layer, 3)
    shapes |= _linear(f"{predictor}transformer.decoder.norm", (DIM,))
    return shapes | _heads(predictor, classes)


def mask2former(backbone: str, classes: int) -> Shapes:
    widths, shapes = _backbone(backbone)
    decoder = "sem_seg_head.pixel_decoder."
    for i, width in enumerate(widths[:0:-1]):
        shapes |= _linear(f"{decoder}input_proj.{i}.0", (DIM, width, 1, 1)) | _linear(
            f"{decoder}input_proj.{i}.1", (DIM,)
        )
    shapes[f"{decoder}transformer.level_embed"] = (3, DIM)
    for i in range(6):
        layer = f"{decoder}transformer.encoder.layers.{i}."
        samples = 8 * 3 * 4
        shapes |= _linear(f"{layer}self_attn.sampling_offsets", (2 * samples, DIM))
        shapes |= _linear(f"{layer}self_attn.attention_weights", (samples, DIM))
        shapes |= _linear(f"{layer}self_attn.value_proj", (DIM, DIM)) | _linear(
            f"{layer}self_attn.output_proj", (DIM, DIM)
        )
        shapes |= _feedforward(layer, 1024) | _norms(layer, 2)
    shapes |= _conv_norm(f"{decoder}adapter_1", (DIM, widths[0], 1, 1)) | _conv_norm(
        f"{decoder}layer_1", (DIM, DIM, 3, 3)
    )
    shapes |= _linear(f"{decoder}mask_features", (DIM, DIM, 1, 1))
    predictor = "sem_seg_head.predictor."
    for i in range(9):
        cross = f"{predictor}transformer_cross_attention_layers.{i}."
        own = f"{predictor}transformer_self_attention_layers.{i}."
        feedforward = f"{predictor}transformer_ffn_layers.{i}."
        shapes |= (
            _attention(f"{cross}multihead_attn.") | _attention(f"{own}self_attn.") | _feedforward(feedforward, FFN)
        )
        for part in (cross, own, feedforward):
            shapes |= _linear(f"{part}norm", (DIM,))
    shapes |= _linear(f"{predictor}decoder_norm", (DIM,))
    shapes |= {f"{predictor}query_feat.weight": (QUERIES, DIM), f"{predictor}level_embed.weight": (3, DIM)}
    return shapes | _heads(predictor, classes)


def _heads(predictor: str, classes: int) -> Shapes:
    shapes = {f"{predictor}query_embed.weight": (QUERIES, DIM), "criterion.empty_weight": (classes + 1,)}
    for i in range(3):
        shapes |= _linear(f"{predictor}mask_embed.layers.{i}", (DIM, DIM))
    return shapes | _linear(f"{predictor}class_embed", (classes + 1, DIM))


def _backbone(name: str) -> tuple[tuple[int, ...], Shapes]:
    return _resnet50() if name == "resnet50" else _swin_tiny()


def _resnet50() -> tuple[tuple[int, ...], Shapes]:
    shapes = _frozen_conv("backbone.stem.conv1", (64, 3, 7, 7))
    before = 64
    for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        inner = 64 * 2 ** (stage - 2)
        for j in range(blocks):
            block = f"backbone.res{stage}.{j}."
            if j == 0:
                shapes |= _frozen_conv(f"{block}shortcut", (4 * inner, before, 1, 1))
            shapes |= _frozen_conv(f"{block}conv1", (inner, before, 1, 1))
            shapes |= _frozen_conv(f"{block}conv2", (inner, inner, 3, 3))
            shapes |= _frozen_conv(f"{block}conv3", (4 * inner, inner, 1, 1))
            before = 4 * inner
    return (256, 512, 1024, 2048), shapes


def _swin_tiny() -> tuple[tuple[int, ...], Shapes]:
    widths = (96, 192, 384, 768)
    shapes = _linear("backbone.patch_embed.proj", (96, 3, 4, 4)) | _linear("backbone.patch_embed.norm", (96,))
    for i, (width, blocks, heads) in enumerate(zip(widths, (2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
        for j in range(blocks):
            block = f"backbone.layers.{i}.blocks.{j}."
            shapes |= _linear(f"{block}norm1", (width,)) | _linear(f"{block}norm2", (width,))
            shapes |= _linear(f"{block}attn.qkv", (3 * width, width)) | _linear(f"{block}attn.proj", (width, width))
            shapes[f"{block}attn.relative_position_bias_table"] = (13 * 13, heads)
            shapes[f"{block}attn.relative_position_index"] = (49, 49)
            shapes |= _linear(f"{block}mlp.fc1", (4 * width, width)) | _linear(f"{block}mlp.fc2", (width, 4 * width))
        if i < 3:
            shapes |= _linear(f"backbone.layers.{i}.downsample.norm", (4 * width,))
            shapes[f"backbone.layers.{i}.downsample.reduction.weight"] = (2 * width, 4 * width)
        shapes |= _linear(f"backbone.norm{i}", (width,))
    return widths, shapes


def _linear(name: str, weight: tuple[int, ...]) -> Shapes:
    """Anything with a weight and a bias; a norm's weight has one axis."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _conv_norm(name: str, weight: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": weight} | _linear(f"{name}.norm", weight[:1])


def _frozen_conv(name: str, weight: tuple[int, ...]) -> Shapes:
    statistics = {f"{name}.norm.{part}": weight[:1] for part in ("running_mean", "running_var")}
    return _conv_norm(name, weight) | statistics


def _attention(prefix: str) -> Shapes:
    projections = {f"{prefix}in_proj_weight": (3 * DIM, DIM), f"{prefix}in_proj_bias": (3 * DIM,)}
    return projections | _linear(f"{prefix}out_proj", (DIM, DIM))


def _feedforward(prefix: str, hidden: int) -> Shapes:
    return _linear(f"{prefix}linear1", (hidden, DIM)) | _linear(f"{prefix}linear2", (DIM, hidden))


def _norms(prefix: str, count: int) -> Shapes:
    shapes: Shapes = {}
    for n in range(1, count + 1):
        shapes |= _linear(f"{prefix}norm{n}", (DIM,))
    return shapes
