"""Several processes: every parameter always has a gradient, and the gradient is that of the whole batch.

DDP without `find_unused_parameters` waits for ever for a parameter that has none.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from maskformer.model import build_model
from maskformer.targets import Target
from tests.maskformer.families import FAMILIES, SIDE, learner

WORLD = 2


def target(objects: int, valid: bool = True) -> Target:
    """The first `objects` of three stripes; the first two overlap."""
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    masks[0, :24], masks[1, 16:40], masks[2, 44:] = True, True, True
    return Target.from_masks(torch.arange(objects) % 2, masks[:objects], torch.full((SIDE, SIDE), valid))


@pytest.mark.parametrize("family", [*FAMILIES, "located"])
def test_every_parameter_has_a_gradient_where_there_is_nothing_to_see(family: str) -> None:
    torch.manual_seed(0)
    located = {"hidden_dim": 64, "pixel_dim": 32, "dropout": 0.0, "num_classes": 2}
    preset = "maskformer-efficientnet-lite0-small"
    config = ModelConfig.from_preset(preset, **located) if family == "located" else learner(family)
    model, criterion = build_model(config).train(), build_criterion(config)
    for targets in ([target(0), target(0)], [target(2, valid=False), target(0)]):
        model.zero_grad(set_to_none=True)
        losses = criterion(model(torch.randn(2, 3, SIDE, SIDE)), targets)
        losses["total"].backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def whole_batch() -> tuple[ModelConfig, nn.Module, Tensor, list[Target]]:
    """Four pictures: five objects in the first process' two, none in the second's."""
    torch.manual_seed(0)
    # The class loss is a mean over each process' own queries, as published; and points would be drawn anew.
    config = learner("mask2former-swin", class_weight=0.0, loss_resolution="input")
    counts = (3, 2, 0, 0)
    return config, build_model(config).train(), torch.randn(4, 3, SIDE, SIDE), [target(count) for count in counts]


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    config, model, pictures, targets = whole_batch()
    own = slice(2 * rank, 2 * rank + 2)
    criterion = build_criterion(config)
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # the second step finds out whether the first left a parameter unreduced
        model.zero_grad(set_to_none=True)
        criterion(parallel(pictures[own]), targets[own])["total"].backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=WORLD)
    config, model, pictures, targets = whole_batch()
    build_criterion(config)(model(pictures), targets)["total"].backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    assert wanted["query_decoder.query_feat.weight"].abs().max() > 1e-2
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3)
