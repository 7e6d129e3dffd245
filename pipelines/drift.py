"""How far are these scenes from what a model knows? Bands, features, confidence, and one number.

The reference needs no training data: batch norms carry mean and variance of every feature they saw in training. The
number is the mean over layers and channels of the distance between that Gaussian and the scenes' own
(2-Wasserstein, in the trained standard deviations). A network without batch norms is measured at its input bands only.
How well the number orders losses of quality has not been measured on a trained model yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from maskformer import inference
from pipelines.adaptation.norm_statistics import batch_norms
from pipelines.adaptation.target import Effort, Target, crops

BINS = 20
CROPS = 32
MOST = 10.0  # of one channel's distance: a feature that was all but constant in training must not drown the others


@dataclass(frozen=True)
class Drift:
    """distance: the number. layers: by layer, shallow to deep. bands: (shift, spread) of each channel at the input.

    confidence: histogram over 0..1 of the surest class's probability, a share of pixels a bin.
    """

    distance: float
    layers: dict[str, float]
    bands: dict[str, tuple[float, float]]
    confidence: tuple[float, ...]

    @property
    def mean_confidence(self) -> float:
        centres = (np.arange(BINS) + 0.5) / BINS
        return float(np.dot(self.confidence, centres))

    def to_dict(self) -> dict[str, Any]:
        return {
            "distance": round(self.distance, 4),
            "layers": {name: round(value, 4) for name, value in self.layers.items()},
            "bands": {n: {"shift": round(a, 3), "spread": round(b, 3)} for n, (a, b) in self.bands.items()},
            "confidence": [round(share, 4) for share in self.confidence],
            "mean_confidence": round(self.mean_confidence, 4),
        }


def drift(model: nn.Module, adapter: DomainAdapter, scenes: Sequence[str], count: int = CROPS, seed: int = 0) -> Drift:
    """Measure `scenes` through `count` crops. Raises InputError where a scene cannot be opened."""
    target = Target(tuple(scenes), Effort(crops=count, seed=seed))
    with target.opened(adapter) as sources:
        return measure(model, adapter, list(crops(sources, adapter, count, seed)))


@torch.no_grad()
def measure(model: nn.Module, adapter: DomainAdapter, images: Sequence[Tensor]) -> Drift:
    """The same for crops (C, s, s) that are at hand, normalised by the adapter."""
    model.eval()
    names = {id(part): name for name, part in model.named_modules()}
    sums: dict[str, list[Tensor]] = {}

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].double()
        moments = torch.stack((x.mean((0, 2, 3)), (x * x).mean((0, 2, 3)))) if x.ndim == 4 else None
        if moments is not None:
            sums.setdefault(names[id(norm)], []).append(moments)

    norms = {names[id(norm)]: norm for norm in batch_norms(model)}
    hooks = [norm.register_forward_pre_hook(look) for norm in norms.values()]
    counts = np.zeros(BINS)
    try:
        for image in images:
            size = (image.shape[-2], image.shape[-1])
            surest = inference.semantic(model(image[None]), size).amax(1).clamp(0, 1)
            counts += np.histogram(surest.numpy(), BINS, (0, 1))[0]
    finally:
        for hook in hooks:
            hook.remove()
    layers = {name: _distance(norms[name], torch.stack(rows).mean(0)) for name, rows in sums.items()}
    planes = torch.stack([image.flatten(1) for image in images]).transpose(0, 1).flatten(1)
    shifts, spreads = planes.mean(1).tolist(), planes.std(1).tolist()
    channels = [name for _ in range(len(planes) // len(adapter.channels)) for name in adapter.channels.names]
    bands = dict(zip(channels, zip(shifts, spreads, strict=True), strict=True))
    outer = float(np.mean([np.hypot(shift, spread - 1) for shift, spread in bands.values()]))
    distance = float(np.mean(list(layers.values()))) if layers else outer
    return Drift(distance, layers, bands, tuple(counts / max(counts.sum(), 1)))


def _distance(norm: nn.Module, moments: Tensor) -> float:
    """Mean over channels; moments: (2, C) mean and mean square of the norm's input."""
    mean, square = moments
    spread = (square - mean**2).clamp(min=0).sqrt()
    known, trained = norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr,operator]
    apart = torch.hypot(mean - known, spread - trained) / trained
    return float(apart.clamp(max=MOST).mean())


def draw(found: Drift, path: Path, title: str) -> None:
    """One picture (SVG): bands, features by depth, confidence."""
    panels = [
        ("shift of each band, trained deviations", [abs(a) for a, _ in found.bands.values()]),
        (f"features, shallow to deep: {found.distance:.2f}", list(found.layers.values())),
        (f"surest class's probability: {found.mean_confidence:.2f}", list(found.confidence)),
    ]
    parts = [_panel(20 + 300 * place, words, values) for place, (words, values) in enumerate(panels)]
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="920" height="240" font-family="sans-serif" font-size="12">'
    path.write_text(
        f'{head}<rect width="100%" height="100%" fill="white"/><text x="20" y="20">{_escaped(title)}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(left: int, words: str, values: Sequence[float]) -> str:
    most, width = max([*values, 1e-9]), 280 / max(len(values), 1)
    bars = [
        f'<rect x="{left + i * width:.1f}" y="{200 - 140 * value / most:.1f}" width="{0.9 * width:.1f}" '
        f'height="{140 * value / most:.1f}" fill="#0072b2"/>'
        for i, value in enumerate(values)
    ]
    return "".join(bars) + f'<text x="{left}" y="222">{_escaped(words)} (highest bar {most:.2f})</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
