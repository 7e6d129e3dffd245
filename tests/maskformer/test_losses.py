import pytest
import torch
import torch.nn.functional as F

from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from maskformer.prediction import Prediction
from maskformer.targets import Target

CONFIG = ModelConfig(num_classes=3, num_points=400)
RESOLUTIONS = ("input", "mask", "points")


def random_target(objects: int, size: int = 32) -> Target:
    everywhere = torch.ones(size, size, dtype=torch.bool)
    return Target.from_masks(torch.randint(0, 3, (objects,)), torch.rand(objects, size, size) < 0.4, everywhere)


def random_prediction(queries: int = 6, batch: int = 2, layers: int = 2) -> Prediction:
    every = [
        Prediction(
            torch.randn(batch, queries, 4, requires_grad=True),
            torch.randn(batch, queries, 8, 8, requires_grad=True),
        )
        for _ in range(layers)
    ]
    return every[-1]._replace(auxiliary=tuple(every[:-1]))


def gradients(prediction: Prediction) -> list[torch.Tensor]:
    layers = (prediction, *prediction.auxiliary)
    return [t.grad for layer in layers for t in (layer.class_logits, layer.mask_logits)]


def test_names_and_total() -> None:
    losses = build_criterion(CONFIG)(random_prediction(layers=3), [random_target(2), random_target(1)])
    assert list(losses) == [
        *("class.0", "mask.0", "dice.0", "class.1", "mask.1", "dice.1"),
        *("class", "mask", "dice", "total"),
    ]
    parts = sum(value for name, value in losses.items() if name != "total")
    torch.testing.assert_close(losses["total"], parts)


def test_parity_with_transformers() -> None:
    reference = pytest.importorskip("transformers.models.maskformer.modeling_maskformer")
    torch.manual_seed(0)
    prediction = random_prediction(layers=1)
    targets = [random_target(3), random_target(2)]
    weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    matcher = reference.MaskFormerHungarianMatcher(cost_class=1.0, cost_dice=1.0, cost_mask=20.0)
    theirs = reference.MaskFormerLoss(3, matcher=matcher, weight_dict=weights, eos_coef=0.1)
    wanted = theirs(
        prediction.mask_logits,
        prediction.class_logits,
        [target.masks.float() for target in targets],
        [target.labels for target in targets],
    )
    got = build_criterion(CONFIG)(prediction, targets)
    for ours, name in (("class", "loss_cross_entropy"), ("mask", "loss_mask"), ("dice", "loss_dice")):
        torch.testing.assert_close(got[ours], weights[name] * wanted[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("mask_loss", ["focal", "bce"])
def test_ignored_pixels_leave_the_loss(resolution: str, mask_loss: str) -> None:
    """What is said and what is asked on ignored pixels changes nothing, to the last bit of the gradient inside."""
    config = CONFIG.replace(loss_resolution=resolution, mask_loss=mask_loss)
    target = random_target(2)
    target.valid[:, 16:] = False
    repainted = Target.from_masks(target.labels, target.masks ^ ~target.valid, target.valid)
    prediction = random_prediction(batch=1, layers=1)
    other = prediction.mask_logits.detach().clone()
    other[..., 5:] = 4 * torch.randn(1, 6, 8, 3)  # bilinear upsampling reaches half a cell: column 4 stays
    criterion = build_criterion(config)
    criterion.class_loss = lambda *args: torch.zeros(())  # the class loss may ask where a mask lies
    torch.manual_seed(0)  # the same points
    before = criterion(prediction, [target])["total"]
    torch.manual_seed(0)
    after = criterion(Prediction(prediction.class_logits, other), [repainted])["total"]
    torch.testing.assert_close(before, after)


def test_a_query_in_ignored_pixels_is_not_asked_for_its_class() -> None:
    target = random_target(0)
    target.valid[:, 16:] = False
    masks = torch.full((1, 2, 8, 8), -9.0)
    masks[0, 0, :, 5:], masks[0, 1, :, :3] = 9.0, 9.0
    classes = torch.randn(1, 2, 4, requires_grad=True)
    loss = build_criterion(CONFIG)(Prediction(classes, masks), [target])["total"]
    loss.backward()
    assert classes.grad[0, 0].abs().max() == 0
    assert classes.grad[0, 1].abs().max() > 0
    wanted = F.cross_entropy(classes[0, 1:], torch.tensor([3]))
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 40)])
def test_any_number_of_objects_has_finite_gradients(counts: tuple[int, int]) -> None:
    for resolution in RESOLUTIONS:
        prediction = random_prediction()
        criterion = build_criterion(CONFIG.replace(loss_resolution=resolution))
        losses = criterion(prediction, [random_target(n) for n in counts])
        losses["total"].backward()
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients(prediction))
        if counts == (0, 0):
            assert losses["mask"] == losses["dice"] == 0
            assert losses["class"] > 0


