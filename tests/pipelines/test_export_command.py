"""`maskbridge export`: a bundle's forward in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import cli
from pipelines.bundle import load_bundle
from tests.models import adapter, tiny_bundle


@pytest.mark.slow
def test_exported_bundle_computes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle = tiny_bundle(tmp_path / "bundle", adapter(channels=("red", "green")))
    file = tmp_path / "model.onnx"
    assert cli.run(["export", str(bundle), "--onnx", str(file), "--size", "96"]) == 0, capsys.readouterr().err
    image = torch.randn(1, 2, 64, 128)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = load_bundle(bundle).build()(image)
    for got, eager in zip(session.run(None, {"image": image.numpy()}), wanted[:2], strict=True):
        np.testing.assert_allclose(got, eager.numpy(), atol=1e-4, rtol=1e-4)


def test_a_size_that_does_not_divide_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", adapter())
    assert cli.run(["export", str(bundle), "--onnx", str(tmp_path / "m.onnx"), "--size", "100"]) == 2
    assert "multiples of 32" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()
