"""The sanity check for a training recipe: every family learns one batch by heart, with its published losses.

(Located queries: test_located_queries.py.)
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskformer.annealing import set_progress
from maskformer.inference import semantic
from maskformer.losses import build_criterion
from maskformer.model import build_model, param_groups
from maskformer.targets import Target
from tests.maskformer.families import FAMILIES, SIDE, learner

STEPS = dict.fromkeys(FAMILIES, 300) | {
    "mask2former-resnet": 200,
    "mask2former-swin": 200,
    "pem-resnet": 200,
    "pem-stdc": 200,
    "eomt": 200,
    "unet": 100,
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
    steps = STEPS[family]
    torch.manual_seed(0)
    config = learner(family)
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
