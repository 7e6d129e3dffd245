"""What tells objects apart besides their masks goes from the model to the stitcher, object by object."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions
from pipelines.grid import Grid
from pipelines.predictor import Predictor, object_traits
from pipelines.stitching import Stitcher
from tests.models import adapter, tiny_bundle


def predictor(folder: Path, **options) -> Predictor:
    bundle = load_bundle(tiny_bundle(folder, adapter()))
    settled = PredictOptions(tile=64, overlap=16, score=0.0, device="cpu", precision="fp32", task="instance", **options)
    return Predictor(bundle.build(), bundle.adapter, settled)


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_every_object_has_the_embedding_of_its_query(tmp_path: Path, tta: str) -> None:
    model = predictor(tmp_path / "bundle", tta=tta)
    picture = np.random.default_rng(0).random((len(model.adapter.channels), 64, 64)).astype(np.float32)
    valid = np.ones((64, 64), bool)
    valid[:, :20] = False  # may take all pixels of some objects
    (result,) = model([(picture, valid)])
    assert len(result.objects) and result.traits is not None
    assert result.traits.shape == (len(result.objects), 16) and result.traits.dtype == np.float16
    with torch.inference_mode():
        said = model.model(torch.from_numpy(model.adapter.inputs(picture, valid))[None])
    own = object_traits(said, [np.arange(said.class_logits.shape[1])])[0]
    probabilities = said.class_logits.softmax(-1)[0, :, :-1].numpy()
    for trait, label, score in zip(result.traits, result.objects.labels, result.objects.scores, strict=True):
        (query,) = np.flatnonzero((own == trait).all(axis=1))
        assert score <= probabilities[query, label] + 1e-4, "a score is the class probability times the mask's mean"


def test_without_embeddings_there_are_class_probabilities(tmp_path: Path) -> None:
    model = predictor(tmp_path / "bundle")
    picture = torch.rand(1, len(model.adapter.channels), 64, 64)
    with torch.inference_mode():
        said = model.model(picture)._replace(mask_embed=None)
    (traits,) = object_traits(said, [np.array([2, 2, 0])])
    np.testing.assert_array_equal(traits[0], traits[1])
    assert traits.shape == (3, said.class_logits.shape[-1])
    np.testing.assert_allclose(traits.sum(axis=1), 1, atol=2e-3)


def test_the_stitcher_takes_them(tmp_path: Path) -> None:
    model = predictor(tmp_path / "bundle")
    grid = Grid((64, 112), 64, 16)
    stitcher, count = Stitcher(grid), 0
    for tile in grid:
        picture = np.random.default_rng(1).random((len(model.adapter.channels), 64, 64)).astype(np.float32)
        (result,) = model([(picture, np.ones((64, 64), bool))])
        count += len(stitcher.add(tile, result.objects, result.traits))
    assert count + len(stitcher.finish())
