import itertools
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from maskformer.config import ModelConfig
from maskformer.matching import Matcher, shrink
from maskformer.prediction import Prediction
from maskformer.targets import Target

CONFIG = ModelConfig(num_classes=3)


def random_target(objects: int, size: int = 32, invalid: bool = False) -> Target:
    valid = torch.ones(size, size, dtype=torch.bool)
    if invalid:
        valid[:, size // 2 :] = False
    return Target.from_masks(torch.randint(0, 3, (objects,)), torch.rand(objects, size, size) < 0.4, valid)


def layers_of(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> list[Prediction]:
    """(L, B, Q, ·) logits as one prediction a layer."""
    return [Prediction(c, m) for c, m in zip(class_logits, mask_logits, strict=True)]


def plain_cost(class_logits: torch.Tensor, mask_logits: torch.Tensor, target: Target, config: ModelConfig):
    """One picture, one pair at a time, straight from the definitions."""
    masks, valid = shrink(target, mask_logits.shape[-2:])
    cost = np.zeros((len(class_logits), len(masks)))
    for q, n in itertools.product(*map(range, cost.shape)):
        x, t = mask_logits[q][valid].double(), masks[n][valid].double()
        p = x.sigmoid()
        pixel = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        if config.mask_loss == "focal":
            pixel = pixel * torch.where(t > 0, 0.25 * (1 - p) ** 2, 0.75 * p**2)
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        chance = class_logits[q].double().softmax(-1)[target.labels[n]]
        cost[q, n] = config.mask_weight * pixel.mean() + config.dice_weight * dice - config.class_weight * chance
    return cost


@pytest.mark.parametrize("mask_loss", ["focal", "bce"])
@pytest.mark.parametrize("invalid", [False, True])
def test_costs_are_the_definition(mask_loss: str, invalid: bool) -> None:
    torch.manual_seed(0)
    config = CONFIG.replace(mask_loss=mask_loss)
    targets = [random_target(4, invalid=invalid), random_target(2, invalid=invalid)]
    classes, masks = torch.randn(2, 2, 5, 4), 3 * torch.randn(2, 2, 5, 8, 8)
    cost, _ = Matcher(config)._costs(layers_of(classes, masks), classes, targets)
    for layer, b in itertools.product(range(2), range(2)):
        wanted = plain_cost(classes[layer, b], masks[layer, b], targets[b], config)
        np.testing.assert_allclose(cost[layer, b, :, : wanted.shape[1]], wanted, atol=1e-5)


@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_matching_is_optimal(objects: int, queries: int, seed: int) -> None:
    torch.manual_seed(seed)
    target = random_target(objects)
    classes, masks = torch.randn(1, 1, queries, 4), torch.randn(1, 1, queries, 8, 8)
    ((match,),) = Matcher(CONFIG)(layers_of(classes, masks), [target]).pairs
    pairs = min(objects, queries)
    assert len(match.queries) == len(match.objects) == pairs
    assert len(set(match.queries.tolist())) == len(set(match.objects.tolist())) == pairs
    cost = plain_cost(classes[0, 0], masks[0, 0], target, CONFIG)
    got = cost[match.queries.numpy(), match.objects.numpy()].sum()
    if objects <= queries:
        every = (cost[list(q), range(objects)].sum() for q in itertools.permutations(range(queries), objects))
    else:
        every = (cost[range(queries), list(n)].sum() for n in itertools.permutations(range(objects), queries))
    assert got <= min(every) + 1e-5


def test_ignored_pixels_do_not_move_the_cost() -> None:
    target = random_target(3, invalid=True)
    classes, masks = torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 8, 8)
    other = masks.clone()
    other[..., 4:] = 50 * torch.randn(1, 1, 5, 8, 4)
    repainted = Target.from_masks(target.labels, target.masks ^ ~target.valid, target.valid)
    before, _ = Matcher(CONFIG)._costs(layers_of(classes, masks), classes, [target])
    after, _ = Matcher(CONFIG)._costs(layers_of(classes, other), classes, [repainted])
    torch.testing.assert_close(before, after)


def test_masks_in_ignored_pixels_are_told_apart() -> None:
    target = random_target(0, invalid=True)
    masks = torch.full((1, 1, 2, 8, 8), -9.0)
    masks[0, 0, 0, :, 5:], masks[0, 0, 1, :, :3] = 9.0, 9.0
    assert Matcher(CONFIG)(layers_of(torch.zeros(1, 1, 2, 4), masks), [target]).elsewhere.tolist() == [[[True, False]]]


def test_more_objects_than_queries_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    matcher = Matcher(CONFIG)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ((match,),) = matcher(
                layers_of(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 8, 8)), [random_target(1000)]
            ).pairs
    assert len(match.queries) == 2
    (record,) = caplog.records
    assert "1000 objects" in record.message and "2 queries" in record.message and "998" in record.message


@pytest.mark.parametrize("origin", ["class_logits", "mask_logits"])
def test_nan_is_traced_to_its_origin(origin: str, caplog: pytest.LogCaptureFixture) -> None:
    logits = {"class_logits": torch.randn(2, 2, 3, 4), "mask_logits": torch.randn(2, 2, 3, 8, 8)}
    logits[origin][1, 0, 2, 0] = float("nan")
    with caplog.at_level(logging.WARNING):
        matching = Matcher(CONFIG)(layers_of(**logits), [random_target(2), random_target(2)])
    (record,) = caplog.records
    other = ({"class_logits", "mask_logits"} - {origin}).pop()
    assert "layer 1, picture 0" in record.message
    assert origin in record.message and other not in record.message
    assert 2 not in matching.pairs[1][0].queries  # the sick query is the last choice


def test_sizes_must_divide() -> None:
    with pytest.raises(ValueError, match="does not fit masks"):
        shrink(random_target(1, size=33), (8, 8))


def test_half_precision_logits_are_matched_in_float32() -> None:
    torch.manual_seed(1)
    classes, masks = (
        torch.randn(1, 1, 5, 4),
        300 * torch.randn(1, 1, 5, 8, 8),
    )  # softplus sums overflow in float16
    target = random_target(3)
    half = Matcher(CONFIG)(layers_of(classes.half(), masks.half()), [target]).pairs[0][0]
    full = Matcher(CONFIG)(layers_of(classes.half().float(), masks.half().float()), [target]).pairs[0][0]
    assert torch.equal(half.queries, full.queries) and torch.equal(half.objects, full.objects)
