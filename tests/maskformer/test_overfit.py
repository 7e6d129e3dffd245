"""The sanity check for a training recipe: every family learns one batch by heart, with its published losses.

(Located queries: test_located_queries.py.)
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskformer.annealing import set_progress
from maskformer.config import ModelConfig
from maskformer.inference import semantic
from maskformer.losses import build_criterion
from maskformer.model import build_model, param_groups
from maskformer.targets import Target

SIDE = 64
SMALL: dict[str, Any] = {
    "num_classes": 2,
    "num_queries": 8,
    "hidden_dim": 64,
    "pixel_dim": 64,
    "mask_dim": 32,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "feedforward_dim": 128,
    "encoder_feedforward_dim": 128,
    "dropout": 0.0,
    "freeze_batch_norm": False,
    "num_points": 1024,
}
SWIN = {"backbone_options": {"embed_dim": 24, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4), "window": 4}}
RESNET = {"backbone": "resnet10t"}
PEM = {"pixel_dim": 32, "decoder_layers": 3}  # fewer than its three levels would leave parameters unused
VIT = {
    "hidden_dim": 64,
    "mask_dim": 64,
    "backbone_options": {"patch_size": 16, "img_size": SIDE, "depth": 4, "embed_dim": 64, "num_heads": 4},
}
# family → preset, what makes it small, optimiser steps
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "maskformer": ("maskformer-resnet50", RESNET, 300),
    "maskformer-panoptic": ("maskformer-resnet50-panoptic", RESNET, 300),
    "maskformer-swin": ("maskformer-swin-tiny", SWIN, 300),
    "mask2former": ("mask2former-resnet50", RESNET, 200),
    "mask2former-swin": ("mask2former-swin-tiny", SWIN, 200),
    "maskformer-v2": ("maskformer-v2-swin-tiny", SWIN, 300),
    "pem": ("pem-resnet50", {**RESNET, **PEM}, 200),
    "pem-stdc": ("pem-stdc1", {"backbone_options": {"width": 16}, **PEM}, 200),
    "mfenet": ("mfenet-efficientnet-lite0", {}, 300),
    "eomt": ("eomt-small", VIT, 200),
    "unet": ("unet-efficientnet-lite0", {}, 100),
}
QUICKEST = "mask2former-swin"  # seven seconds


def batch() -> tuple[Tensor, Tensor]:
    """Two pictures (2, 3, 64, 64) of two discs each, in the colours of their classes, and the discs (2, 2, 64, 64)."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    places = [[(18, 18, 14), (42, 44, 16)], [(20, 40, 15), (46, 16, 13)]]
    discs = torch.stack([
        torch.stack([(y - a).square() + (x - b).square() < r * r for a, b, r in picture]) for picture in places
    ])  # fmt: skip
    colours = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return torch.einsum("bnhw,nc->bchw", discs.float(), 2 * colours) + 0.2 * torch.randn(2, 3, SIDE, SIDE), discs


def learn(family: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model after its steps over one batch, the pictures, the discs."""
    preset, small, steps = FAMILIES[family]
    torch.manual_seed(0)
    config = ModelConfig.from_preset(preset, **{**SMALL, **small})
    model, criterion = build_model(config).train(), build_criterion(config)
    pictures, discs = batch()
    everywhere = torch.ones(SIDE, SIDE, dtype=torch.bool)
    targets = [Target.from_masks(torch.tensor([0, 1]), masks, everywhere) for masks in discs]
    optimizer = torch.optim.AdamW(param_groups(model, 1e-3 if family in ("eomt", "unet") else 5e-4, 1.0))
    for step in range(steps):
        set_progress(model, step / steps)
        optimizer.zero_grad()
        criterion(model(pictures), targets)["total"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, pictures, discs


def settle_batch_norms(model: nn.Module, pictures: Tensor) -> None:
    """Running statistics of the batch itself: after so few steps the averages lag behind the weights."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = 1.0
    model.train()(pictures)


def mean_iou(probability: Tensor, discs: Tensor) -> float:
    """Over both classes and "nothing" of probabilities (2, 2, 64, 64)."""
    found = torch.cat((probability, torch.full((2, 1, SIDE, SIDE), 0.5)), 1).argmax(1)
    wanted = torch.full((2, SIDE, SIDE), 2)
    for n in range(2):
        wanted[discs[:, n]] = n
    ious = [((found == k) & (wanted == k)).sum() / ((found == k) | (wanted == k)).sum() for k in range(3)]
    return float(torch.stack(ious).mean())


@pytest.mark.parametrize(
    "family", [name if name == QUICKEST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_learns_one_batch_by_heart(family: str) -> None:
    model, pictures, discs = learn(family)
    with torch.no_grad():
        settle_batch_norms(model, pictures)
        assert mean_iou(semantic(model.eval()(pictures), (SIDE, SIDE)), discs) >= 0.95
