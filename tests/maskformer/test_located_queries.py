import pytest
import torch

from maskformer.backbones import load_backbone_weights
from maskformer.config import ModelConfig
from maskformer.inference import instances
from maskformer.located_queries import NOT_A_PEAK, ellipses
from maskformer.losses import build_criterion
from maskformer.map_losses import bumps, centre_loss, semantic_loss
from maskformer.masks import MaskSet
from maskformer.model import MaskFormer, param_groups
from maskformer.position import pixel_position
from maskformer.targets import Target

TINY = ModelConfig(
    backbone="resnet18",
    query_decoder="located",
    mask_prior="ellipse",
    num_classes=2,
    num_queries=12,
    hidden_dim=32,
    pixel_dim=32,
    mask_dim=16,
    num_heads=4,
    decoder_layers=2,
    feedforward_dim=48,
    dropout=0.0,
    loss_resolution="mask",
    mask_loss="bce",
    mask_weight=5.0,
    dice_weight=5.0,
    no_object_weight=0.5,
)


def boxes(*placed: tuple[int, slice, slice], size: int = 64) -> Target:
    masks = torch.zeros(len(placed), size, size, dtype=torch.bool)
    for mask, (_, rows, columns) in zip(masks, placed, strict=True):
        mask[rows, columns] = True
    labels = torch.tensor([label for label, _, _ in placed], dtype=torch.int64)
    return Target.from_masks(labels, masks, torch.ones(size, size, dtype=torch.bool))


def test_shapes_and_maps() -> None:
    model = MaskFormer(TINY)
    out = model.train()(torch.randn(2, 3, 64, 96))
    assert len(out.auxiliary) == 2  # the queries as they start, and the first layer
    for layer in (out, *out.auxiliary):
        assert layer.class_logits.shape == (2, 12, 3)
        assert layer.mask_logits.shape == (2, 12, 16, 24)
    assert out.maps is not None
    assert out.maps.semantic.shape == (2, 2, 16, 24)
    assert out.maps.centres.shape == (2, 2, 8, 12)
    with torch.no_grad():
        quiet = model.eval()(torch.randn(1, 3, 64, 64))
    assert quiet.maps is None and quiet.auxiliary == ()
    assert quiet.class_logits.shape == (1, 12, 3)


def test_fewer_places_than_queries() -> None:
    model = MaskFormer(TINY.replace(query_stride=32)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).class_logits.shape == (1, 4, 3)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_centres_lie_on_the_map_that_was_asked_for(stride: int) -> None:
    model = MaskFormer(TINY.replace(query_stride=stride))
    out = model.train()(torch.randn(1, 3, 64, 64))
    assert out.maps is not None and out.maps.centres.shape == (1, 2, 64 // stride, 64 // stride)
    assert out.mask_logits.shape[-2:] == (16, 16)
    losses = build_criterion(model.config)(out, [boxes((0, slice(8, 24), slice(8, 24)))])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.query_decoder.candidates.parameters())


def test_a_finer_map_tells_close_centres_apart() -> None:
    """Two nuclei of 8 px, 10 px from middle to middle, are two maxima at stride 4 and one at stride 8."""
    close = boxes((0, slice(24, 32), slice(20, 28)), (0, slice(24, 32), slice(30, 38)), size=64)
    for stride, maxima in ((4, 2), (8, 1)):
        size = (64 // stride, 64 // stride)
        tilted = bumps(close, 2, size)[None].logit(1e-4) - 0.01 * torch.arange(size[1])  # no network draws a tie
        _, start = MaskFormer(TINY.replace(query_stride=stride)).query_decoder.choose(tilted)
        assert int((start[0, :, 0] > 0).sum()) == maxima


def test_local_maxima_come_first_and_the_rest_is_no_object() -> None:
    decoder = MaskFormer(TINY).query_decoder
    centres = torch.full((1, 2, 8, 8), -6.0) - 0.01 * torch.arange(64).view(8, 8)
    centres[0, 0, 2, 2], centres[0, 0, 2, 3], centres[0, 1, 6, 6] = 5.0, 4.0, 3.0
    chosen, start = decoder.choose(centres)
    assert chosen[0, :2].tolist() == [2 * 8 + 2, 6 * 8 + 6]
    torch.testing.assert_close(start[0, 0], torch.tensor([5.0, NOT_A_PEAK, 0.0]))
    neighbour = chosen[0].tolist().index(2 * 8 + 3)
    assert start[0, neighbour].tolist() == [NOT_A_PEAK, NOT_A_PEAK, 0.0]


def test_ellipse() -> None:
    middle, radii = torch.tensor([[[10.0, 5.0]]]), torch.tensor([[[6.0, 3.0]]])
    inside = ellipses(middle, radii, torch.full((1, 1), 4.0), (12, 20))[0, 0] > 0
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(20) + 0.5, indexing="ij")
    assert torch.equal(inside, ((x - 10) / 6) ** 2 + ((y - 5) / 3) ** 2 < 1)


def test_a_mask_starts_round_its_own_place() -> None:
    model = MaskFormer(TINY).eval()
    decoder = model.query_decoder
    for layer in (decoder.mask_embed.layers[-1],):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    places = torch.tensor([[[3.0, 4.0], [12.0, 9.0]]])
    state, features = torch.randn(1, 2, 32), torch.randn(1, 16, 16, 16)
    masks = decoder._predict(state, features, torch.zeros(1, 2, 3), places).mask_logits[0]
    for mask, (x, y) in zip(masks, places[0], strict=True):
        rows, columns = (mask == mask.max()).nonzero()[0] + 0.5
        assert abs(rows - y) <= 1 and abs(columns - x) <= 1


