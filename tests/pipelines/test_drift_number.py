"""Drift's number: steady where the answer turns with the picture and unsteady where it does not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters.imagery import cityscapes
from maskformer.prediction import DensePrediction
from pipelines.drift.features import MIRROR, Drift, drift, drift_of, measure, moved, views
from tests.models import adapter


class Bright(nn.Module):
    """A pixel is of the class where it is bright; with `slope`, the more so the farther right it lies."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.slope = slope

    def forward(self, x: Tensor) -> DensePrediction:
        seen = self.norm(x) + self.slope * torch.linspace(-1, 1, x.shape[-1])
        return DensePrediction(torch.cat((seen, torch.zeros_like(seen)), 1))


def pictures(shift: float = 0.0) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(1, 64, 64, generator=random) + shift for _ in range(4)]


def test_what_turns_with_the_picture_is_steady() -> None:
    found = measure(Bright(), adapter(), pictures(3.0))
    assert found.unsteady == pytest.approx(0, abs=1e-6)
    assert found.farthest == found.distance == pytest.approx(3, abs=0.1), "one layer, three deviations off"
    assert found.number == pytest.approx(0.75, abs=0.02), "steady or not, its features are far"
    assert measure(Bright(), adapter(), pictures()).number < 0.05


def test_what_depends_on_the_side_is_not() -> None:
    little, much = (measure(Bright(slope), adapter(), pictures(0.5)) for slope in (0.3, 3.0))
    assert 0 < little.unsteady < 0.3 < 0.45 < much.unsteady < 0.6, "upside down is the same here, the others are not"
    assert little.number < much.number == pytest.approx(1 - (1 - much.unsteady) / (1 + much.farthest))


def test_where_nothing_is_found_the_probabilities_tell() -> None:
    """Else the worst of shifts, under which a model is blind, would count as steady."""
    blind = measure(Bright(1.0), adapter(), pictures(-9.0), threshold=0.9)
    assert blind.unsteady > 0.2 and blind.number > 0.9


def test_photos_and_studies_have_an_up() -> None:
    assert len(views(adapter())) == 3 and views(cityscapes()) == (MIRROR,)
    scan = replace(adapter(), photos=True)
    above = measure(Bright(), scan, pictures())
    assert above.unsteady == pytest.approx(0, abs=1e-6)


def test_classes_that_cover_the_plane_have_no_threshold() -> None:
    photos = cityscapes()
    several = [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))]

    class Uniform(nn.Module):
        """The first classes are the bands; the others are as likely as each other, all under any usual threshold."""

        def forward(self, x: Tensor) -> DensePrediction:
            rest = torch.full((len(x), len(photos.classes) - 3 + 1, *x.shape[-2:]), -1.0)
            return DensePrediction(torch.cat((0.1 * x, rest), 1))

    found = measure(Uniform(), photos, several, threshold=0.9)
    assert found.unsteady == pytest.approx(0, abs=1e-6) and found.layers == {}
    assert found.farthest == found.outer, "without batch norms the input's bands stand for the features"


def test_moved_is_the_same_without_the_answers() -> None:
    network, crops = Bright(), pictures(1.0)
    plain, whole = moved(network, adapter(), crops), measure(network, adapter(), crops)
    assert isinstance(whole, Drift) and (plain.layers, plain.bands) == (whole.layers, whole.bands)
    assert {"number", "farthest", "distance", "unsteady"} <= set(whole.summary())


def test_the_bundles_threshold_decides_what_is_an_answer(make_geotiff) -> None:
    values = np.random.default_rng(0).normal(0, 1, (1, 96, 96)).astype(np.float32)
    scene = str(make_geotiff(values, name="scene.tif"))
    easy, strict = ({"semantic": 0.1}, {"semantic": 0.9})
    found = [
        drift_of(
            SimpleNamespace(build=lambda: Bright(1.0), adapter=adapter(tile=64, tile_overlap=16), thresholds=one),
            [scene],
            4,
        )
        for one in (easy, {}, strict)
    ]
    assert found[0].unsteady < found[1].unsteady < found[2].unsteady, "the surer a pixel must be, the fewer agree"
    assert found[1] == drift(Bright(1.0), adapter(tile=64, tile_overlap=16), [scene], 4)
