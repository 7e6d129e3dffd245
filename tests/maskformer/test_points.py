"""Sampling at points: label maps look like the masks they stand for, and the losses on points are transformers'."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer import points
from maskformer.config import ModelConfig
from maskformer.losses import MaskPoints, build_criterion
from maskformer.matching import Matcher
from maskformer.prediction import LayerPrediction, Prediction, predict_layers
from maskformer.targets import Target

CONFIG = ModelConfig.from_preset("mask2former-swin-tiny", num_classes=3, num_points=200)


def target_of(objects: int, size: tuple[int, int] = (24, 40), overlaps: bool = True) -> Target:
    masks = torch.rand(objects, *size) < 0.3
    if not overlaps:
        masks = masks & (masks.int().cumsum(0) == 1)
    return Target.from_masks(torch.randint(0, 3, (objects,)), masks, torch.ones(size, dtype=torch.bool))


def sampled_masks(target: Target, places: torch.Tensor) -> torch.Tensor:
    grid = (2 * places - 1).expand(len(target.labels), 1, -1, -1)
    return F.grid_sample(target.masks[:, None].float(), grid, align_corners=False)[:, 0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.booleans(), st.integers(0, 10_000))
def test_label_maps_are_sampled_like_masks(objects: int, overlaps: bool, seed: int) -> None:
    torch.manual_seed(seed)
    target = target_of(objects, overlaps=overlaps)
    assert overlaps or len(target.layers) == 1
    places = torch.rand(300, 2)
    places[:4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.0]])  # the picture's very edge
    seen = points.sample_target(target, places)
    if objects:
        torch.testing.assert_close(seen.inside, sampled_masks(target, places), atol=2e-6, rtol=0)
    assert seen.inside.shape == (objects, 300) and (seen.valid == 1).all()


def test_a_point_that_touches_an_ignored_pixel_is_not_asked() -> None:
    target = target_of(3)
    target.valid[:, 20:] = False
    places = torch.rand(500, 2)
    seen = points.sample_target(target, places)
    column = places[:, 0] * 40 - 0.5
    assert torch.equal(seen.valid > 0, column <= 19)
    repainted = Target.from_masks(target.labels, target.masks ^ ~target.valid, target.valid)
    other = points.sample_target(repainted, places)
    torch.testing.assert_close(seen.inside[:, seen.valid > 0], other.inside[:, seen.valid > 0])


def test_features_at_points_give_masks_at_points() -> None:
    """Sampling commutes with the product: the features are sampled once, no mask is made."""
    embed, features, places = torch.randn(7, 16), torch.randn(16, 12, 20), torch.rand(400, 2)
    masks = (embed @ features.flatten(1)).unflatten(1, (12, 20))
    wanted = points.sample_maps(masks, places)
    torch.testing.assert_close(embed @ points.sample_maps(features, places), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(points.sample_own(masks, places.expand(7, -1, -1)), wanted, atol=1e-5, rtol=1e-5)


def test_most_points_lie_where_a_mask_is_uncertain() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-8, 8, 40).expand(2, 24, 40)
    target = target_of(2)
    target.valid[:12] = False
    compare = MaskPoints(target, CONFIG)
    chosen = compare._choose(points.sample_maps(ramp, compare.places))
    assert chosen.shape == (2, 200)
    uncertain, fresh = compare.places[chosen[:, :150]], compare.places[chosen[:, 150:]]
    assert (uncertain[..., 1] > 0.5).all(), "never in ignored ground while there is other"
    assert (fresh[..., 0] - 0.5).abs().max() > 0.45, "a quarter lies anywhere"
    # Exactly the nearest to the edge (what is sampled at the picture's border fades to 0, and counts as uncertain).
    values = points.sample_maps(ramp, compare.places[:600])[0].abs()
    rest = compare.seen.valid[:600] > 0
    rest[chosen[0, :150]] = False
    assert values[chosen[0, :150]].max() <= values[rest].min()


def test_points_lie_in_valid_ground_alone_and_evenly() -> None:
    torch.manual_seed(0)
    valid = torch.zeros(20, 30, dtype=torch.bool)
    valid[5:15, :10] = True
    places = points.draw(20_000, valid)
    assert ((places >= 0) & (places <= 1)).all()
    x, y = (places * torch.tensor([30.0, 20.0])).T
    assert (x < 10).all() and (y >= 5).all() and (y < 15).all()
    counts = torch.histogramdd(torch.stack((y, x), 1), bins=[10, 10], range=[5.0, 15.0, 0.0, 10.0]).hist
    assert counts.min() > 140 and counts.max() < 265, "200 a pixel"
    assert (points.draw(50, torch.zeros(4, 4, dtype=torch.bool)) <= 1).all(), "nothing valid: anywhere, and weight 0"


def test_sides_that_are_no_multiples_of_four_are_met_where_they_are() -> None:
    """Logits of 9 x 9 cover 36 x 36 px of which the picture has 33: perfect logits agree with their target."""
    torch.manual_seed(0)
    disc = (torch.arange(36)[:, None] - 16.0).square() + (torch.arange(36) - 20.0).square() < 130
    target = Target.from_masks(torch.zeros(1), disc[None, :33, :33], torch.ones(33, 33, dtype=torch.bool))
    logits = 20 * (F.avg_pool2d(disc[None].float(), 4) - 0.5)
    compare = MaskPoints(target, CONFIG.replace(importance_ratio=0.0, num_points=20_000))
    places = points.on_logits(compare.places, (33, 33), (9, 9))
    wrong = (points.sample_maps(logits, places) > 0) != (compare.seen.inside > 0.5)
    assert wrong.float().mean() < 0.03


def prediction_of(queries: int = 9, layers: int = 3, batch: int = 2) -> Prediction:
    features = torch.randn(batch, 8, 6, 10, requires_grad=True)
    every = [
        (torch.randn(batch, queries, 4, requires_grad=True), torch.randn(batch, queries, 8, requires_grad=True))
        for _ in range(layers)
    ]
    return predict_layers(every, features, keep_factors=True)


def dense(prediction: Prediction) -> Prediction:
    """The same without factors."""
    earlier = tuple(Prediction(one.class_logits, one.mask_logits) for one in prediction.auxiliary)
    return Prediction(prediction.class_logits, prediction.mask_logits, earlier)


@pytest.mark.parametrize("resolution", ["points", "input", "mask"])
def test_factors_and_whole_masks_give_the_same_loss_and_gradient(resolution: str) -> None:
    torch.manual_seed(0)
    criterion = build_criterion(CONFIG.replace(loss_resolution=resolution))
    targets, prediction = [target_of(4), target_of(2)], prediction_of()
    leaves = [prediction.mask_features, prediction.mask_embed, *(one.mask_embed for one in prediction.auxiliary)]
    results = []
    for one in (prediction, dense(prediction)):
        torch.manual_seed(1)
        losses = criterion(one, targets)
        results.append((losses, torch.autograd.grad(losses["total"], leaves)))
    for name, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][name], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 3])
def test_losses_and_matching_are_transformers_on_the_same_points(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    places = torch.rand(200, 2)
    config = CONFIG.replace(importance_ratio=0.0)
    prediction = prediction_of(layers=layers)
    targets = [target_of(4), target_of(2)]

    monkeypatch.setattr(points, "draw", lambda count, valid: places[:count])
    got = build_criterion(config)(prediction, targets)
    pairs = Matcher(config)((*prediction.auxiliary, prediction), targets).pairs

    hf = transformers.Mask2FormerConfig(
        num_labels=3, train_num_points=200, importance_sample_ratio=0.0, oversample_ratio=1.0, no_object_weight=0.1
    )
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    theirs = reference.Mask2FormerLoss(hf, weights)
    monkeypatch.setattr(
        theirs, "sample_points_using_uncertainty", lambda logits, *rest: places.expand(len(logits), -1, -1)
    )
    real = torch.rand
    monkeypatch.setattr(
        reference.torch, "rand", lambda *size, **kw: places[None] if size == (1, 200, 2) else real(*size, **kw)
    )
    every = (*prediction.auxiliary, prediction)
    wanted = theirs(
        every[-1].mask_logits,
        every[-1].class_logits,
        [target.masks.float() for target in targets],
        [target.labels for target in targets],
        [
            {"masks_queries_logits": one.mask_logits, "class_queries_logits": one.class_logits}
            for one in prediction.auxiliary
        ]
        or None,
    )
    for index in range(layers):
        suffix = "" if index == layers - 1 else f".{index}"
        hf_suffix = "" if index == layers - 1 else f"_{index}"
        for ours, name in (("class", "loss_cross_entropy"), ("mask", "loss_mask"), ("dice", "loss_dice")):
            value = weights[name] * wanted[name + hf_suffix]
            torch.testing.assert_close(got[ours + suffix], value, atol=1e-4, rtol=1e-4)
        matched = theirs.matcher(
            every[index].mask_logits,
            every[index].class_logits,
            [target.masks.float() for target in targets],
            [target.labels for target in targets],
        )
        for ours, (queries, objects) in zip(pairs[index], matched, strict=True):
            assert ours.queries.tolist() == list(queries) and ours.objects.tolist() == list(objects)


def test_a_layer_prediction_multiplies_out() -> None:
    layer = LayerPrediction(torch.zeros(2, 5, 4), torch.randn(2, 5, 8), torch.randn(2, 8, 6, 10))
    wanted = torch.einsum("bqc,bchw->bqhw", layer.mask_embed, layer.mask_features)
    torch.testing.assert_close(layer.mask_logits, wanted, atol=1e-5, rtol=1e-5)