def test_distances_are_in_pixels() -> None:
    """The encoding of a place does not depend on the size of the picture."""
    small = pixel_position(4, 4, 32, 8, torch.device("cpu"))
    large = pixel_position(9, 7, 32, 8, torch.device("cpu"))
    torch.testing.assert_close(large[..., :4, :4], small)


def test_bumps_mark_the_middle_of_every_object() -> None:
    target = boxes((0, slice(0, 16), slice(8, 32)), (1, slice(40, 44), slice(40, 44)), (1, slice(0, 64), slice(0, 64)))
    heat = bumps(target, 2, (8, 8))
    assert (heat[0] == 1).nonzero().tolist() == [[1, 2]]
    assert (heat[1] == 1).nonzero().tolist() == [[4, 4], [5, 5]]
    assert heat[0, 1, 3] > heat[0, 1, 4] > 0
    target.valid[:] = False
    assert bumps(target, 2, (8, 8)).max() == 0
    assert bumps(boxes(), 2, (8, 8)).shape == (2, 8, 8)


def test_ignored_pixels_leave_the_maps() -> None:
    target = boxes((0, slice(0, 32), slice(0, 64)))
    target.valid[:, 32:] = False
    repainted = Target.from_masks(target.labels, target.masks ^ ~target.valid, target.valid)
    fine, coarse = torch.randn(1, 2, 16, 16), torch.randn(1, 2, 8, 8)
    other_fine, other_coarse = fine.clone(), coarse.clone()
    other_fine[..., 8:] = 9.0
    other_coarse[..., 4:] = 9.0
    one = torch.ones(())
    torch.testing.assert_close(semantic_loss(fine, [target]), semantic_loss(other_fine, [repainted]))
    torch.testing.assert_close(centre_loss(coarse, [target], one), centre_loss(other_coarse, [repainted], one))


def test_perfect_maps_cost_almost_nothing() -> None:
    target = boxes((0, slice(0, 32), slice(0, 64)), (1, slice(32, 64), slice(32, 64)))
    wanted = torch.nn.functional.avg_pool2d(target.masks.float(), 4)[None]
    assert semantic_loss(60 * wanted - 30, [target]) < 1e-3
    centres = 60 * (bumps(target, 2, (8, 8)) == 1).float()[None] - 30
    assert centre_loss(centres, [target], torch.ones(())) < 1e-3
    assert centre_loss(-centres, [target], torch.ones(())) > 10


@pytest.mark.parametrize("objects", [0, 1, 40])
def test_every_parameter_learns_and_nothing_is_infinite(objects: int) -> None:
    model, criterion = MaskFormer(TINY).train(), build_criterion(TINY)
    placed = [(n % 2, slice(n, n + 9), slice(n, n + 9)) for n in range(objects)]
    losses = criterion(model(torch.randn(2, 3, 64, 64)), [boxes(*placed), boxes()])
    losses["total"].backward()
    assert {"semantic", "centres", "class", "mask.0"} < set(losses)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_overfits_one_batch() -> None:
    """One picture of three discs, two of them overlapping: every one is found with an IoU of at least 0.95."""
    torch.manual_seed(0)
    config = TINY.replace(num_classes=1, freeze_batch_norm=False, prior_radius=16.0)
    model, criterion = MaskFormer(config).train(), build_criterion(config)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    discs = torch.stack(
        [(y - a).square() + (x - b).square() < r * r for a, b, r in ((18, 18, 13), (26, 36, 14), (48, 16, 11))]
    )
    target = Target.from_masks(torch.zeros(3, dtype=torch.int64), discs, torch.ones(64, 64, dtype=torch.bool))
    picture = 0.3 * torch.randn(1, 3, 64, 64) + 2 * discs.float().sum(0)
    optimizer = torch.optim.AdamW(param_groups(model, 2e-3, 0.5), weight_decay=0)
    for _ in range(60):
        optimizer.zero_grad()
        criterion(model(picture), [target])["total"].backward()
        optimizer.step()
    with torch.no_grad():
        prediction = model(picture)  # in training mode: one picture says little about batch statistics
    (found,) = instances(prediction, (64, 64))
    overlap = found.iou(MaskSet.from_dense(discs.numpy(), [0, 0, 0]))
    assert len(found) == 3
    assert (overlap.max(0) >= 0.95).all(), overlap


def test_backbone_weights_fit_as_everywhere() -> None:
    model = MaskFormer(TINY)
    account = load_backbone_weights(model, model.backbone.network.state_dict())
    assert not account.missing and not account.unexpected


def test_trains_under_bf16_autocast_and_channels_last() -> None:
    torch.manual_seed(0)
    model, criterion = MaskFormer(TINY).train().to(memory_format=torch.channels_last), build_criterion(TINY)
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    target = boxes((1, slice(8, 32), slice(8, 32)))
    exact = criterion(model(x), [target])["total"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = criterion(model(x), [target])["total"]
    rough.backward()
    assert rough.dtype == torch.float32
    assert abs(float(rough.detach() / exact.detach()) - 1) < 0.1
