"""A network before its first step depends on the seed, and on nothing that happened before."""

import pytest
import torch

from pipelines.config import ModelOptions
from pipelines.starting import build
from tests.models import TINY, adapter


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(preset="mfenet-efficientnet-lite0", overrides=TINY),
        ModelOptions(preset="unet-efficientnet-lite0"),
    ],
    ids=["mask model", "per pixel"],
)
def test_equal_seeds_give_equal_weights(options: ModelOptions) -> None:
    def started(seed: int) -> torch.Tensor:
        _, model = build(options, adapter(), seed)
        return torch.cat([value.flatten().double() for value in model.state_dict().values()])

    torch.manual_seed(5)
    first, after = started(1), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1)), "nobody else's random numbers change"
    assert torch.equal(first, started(1))
    assert not torch.equal(first, started(2))
