"""One graph, no breaks: what torch.compile and CUDA graphs need of a forward."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.maskformer.families import FAMILIES, build, pictures


def check(family: str, backend: str, tolerance: float) -> None:
    model, image = build(family), pictures()
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            wanted = model(image)
            got = torch.compile(model, fullgraph=True, backend=backend)(image)
    finally:
        torch._dynamo.reset()
    assert type(got) is type(wanted)
    for ours, eager in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours, eager, atol=tolerance, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_is_one_graph(family: str) -> None:
    check(family, "eager", 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("family", ["maskformer-resnet"])  # Swin: see docs/export.md
def test_inductor_computes_the_same(family: str) -> None:
    check(family, "inductor", 1e-4)
