"""The other side of the comparisons: transformers' models of the same sizes, randomly initialised.

Imported by benchmarks only. Sizes: the published ADE20K Swin-T models (150 classes, 100 queries, window 7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SIDE = 512  # of the square input, pixels
CLASSES = 150
MODELS = ("mask2former", "maskformer")  # keys of every table; both with Swin-T


def build(name: str, auxiliary: bool | None = None) -> nn.Module:
    """transformers' `name` with Swin-T. `auxiliary`: supervise earlier layers; None leaves their default."""
    import transformers

    backbone = transformers.SwinConfig(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    extra = {} if auxiliary is None else {"use_auxiliary_loss": auxiliary}
    labels = {"num_labels": CLASSES, "id2label": {n: str(n) for n in range(CLASSES)}}
    torch.manual_seed(0)
    if name == "mask2former":
        config: Any = transformers.Mask2FormerConfig(backbone_config=backbone, **labels, **extra)
        return transformers.Mask2FormerForUniversalSegmentation(config)
    decoder = transformers.DetrConfig(decoder_layers=6, num_queries=100, d_model=256)
    config = transformers.MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, **labels, **extra)
    return transformers.MaskFormerForInstanceSegmentation(config)


def forward(model: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Pixels (B, 3, H, W) → their class logits and mask logits, at `dtype` (bfloat16: autocast)."""

    @torch.inference_mode()
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            out = model(pixel_values=x)
        return out.class_queries_logits, out.masks_queries_logits

    return run


def training_step(
    model: nn.Module, x: Tensor, labels: list[Tensor], maps: list[Tensor], dtype: torch.dtype
) -> Callable[[], float]:
    """One forward, matching, loss and backward. `maps` (H, W) int: 0 nothing, n + 1 object n of `labels`."""
    masks = [torch.stack([m == n + 1 for n in range(len(k))]).float() for k, m in zip(labels, maps, strict=True)]
    # MaskFormer 5.23.0 with auxiliary losses raises TypeError unless the hidden states are asked for.
    extra = {"output_hidden_states": True} if model.config.use_auxiliary_loss else {}

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            loss = model(pixel_values=x, mask_labels=masks, class_labels=labels, **extra).loss
        loss.backward()
        return float(loss.detach())

    return step