def test_extreme_targets_are_finite() -> None:
    """A single pixel the quarter-size grid does not see, nothing valid at all, and huge logits."""
    single = random_target(1)
    single.layers[:] = 0
    single.layers[0, 3, 3] = 1
    nothing = random_target(2)
    nothing.valid[:] = False
    classes = torch.randn(2, 6, 4, requires_grad=True)
    masks = (1e4 * torch.randn(2, 6, 8, 8)).requires_grad_()
    for resolution in RESOLUTIONS:
        criterion = build_criterion(CONFIG.replace(loss_resolution=resolution))
        loss = criterion(Prediction(classes, masks), [single, nothing])["total"]
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(masks.grad).all()


def test_mask_resolution_agrees_where_targets_are_coarse() -> None:
    """On targets made of 4 × 4 blocks with smooth logits both resolutions measure nearly the same thing."""
    coarse = torch.zeros(1, 8, 8)
    coarse[0, 2:6, 2:6] = 1
    target = Target.from_masks(
        torch.zeros(1, dtype=torch.int64),
        F.interpolate(coarse[None], scale_factor=4)[0].bool(),
        torch.ones(32, 32, dtype=torch.bool),
    )
    prediction = Prediction(torch.zeros(1, 1, 4), (coarse * 8 - 4)[None])
    fine, rough = (build_criterion(CONFIG.replace(loss_resolution=r))(prediction, [target]) for r in ("input", "mask"))
    assert abs(float(fine["dice"] - rough["dice"])) < 0.1


def test_permuted_targets_cost_the_same() -> None:
    prediction, target = random_prediction(batch=1), random_target(4)
    order = torch.randperm(4)
    shuffled = Target.from_masks(target.labels[order], target.masks[order], target.valid)
    criterion = build_criterion(CONFIG)
    torch.testing.assert_close(criterion(prediction, [target])["total"], criterion(prediction, [shuffled])["total"])


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the input's"):
        build_criterion(CONFIG)(random_prediction(batch=1), [random_target(1, size=64)])


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_a_thousand_objects_in_a_crop(resolution: str, caplog: pytest.LogCaptureFixture) -> None:
    """Ten times the queries, in 512 x 512 px: said once, with counts, and the gradients are finite."""
    cell = torch.arange(512) // 16
    numbers = (cell[:, None] * 32 + cell).int() + 1  # 1024 squares
    numbers[numbers > 1000] = 0
    target = Target(torch.zeros(1000, dtype=torch.int64), numbers[None], torch.ones(512, 512, dtype=torch.bool))
    classes, masks = torch.randn(1, 100, 4, requires_grad=True), torch.randn(1, 100, 128, 128, requires_grad=True)
    criterion = build_criterion(CONFIG.replace(loss_resolution=resolution, num_points=2000))
    for _ in range(2):
        criterion(Prediction(classes, masks), [target])["total"].backward()
    assert torch.isfinite(classes.grad).all() and torch.isfinite(masks.grad).all()
    (record,) = caplog.records
    assert "1000 objects" in record.message and "100 queries" in record.message


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_padding_never_counts(resolution: str) -> None:
    """A picture padded to twice its size has the loss of the picture, whatever the model says about the padding."""
    torch.manual_seed(0)
    config = CONFIG.replace(loss_resolution=resolution, num_points=20_000)  # three quarters of them uncertain ones
    target = random_target(3)
    prediction = random_prediction(batch=1, layers=1)
    padded = Target(target.labels, F.pad(target.layers, (0, 32, 0, 32)), F.pad(target.valid, (0, 32, 0, 32)))
    masks = F.pad(prediction.mask_logits.detach(), (0, 8, 0, 8))
    masks[..., 9:, :], masks[..., 9:] = 50.0, 50.0  # upsampling reaches half a cell into the picture
    masks[..., 8, :9], masks[..., :9, 8] = masks[..., 7, :9], masks[..., :9, 7]
    criterion = build_criterion(config)
    criterion.class_loss = lambda *args: torch.zeros(())
    small = criterion(prediction, [target])["total"]
    large = criterion(Prediction(prediction.class_logits, masks), [padded])["total"]
    # Points are drawn anew over four times the ground; whole masks are the same to the last digits.
    torch.testing.assert_close(small, large, rtol=0.03 if resolution == "points" else 1e-4, atol=0)
