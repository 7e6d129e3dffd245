import numpy as np
import pytest
import torch

from maskformer.masks import MaskSet
from maskformer.targets import Target, check_targets


def test_from_mask_set_keeps_overlaps_and_drops_the_unseen() -> None:
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :4], masks[1, 2:6], masks[2, 7:] = True, True, True
    valid = np.ones((8, 8), bool)
    valid[7] = False
    target = Target.from_mask_set(MaskSet.from_dense(masks, [1, 0, 2]), valid)
    assert target.labels.tolist() == [1, 0]
    assert torch.equal(target.masks, torch.from_numpy(masks[:2])) and len(target.layers) == 2
    assert target.areas().tolist() == [32, 32]
    assert torch.equal(target.valid, torch.from_numpy(valid))
    valid[:] = True
    assert target.valid[7].any() == False  # noqa: E712  a copy, not a view


def test_no_objects() -> None:
    target = Target.from_mask_set(MaskSet.empty((4, 6)), np.ones((4, 6), bool)).to("cpu")
    assert target.masks.shape == (0, 4, 6) and target.layers.shape == (1, 4, 6) and not target.layers.any()
    check_targets([target], 1, (4, 6))
    check_targets([target], 1, (1, 2), stride=4)


def test_canvas_must_agree() -> None:
    with pytest.raises(ValueError, match="canvas"):
        Target.from_mask_set(MaskSet.empty((4, 6)), np.ones((4, 5), bool))


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [([3], (4, 4), "target 0: label 3, but there are 3"), ([-1], (4, 4), "label -1"), ([0], (4, 5), "input's"),
     ([], (4, 4), "0 labels, but its layers know object 1")],
)  # fmt: skip
def test_wrong_targets_are_named(labels: list[int], size: tuple[int, int], message: str) -> None:
    layers = torch.ones(1, 4, 4, dtype=torch.int32)
    target = Target(torch.tensor(labels, dtype=torch.int64), layers, torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        check_targets([target], 3, size)
