"""Small random models of transformers, and what detectron2's checkpoints of the same weights would be called."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, QUERIES, CLASSES = 32, 8, 7, 5  # 8 heads as published: MaskFormer's shapes do not tell their number
STAGES = ["stage1", "stage2", "stage3", "stage4"]
NAMES = {0: "road", 1: "tree", 2: "house", 3: "car", 4: "water"}


def swin(window: int = 7) -> Any:
    from transformers import SwinConfig

    shape = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": window}
    return SwinConfig(image_size=64, out_features=STAGES, **shape)


def resnet() -> Any:
    from transformers import ResNetConfig

    # The stem is 64 wide in every published ResNet; bottlenecks are a quarter of these.
    return ResNetConfig(embedding_size=64, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], out_features=STAGES)


def maskformer(backbone: Any) -> nn.Module:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    shape = {"d_model": WIDTH, "decoder_layers": 2, "decoder_ffn_dim": 48, "decoder_attention_heads": HEADS}
    decoder = DetrConfig(**shape, encoder_layers=1, encoder_ffn_dim=48, num_queries=QUERIES)
    config = MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder,
        fpn_feature_size=WIDTH,
        mask_feature_size=WIDTH,
        id2label=NAMES,
    )
    return randomised(MaskFormerForInstanceSegmentation(config))


def mask2former(backbone: Any, hidden: int = WIDTH) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=hidden,
        encoder_feedforward_dim=48,
        dim_feedforward=64,
        encoder_layers=2,
        decoder_layers=5,  # transformers counts the prediction from the queries alone
        num_attention_heads=HEADS,
        num_queries=QUERIES,
        id2label=NAMES,
    )
    return randomised(Mask2FormerForUniversalSegmentation(config))


def eomt(side: int, masked: float = 0.0) -> nn.Module:
    """masked: probability of attention masks in every block; 0 in published checkpoints."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    shape = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "num_blocks": 2}
    config = EomtConfig(**shape, mlp_ratio=2, image_size=side, patch_size=16, num_queries=QUERIES, id2label=NAMES)
    model = randomised(EomtForUniversalSegmentation(config))
    model.get_buffer("attn_mask_probs").fill_(masked)
    return model


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor random and of a size that matters: as initialised, biases are 0 and gains 1, which tests nothing.

    Mask logits spread by about 2, as those of trained models do; at 50, float32 itself is off by more than 1e-4.
    """
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=random)
        if tensor.ndim > 1 and "embed" not in name and "query" not in name and "queries" not in name:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif tensor.ndim == 1 and name.endswith(("weight", "lambda1")):
            tensor.copy_(1 + 0.2 * noise)
        elif "sampling_offsets" not in name:
            tensor.copy_((0.5 if tensor.ndim > 1 else 0.1) * noise)
        if "mask_embedder.2" in name:
            tensor.mul_(0.05 if "mask_predictor" in name else 0.1)
    for name, tensor in model.named_buffers():
        if name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=random))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
    return model.eval()


# Written from the specification's table of names, not from maskformer.conversion. Patterns in order: what one leaves is
# for the next. Prefixes are B, D and P on both sides until the last step.
_PREFIXES = {
    "B.": ("model.pixel_level_module.encoder.", "backbone."),
    "D.": ("model.pixel_level_module.decoder.", "sem_seg_head.pixel_decoder."),
    "P.": ("model.transformer_module.", "sem_seg_head.predictor."),
}
_TO_FAIR = [
    (r"B\.(model\.|swin\.)?embeddings\.patch_embeddings\.projection", "B.patch_embed.proj"),
    (r"B\.(model\.|swin\.)?embeddings\.norm", "B.patch_embed.norm"),
    (r"B\.embedder\.embedder\.convolution", "B.stem.conv1"),
    (r"B\.embedder\.embedder\.normalization", "B.stem.conv1.norm"),
    (r"B\.encoder\.stages\.(\d)\.layers\.(\d)\.", lambda m: f"B.res{int(m[1]) + 2}.{m[2]}."),
    (r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}"),
    (r"layer\.(\d)\.normalization", lambda m: f"conv{int(m[1]) + 1}.norm"),
    (r"shortcut\.convolution", "shortcut"),
    (r"shortcut\.normalization", "shortcut.norm"),
    (r"B\.hidden_states_norms\.stage(\d)", lambda m: f"B.norm{int(m[1]) - 1}"),
    (r"B\.hidden_states_norms\.(\d)", r"B.norm\1"),
    (r"B\.(model\.|swin\.)?encoder\.layers\.(\d)\.", r"B.layers.\2."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.(self\.|relative_position_bias\.)relative_position", "attn.relative_position"),
    (r"attention\.(output\.dense|o_proj)", "attn.proj"),
    (r"(blocks\.\d\.)intermediate\.dense", r"\1mlp.fc1"),
    (r"(blocks\.\d\.)output\.dense", r"\1mlp.fc2"),
    (r"D\.fpn\.stem\.0", "D.layer_4"),
    (r"D\.fpn\.stem\.1", "D.layer_4.norm"),
    (r"D\.fpn\.layers\.(\d)\.proj\.0", lambda m: f"D.adapter_{3 - int(m[1])}"),
    (r"D\.fpn\.layers\.(\d)\.proj\.1", lambda m: f"D.adapter_{3 - int(m[1])}.norm"),
    (r"D\.fpn\.layers\.(\d)\.block\.0", lambda m: f"D.layer_{3 - int(m[1])}"),
    (r"D\.fpn\.layers\.(\d)\.block\.1", lambda m: f"D.layer_{3 - int(m[1])}.norm"),
    (r"D\.mask_projection", "D.mask_features"),
    (r"D\.(adapter|layer)_1\.0", r"D.\1_1"),
    (r"D\.(adapter|layer)_1\.1", r"D.\1_1.norm"),
    (r"D\.input_projections", "D.input_proj"),
    (r"D\.level_embed", "D.transformer.level_embed"),
    (r"D\.encoder\.layers\.(\d)\.self_attn_layer_norm", r"D.transformer.encoder.layers.\1.norm1"),
    (r"D\.encoder\.layers\.(\d)\.final_layer_norm", r"D.transformer.encoder.layers.\1.norm2"),
    (r"D\.encoder\.layers\.(\d)\.fc(\d)", r"D.transformer.encoder.layers.\1.linear\2"),
    (r"D\.encoder\.layers\.", "D.transformer.encoder.layers."),
    (r"P\.queries_embedder", "P.query_embed"),
    (r"P\.queries_features", "P.query_feat"),
    (r"P\.input_projection", "P.input_proj"),
    (r"^(P\.decoder\.mask_predictor\.)?mask_embedder\.(\d)\.0", r"P.mask_embed.layers.\2"),
    (r"^class_predictor", "P.class_embed"),
]
_MASKFORMER_DECODER = [
    (r"P\.decoder\.layers\.", "P.transformer.decoder.layers."),
    (r"P\.decoder\.layernorm", "P.transformer.decoder.norm"),
    (r"encoder_attn\.", "multihead_attn."),
    (r"self_attn_layer_norm", "norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"final_layer_norm", "norm3"),
    (r"(decoder\.layers\.\d\.)(mlp\.)?fc(\d)", r"\1linear\3"),
    (r"o_proj", "out_proj"),
]
_MASK2FORMER_DECODER = [
    (r"P\.decoder\.layernorm", "P.decoder_norm"),
    (r"P\.decoder\.layers\.(\d)\.cross_attn\.", r"P.transformer_cross_attention_layers.\1.multihead_attn."),
    (r"P\.decoder\.layers\.(\d)\.cross_attn_layer_norm", r"P.transformer_cross_attention_layers.\1.norm"),
    (r"P\.decoder\.layers\.(\d)\.self_attn\.", r"P.transformer_self_attention_layers.\1.self_attn."),
    (r"P\.decoder\.layers\.(\d)\.self_attn_layer_norm", r"P.transformer_self_attention_layers.\1.norm"),
    (r"P\.decoder\.layers\.(\d)\.fc(\d)", r"P.transformer_ffn_layers.\1.linear\2"),
    (r"P\.decoder\.layers\.(\d)\.final_layer_norm", r"P.transformer_ffn_layers.\1.norm"),
]
_QUERY, _KEY, _VALUE = ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")


def to_detectron2(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a MaskFormer or Mask2Former of transformers under the names FAIR's own checkpoints have."""
    theirs = {}
    for name, tensor in model.state_dict().items():
        for short, (long, _) in _PREFIXES.items():
            name = name.replace(long, short)
        if "num_batches" not in name and not re.match(r"B\..*layernorm\.", name):
            theirs[name] = tensor
    decoder = _MASK2FORMER_DECODER if any("cross_attn" in name for name in theirs) else _MASKFORMER_DECODER
    ours = {}
    for name, tensor in theirs.items():
        words = name.split(".")
        if any(word in words for word in (*_KEY, *_VALUE)):
            continue  # fused with the query
        for word, *others in zip(_QUERY, _KEY, _VALUE, strict=True):
            if word in words:
                tensor = torch.cat([theirs[name.replace(word, each)] for each in (word, *others)])
                name = name.replace(f"attention.self.{word}", "attn.qkv").replace(f"attention.{word}", "attn.qkv")
                name = name.replace(f"attn.{word}.", "attn.in_proj_")
        for pattern, replacement in (*_TO_FAIR, *decoder):
            name = re.sub(pattern, replacement, name)
        ours[_long(name)] = tensor
    return ours


def _long(name: str) -> str:
    return _PREFIXES[name[:2]][1] + name[2:] if name[:2] in _PREFIXES else name
