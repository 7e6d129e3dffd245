"""The sanity check for a training recipe: one batch, learned by heart. (Located queries: test_located_queries.py.)"""

import pytest
import torch

from maskformer.config import ModelConfig
from maskformer.inference import semantic
from maskformer.losses import build_criterion
from maskformer.model import build_model, param_groups
from maskformer.targets import Target

TINY = ModelConfig(
    backbone="resnet18",
    num_classes=2,
    num_queries=8,
    hidden_dim=64,
    pixel_dim=64,
    mask_dim=32,
    decoder_layers=2,
    encoder_layers=1,
    feedforward_dim=128,
    dropout=0.0,
    freeze_batch_norm=False,
)


@pytest.mark.slow
@pytest.mark.parametrize("pixel_decoder", ["fpn", "transformer_fpn"])
def test_published_maskformer_overfits_one_batch(pixel_decoder: str) -> None:
    """Two pictures of discs in two classes: mean IoU of at least 0.95 over classes and "nothing"."""
    torch.manual_seed(0)
    config = TINY.replace(pixel_decoder=pixel_decoder)
    model, criterion = build_model(config).train(), build_criterion(config)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    places = [[(18, 18, 14), (42, 44, 16)], [(20, 40, 15), (46, 16, 13)]]
    discs = torch.stack([
        torch.stack([(y - a).square() + (x - b).square() < r * r for a, b, r in picture]) for picture in places
    ])  # fmt: skip
    colours = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    pictures = torch.einsum("bnhw,nc->bchw", discs.float(), 2 * colours) + 0.2 * torch.randn(2, 3, 64, 64)
    everywhere = torch.ones(64, 64, dtype=torch.bool)
    targets = [Target.from_masks(torch.tensor([0, 1]), masks, everywhere) for masks in discs]
    optimizer = torch.optim.AdamW(param_groups(model, 5e-4, 1.0), weight_decay=0)
    for _ in range(300):
        optimizer.zero_grad()
        criterion(model(pictures), targets)["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        probability = semantic(model(pictures), (64, 64))  # batch statistics: two pictures are all there is
    found = torch.cat((probability, torch.full((2, 1, 64, 64), 0.5)), 1).argmax(1)
    wanted = torch.full((2, 64, 64), 2)
    for n in range(2):
        wanted[discs[:, n]] = n
    ious = [((found == k) & (wanted == k)).sum() / ((found == k) | (wanted == k)).sum() for k in range(3)]
    assert torch.stack(ious).mean() >= 0.95
