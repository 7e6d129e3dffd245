"""The per-pixel baseline of counting: a U-Net that learns a density map, whose sum is the count.

Same encoder and weights, crops, augmentation, batch and wall-clock as the mask model's. Truth: each object's centroid
as a Gaussian of SIGMA px (sum 1); loss: squared error of the density times SCALE, because thousandths teach nothing.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from maskformer.model import param_groups
from maskformer.targets import Target
from pipelines.config import ModelOptions, RunConfig
from pipelines.datasets import CropDataset, Part
from pipelines.labelled import LabelledData
from pipelines.loading import batches
from pipelines.schedules import warmup_poly
from pipelines.starting import build

SIGMA = 4.0  # px
SCALE = 100.0  # 1 / the density at the middle of one object (1 / (2 pi SIGMA^2) = 0.01)
PRESET = "unet-efficientnet-lite0"


def density_of(target: Target) -> Tensor:
    """(H, W) float32: a Gaussian at each object's centroid; it sums to the number of objects in view."""
    heat = np.zeros(target.valid.shape)
    for layer in target.layers.numpy():
        numbers = np.unique(layer[layer > 0])
        for row, column in ndimage.center_of_mass(layer > 0, layer, numbers):
            heat[round(row), round(column)] += 1
    return torch.from_numpy(ndimage.gaussian_filter(heat, SIGMA, mode="reflect").astype(np.float32))


def density(network: nn.Module, x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H, W), not negative, SCALE times objects a pixel."""
    return nn.functional.softplus(network(x).logits[:, 0].float() - 4.0)


def fit(config: RunConfig, data: LabelledData, seed: int, minutes: float) -> tuple[nn.Module, int]:
    """A network trained for `minutes`, and the steps it took."""
    torch.manual_seed(seed)
    _, network = build(ModelOptions(preset=PRESET, weights=config.model.weights), data.adapter)
    train = config.train
    groups = param_groups(network, 1e-3, 1.0, train.weight_decay)
    optimiser = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in optimiser.param_groups]
    parts = [Part(data.scenes[p.item].path, data.scenes[p.item].annotations, p.window) for p in data.split.train]
    began, steps = time.monotonic(), 0
    network.train()
    with (
        closing(CropDataset(parts, data.adapter, train.crop, train.augment, seed)) as dataset,
        closing(batches(dataset, train.batch, train.workers)) as stream,
    ):
        for x, targets in stream:
            progress = (time.monotonic() - began) / (60 * minutes)
            if progress >= 1:
                break
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * warmup_poly(progress, train.warmup, train.power)
            wanted = SCALE * torch.stack([density_of(target) for target in targets])
            valid = torch.stack([target.valid for target in targets])
            loss = ((density(network, x) - wanted) ** 2)[valid].mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            steps += 1
    return network.eval(), steps


@torch.inference_mode()
def count(network: nn.Module, source: Any, data: LabelledData) -> float:
    """The sum of the density over a whole picture, seen at once."""
    array, valid = source.read()
    x = torch.from_numpy(data.adapter.inputs(array, valid))[None]
    height, width = x.shape[-2:]
    x = nn.functional.pad(x, (0, -width % 32, 0, -height % 32))
    return float(density(network, x)[0, :height, :width].sum()) / SCALE
