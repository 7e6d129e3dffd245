"""Read the target at the ground resolution at which its features look most like those the model was trained on.

A model that declares no resolution takes pixels as they come, and a sensor with pixels twice as large halves every
object. Batch norms remember how features were spread in training: of a few resolutions, each scaled by its own
statistics, the one with the least distance to that is taken, if it is clearly nearer than the scene's own.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from adapters.base import DomainAdapter
from pipelines.adaptation.input_statistics import fitted_to
from pipelines.adaptation.norm_statistics import batch_norms
from pipelines.adaptation.target import Subject, Target

FINER = (0.5, 2**-0.5, 1.0, 2**0.5, 2.0, 8**0.5)  # model pixels a target pixel
CROPS = 16
CLEARLY = 0.95  # of the distance at the scene's own resolution


def resolution(subject: Subject, target: Target) -> Subject:
    """The subject with an adapter that declares a resolution, or as it is where there is nothing to go by."""
    metres, why_not = _own(subject, target)
    if metres is None:
        return replace(subject, notes=subject.noted("resolution", {"left_out": why_not}))
    distances = {}
    few = replace(target, effort=replace(target.effort, crops=min(CROPS, target.effort.crops)))
    for finer in FINER:
        adapter = replace(subject.adapter, resolution=metres / finer)
        distances[finer] = _distance(subject, few, adapter)
    best = min(distances, key=lambda finer: distances[finer])
    if distances[best] > CLEARLY * distances[1.0]:
        best = 1.0
    note = {
        "metres": round(metres, 4),
        "finer": round(best, 3),
        "distances": {f"{finer:.3g}": round(value, 4) for finer, value in distances.items()},
    }
    adapter = subject.adapter if best == 1.0 else replace(subject.adapter, resolution=float(f"{metres / best:.6g}"))
    return replace(subject, adapter=adapter, notes=subject.noted("resolution", note))


def _own(subject: Subject, target: Target) -> tuple[float | None, str]:
    """Metres a pixel of the target's scenes, or None and why there is nothing to choose."""
    if subject.adapter.volume is not None:
        return None, "volumes are brought to the model's spacing"
    if subject.adapter.resolution is not None:
        return None, "the model declares its resolution"
    if not batch_norms(subject.model) or not subject.norms_known:
        return None, "the network remembers nothing of its training data"
    from pipelines.sources.resampled import pixel_metres

    with target.opened(subject.adapter) as sources:
        sizes = [pixel_metres(source) for source in sources]
    if any(size is None for size in sizes):
        return None, "a scene has no place on the ground"
    sides: list[Any] = [side for size in sizes if size is not None for side in size]
    if max(sides) > 1.2 * min(sides):
        return None, "the scenes differ in resolution"
    return float(sum(sides) / len(sides)), ""


def _distance(subject: Subject, target: Target, adapter: DomainAdapter) -> float:
    """How far the target's features are at this resolution; its own band statistics, so that colour does not count."""
    from pipelines.drift.features import moved

    fitted = fitted_to(target, adapter)
    return moved(deepcopy(subject.model), fitted, target.crops(fitted)).distance
