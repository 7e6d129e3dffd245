"""How far are these scenes from what a model knows? Bands, features, how sure it is and how steady, and one number.

The reference needs no training data: batch norms carry mean and variance of every feature they saw in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from maskformer import inference
from pipelines.adaptation.norm_statistics import batch_norms, distance, moments
from pipelines.adaptation.target import Effort, Target

BINS = 20
CROPS = 32


@dataclass(frozen=True)
class Drift:
    """layers: distance by layer, shallow to deep, in trained deviations. bands: (shift, spread) at the input.

    confidence: histogram over 0..1 of the surest class's probability, a share of pixels a bin.
    unsteady: how much the answer changes when the picture is mirrored, 0 (not at all) to 1.
    """

    layers: dict[str, float]
    bands: dict[str, tuple[float, float]]
    confidence: tuple[float, ...]
    unsteady: float

    @property
    def number(self) -> float:
        """How much quality to expect lost: features' distance and unsteadiness, geometric mean; 0 on the training data.

        Of a few candidates the one that ordered losses best on haze, gain and noise (`python -m benchmarks drift`).
        """
        return float(np.sqrt(max(self.distance, 0) * max(self.unsteady, 0)))

    @property
    def distance(self) -> float:
        return float(np.mean(list(self.layers.values()))) if self.layers else self.outer

    @property
    def outer(self) -> float:
        """Of the input bands alone."""
        return float(np.mean([np.hypot(shift, spread - 1) for shift, spread in self.bands.values()]))

    @property
    def mean_confidence(self) -> float:
        centres = (np.arange(BINS) + 0.5) / BINS
        return float(np.dot(self.confidence, centres))

    def summary(self) -> dict[str, Any]:
        """The numbers without the tables, the first the one that counts."""
        return {
            "number": round(self.number, 4),
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


def drift(model: nn.Module, adapter: DomainAdapter, scenes: Sequence[str], count: int = CROPS, seed: int = 0) -> Drift:
    """Measure `scenes` through `count` crops. Raises InputError where a scene cannot be opened."""
    return measure(model, adapter, Target(tuple(scenes), Effort(crops=count, seed=seed)).crops(adapter))


@torch.no_grad()
def measure(model: nn.Module, adapter: DomainAdapter, images: Sequence[Tensor]) -> Drift:
    """The same for crops (C, s, s) that are at hand, normalised by the adapter."""
    model.eval()
    norms = batch_norms(model)
    names = {id(part): name for name, part in model.named_modules()}
    layers = {names[id(norm)]: distance(norm, *found) for norm, found in zip(norms, moments(model, norms, images))}
    counts = np.zeros(BINS)
    unsteady = []
    for image in images:
        one, other = _probabilities(model, image), _probabilities(model, image.flip(-1)).flip(-1)
        counts += np.histogram(one.amax(0).numpy(), BINS, (0, 1))[0]
        unsteady.append((float(torch.minimum(one, other).sum()), float(torch.maximum(one, other).sum())))
    shared, united = np.sum(unsteady, 0)
    planes = torch.cat([image.flatten(1).cpu() for image in images], 1)
    shifts, spreads = planes.mean(1).tolist(), planes.std(1).tolist()
    channels = [name for _ in range(len(planes) // len(adapter.channels)) for name in adapter.channels.names]
    bands = dict(zip(channels, zip(shifts, spreads, strict=True), strict=True))
    steady = shared / united if united > 0 else 1.0
    return Drift(layers, bands, tuple(counts / max(counts.sum(), 1)), float(1 - steady))


def _probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """(K, h, w) of one picture."""
    return inference.semantic(model(image[None]), (image.shape[-2], image.shape[-1]))[0].clamp(0, 1).cpu()
