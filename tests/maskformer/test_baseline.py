import numpy as np
import torch

from maskformer.baseline import flatten_target
from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from maskformer.prediction import DensePrediction
from maskformer.targets import Target

CONFIG = ModelConfig.from_preset("unet-efficientnet-lite0", num_classes=2)


def boxes(*placed: tuple[int, slice, slice], size: int = 16) -> Target:
    masks = torch.zeros(len(placed), size, size, dtype=torch.bool)
    for mask, (_, rows, columns) in zip(masks, placed, strict=True):
        mask[rows, columns] = True
    labels = torch.tensor([label for label, _, _ in placed], dtype=torch.int64)
    return Target.from_masks(labels, masks, torch.ones(size, size, dtype=torch.bool))


def test_smaller_objects_lie_on_top() -> None:
    small, large = (1, slice(4, 6), slice(4, 6)), (0, slice(2, 12), slice(2, 12))
    for order in ((small, large), (large, small)):
        flat = flatten_target(boxes(*order), 2).numpy()
        wanted = np.full((16, 16), 2)
        wanted[2:12, 2:12] = 0
        wanted[4:6, 4:6] = 1
        np.testing.assert_array_equal(flat, wanted)
    assert (flatten_target(boxes(), 2) == 2).all()


def test_ignored_pixels_leave_the_loss() -> None:
    target = boxes((0, slice(0, 8), slice(0, 16)))
    target.valid[:, 8:] = False
    repainted = Target.from_masks(target.labels, target.masks ^ ~target.valid, target.valid)
    logits = torch.randn(1, 3, 16, 16)
    other = logits.clone()
    other[..., 8:] = 9 * torch.randn(1, 3, 16, 8)
    criterion = build_criterion(CONFIG)
    for name in ("class", "dice", "total"):
        before = criterion(DensePrediction(logits), [target])[name]
        torch.testing.assert_close(before, criterion(DensePrediction(other), [repainted])[name])


def test_perfect_and_empty() -> None:
    target = boxes((1, slice(0, 8), slice(0, 16)))
    perfect = 50.0 * torch.nn.functional.one_hot(flatten_target(target, 2), 3).movedim(-1, 0)[None].float()
    assert build_criterion(CONFIG)(DensePrediction(perfect), [target])["total"] < 1e-3
    nothing = boxes()
    nothing.valid[:] = False
    logits = torch.randn(1, 3, 16, 16, requires_grad=True)
    loss = build_criterion(CONFIG)(DensePrediction(logits), [nothing])["total"]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
