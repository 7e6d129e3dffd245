"""How far are these scenes from what a model knows? Bands, features, how sure it is and how steady, and one number.

The reference needs no training data: batch norms carry mean and variance of every feature they saw in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from maskformer import inference
from pipelines.adaptation.norm_statistics import batch_norms, distance, moments
from pipelines.adaptation.target import Effort, Target
from pipelines.assembly import DEFAULT_SEMANTIC
from pipelines.bundle import Bundle

BINS = 20
CROPS = 32

Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """The same ground seen another way, (..., H, W), and the way back."""

    there: Turn
    back: Turn


MIRROR = View(lambda x: x.flip(-1), lambda x: x.flip(-1))
UPSIDE_DOWN = View(lambda x: x.flip(-2), lambda x: x.flip(-2))
QUARTER_TURN = View(lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(-1, (-2, -1)))


@dataclass(frozen=True)
class Moved:
    """layers: distance by layer, shallow to deep, in trained deviations. bands: (shift, spread) at the input."""

    layers: dict[str, float]
    bands: dict[str, tuple[float, float]]

    @property
    def distance(self) -> float:
        return float(np.mean(list(self.layers.values()))) if self.layers else self.outer

    @property
    def farthest(self) -> float:
        """Of the layer that moved most."""
        return max(self.layers.values()) if self.layers else self.outer

    @property
    def outer(self) -> float:
        """Of the input bands alone."""
        return float(np.mean([np.hypot(shift, spread - 1) for shift, spread in self.bands.values()]))


@dataclass(frozen=True)
class Drift(Moved):
    """confidence: histogram over 0..1 of the surest class's probability, a share of pixels a bin.

    unsteady: how much of the answer changes when the picture is mirrored or turned, 0 (nothing) to 1.
    """

    confidence: tuple[float, ...]
    unsteady: float

    @property
    def number(self) -> float:
        """How much quality to expect lost, 0 (nothing) to 1: 1 - (1 - unsteady) / (1 + farthest).

        Either alone is enough: a model that sees buildings everywhere is steady, and features may stay where they were
        under a blur. Of some seventy candidates the one that ordered losses best on 25 shifts (`benchmarks/drift.py`).
        """
        return float(1 - (1 - self.unsteady) / (1 + self.farthest))

    @property
    def mean_confidence(self) -> float:
        centres = (np.arange(BINS) + 0.5) / BINS
        return float(np.dot(self.confidence, centres))

    def summary(self) -> dict[str, Any]:
        """The numbers without the tables, the first the one that counts."""
        return {
            "number": round(self.number, 4),
            "farthest": round(self.farthest, 4),
            "distance": round(self.distance, 4),
            "unsteady": round(self.unsteady, 4),
            "mean_confidence": round(self.mean_confidence, 4),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.summary(),
            "layers": {name: round(value, 4) for name, value in self.layers.items()},
            "bands": {n: {"shift": round(a, 3), "spread": round(b, 3)} for n, (a, b) in self.bands.items()},
            "confidence": [round(share, 4) for share in self.confidence],
        }


def drift(
    model: nn.Module,
    adapter: DomainAdapter,
    scenes: Sequence[str],
    count: int = CROPS,
    threshold: float = DEFAULT_SEMANTIC,
    seed: int = 0,
) -> Drift:
    """Measure `scenes` through `count` crops. threshold: the bundle's `semantic`, from which a pixel is given a class.

    Raises InputError where a scene cannot be opened.
    """
    return measure(model, adapter, Target(tuple(scenes), Effort(crops=count, seed=seed)).crops(adapter), threshold)


def drift_of(bundle: Bundle, scenes: Sequence[str], count: int = CROPS) -> Drift:
    """The same for a bundle's model, with its own threshold."""
    return drift(bundle.build(), bundle.adapter, scenes, count, bundle.thresholds.get("semantic", DEFAULT_SEMANTIC))


@torch.no_grad()
def measure(
    model: nn.Module, adapter: DomainAdapter, images: Sequence[Tensor], threshold: float = DEFAULT_SEMANTIC
) -> Drift:
    """The same for crops (C, s, s) that are at hand, normalised by the adapter."""
    found = moved(model, adapter, images)
    counts = np.zeros(BINS)
    changes = []
    for image in images:
        answer = _probabilities(model, image)
        counts += np.histogram(answer.amax(0).numpy(), BINS, (0, 1))[0]
        changes += [
            _agreement(answer, view.back(_probabilities(model, view.there(image))), adapter, threshold)
            for view in views(adapter)
        ]
    return Drift(found.layers, found.bands, tuple(counts / max(counts.sum(), 1)), _unsteady(np.array(changes)))


@torch.no_grad()
def moved(model: nn.Module, adapter: DomainAdapter, images: Sequence[Tensor]) -> Moved:
    """Bands and features of crops (C, s, s) against those of training; one forward pass a crop."""
    model.eval()
    norms = batch_norms(model)
    names = {id(part): name for name, part in model.named_modules()}
    layers = {names[id(norm)]: distance(norm, *one) for norm, one in zip(norms, moments(model, norms, images))}
    planes = torch.cat([image.flatten(1).cpu() for image in images], 1)
    shifts, spreads = planes.mean(1).tolist(), planes.std(1).tolist()
    channels = [name for _ in range(len(planes) // len(adapter.channels)) for name in adapter.channels.names]
    return Moved(layers, dict(zip(channels, zip(shifts, spreads, strict=True), strict=True)))


def views(adapter: DomainAdapter) -> tuple[View, ...]:
    """What must not change the answer: from above there is no up; in photos and studies there is: a mirror only."""
    upright = adapter.photos or adapter.volume is not None
    return (MIRROR,) if upright else (MIRROR, UPSIDE_DOWN, QUARTER_TURN)


def _agreement(one: Tensor, other: Tensor, adapter: DomainAdapter, threshold: float) -> tuple[float, ...]:
    """Shared and united pixels of two answers (K, h, w) as they are drawn, and the same of their probabilities."""
    a, b = (_drawn(answer, adapter, threshold) for answer in (one, other))
    return (
        float((a & b).sum()),
        float((a | b).sum()),
        float(torch.minimum(one, other).sum()),
        float(torch.maximum(one, other).sum()),
    )


def _drawn(answer: Tensor, adapter: DomainAdapter, threshold: float) -> Tensor:
    """(K, h, w) bool, the classes a pixel is given: the surest where only one may be, none below the threshold."""
    drawn = answer >= (0 if adapter.covers else threshold)
    return drawn & (answer == answer.amax(0)) if adapter.covers or adapter.overlap == "exclusive" else drawn


def _unsteady(changes: np.ndarray) -> float:
    """1 - IoU of the answers, all crops and views pooled; of the probabilities where nothing was found at all."""
    shared, united, least, most = changes.sum(0)
    if united == 0:
        shared, united = least, most
    return float(1 - shared / united) if united > 0 else 0.0


def _probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """(K, h, w) of one picture."""
    return inference.semantic(model(image[None]), (image.shape[-2], image.shape[-1]))[0].clamp(0, 1).cpu()
