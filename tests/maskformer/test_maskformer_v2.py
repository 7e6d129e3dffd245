"""MaskFormer-V2, as the project reads it: a plain DETR decoder over the multi-scale deformable pixel decoder."""

import numpy as np
import torch

from maskformer.deformable import DeformablePixelDecoder
from maskformer.losses import Criterion
from maskformer.masks import MaskSet
from maskformer.model import MaskFormer
from maskformer.query_decoders import DETRDecoder
from maskformer.targets import Target

TINY = {
    "backbone_options": {"embed_dim": 8, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4), "window": 4},
    "num_classes": 3,
    "num_queries": 6,
    "pixel_dim": 16,
    "mask_dim": 16,
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 2,
    "encoder_feedforward_dim": 32,
    "decoder_layers": 2,
    "feedforward_dim": 32,
    "dropout": 0.0,
}


def test_trains_a_step() -> None:
    torch.manual_seed(0)
    model = MaskFormer.from_preset("maskformer-v2-swin-tiny", **TINY).train()
    assert isinstance(model.pixel_decoder, DeformablePixelDecoder)
    assert isinstance(model.query_decoder, DETRDecoder)
    masks = np.zeros((2, 64, 96), bool)
    masks[0, 8:30, 8:40] = True
    masks[1, 40:60, 50:90] = True
    target = Target.from_mask_set(MaskSet.from_dense(masks, np.array([0, 2])), np.ones((64, 96), bool))
    images = torch.randn(2, 3, 64, 96)
    criterion = Criterion(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        total = criterion(model(images), [target, target])["total"]
        optimizer.zero_grad()
        total.backward()
        unused = [n for n, p in model.named_parameters() if p.grad is None]
        assert not unused
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0]


def test_queries_look_at_the_encoded_stride_32() -> None:
    """The decoder's memory is the deformable encoder's coarsest map, which has seen the finer ones."""
    torch.manual_seed(0)
    model = MaskFormer.from_preset("maskformer-v2-swin-tiny", **TINY).eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 64, 96))
        pixels = model.pixel_decoder(features)
        assert pixels.memory[0].shape == (1, 16, 2, 3)
        out = model.query_decoder(pixels)
        blind = model.query_decoder(pixels._replace(memory=(pixels.memory[0].flip(3), *pixels.memory[1:])))
        same = model.query_decoder(pixels._replace(memory=pixels.memory[:1]))
    assert out.mask_logits.shape == (1, 6, 16, 24)
    assert torch.equal(same.mask_logits, out.mask_logits)
    assert not torch.equal(blind.mask_logits, out.mask_logits)
