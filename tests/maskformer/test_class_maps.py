"""Class maps drawn block by block: the published sums to within what may be left out, and little is drawn."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer import class_maps
from maskformer.class_maps import LEFT_OUT, class_map


def spots(queries: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What trained queries look like: class probabilities (Q, 4), half of them nothing, and a spot of logits each."""
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    at = torch.rand(queries, 2, 1, 1, generator=draw) * torch.tensor(size).view(2, 1, 1)
    masks = 16 * torch.exp(-((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2) / 20) - 11
    logits = torch.randn(queries, 5, generator=draw)
    logits[: queries // 2, -1] += 8
    return logits.softmax(-1)[:, :-1], masks


def in_full(classes: Tensor, masks: Tensor, combine: str) -> Tensor:
    size = (4 * masks.shape[1], 4 * masks.shape[2])
    m = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    each = classes[:, :, None, None] * m[:, None]
    return each.sum(0) if combine == "sum" else 1 - (1 - each).prod(0)


@pytest.mark.parametrize("combine", ["sum", "noisy-or"])
@pytest.mark.parametrize("size", [(48, 48), (16, 50), (5, 3), (33, 17)])
def test_no_more_is_lost_than_may_be_left_out(size: tuple[int, int], combine: str) -> None:
    classes, masks = spots(40, size)
    crop = (4 * size[0] - 3, 2 * size[1] + 1)
    got, full = class_map(classes, masks, crop, combine), in_full(classes, masks, combine)
    assert got.shape == (4, *crop)
    assert (got - full[:, : crop[0], : crop[1]]).abs().max() <= LEFT_OUT + 1e-5


def test_weak_queries_that_matter_together_are_drawn() -> None:
    """A hundred times a hair is half a head."""
    classes, masks = torch.full((200, 1), LEFT_OUT / 2), torch.full((200, 8, 8), 20.0)
    got = class_map(classes, masks, (32, 32), "sum")
    torch.testing.assert_close(got, torch.full_like(got, 100 * LEFT_OUT), atol=LEFT_OUT, rtol=0)
    assert (got < 100 * LEFT_OUT).all(), "but one or two of them were left out"


def test_trained_queries_are_drawn_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    plain = class_maps._upsampled
    monkeypatch.setattr(class_maps, "_upsampled", lambda *a: drawn.append(plain(*a)) or drawn[-1])
    classes, masks = spots(100, (128, 128))
    class_map(classes, masks, (512, 512), "sum")
    assert sum(m.numel() for m in drawn) < 0.2 * 100 * 512 * 512


def test_a_picture_of_nothing() -> None:
    assert not class_map(torch.zeros(3, 2), torch.full((3, 4, 4), 9.0), (16, 16), "sum").any()
