"""A bundle as users run it, with its own grid, thresholds and task, and what it gives for a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maskformer.masks import MaskSet
from pipelines.assembly import predict_in_memory
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.predictor import Predictor, settle


class NotFinite(Exception):
    """A forward pass gave NaN or infinity; the message says where in the prediction."""


@dataclass(frozen=True)
class Outputs:
    """Objects in canonical order on the place's canvas, and the (H, W) uint8 class map, 255 where there is no data."""

    objects: MaskSet
    ids: NDArray[np.uint8]


class Artifact:
    """A bundle ready to predict. `machine` gives device, precision and batch; all else is the bundle's own."""

    def __init__(self, bundle: Bundle, machine: PredictOptions) -> None:
        self.bundle = bundle
        self.adapter = bundle.adapter
        self.options = settled(bundle, machine)
        network = bundle.build()
        network.register_forward_hook(watch_outputs)
        self.predictor = Predictor(network, bundle.adapter, self.options)

    def __call__(self, source: Any) -> Outputs:
        """Predict a source whole, as it would be predicted in a run. NotFinite where a forward pass is not."""
        scene, ids = predict_in_memory(source, self.predictor, self.bundle.thresholds)
        return Outputs(scene.objects, ids)


def settled(bundle: Bundle, machine: PredictOptions) -> PredictOptions:
    """The options a run with this bundle would have; tile, overlap, score and task are never the config's."""
    own = PredictOptions(device=machine.device, precision=machine.precision, batch=machine.batch)
    return settle(own, bundle.adapter, bundle.thresholds, bundle.provenance.get("task"))


def watch_outputs(module: nn.Module, inputs: Any, prediction: Any) -> None:
    """Forward hook: NotFinite where a prediction is not."""
    for name, value in zip(prediction._fields, prediction, strict=True):
        if torch.is_tensor(value) and not torch.isfinite(value).all():
            share = 1 - torch.isfinite(value).float().mean().item()
            raise NotFinite(f"{100 * share:.1f} % of {name} are NaN or infinite")
