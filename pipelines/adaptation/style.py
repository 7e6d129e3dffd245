"""Source crops in the target's style, to learn from with the source's own labels.

Fourier: the lowest frequencies' amplitude is the target's, the phase stays (FDA, Yang & Soatto 2020). Histogram: each
channel's values by rank take the target's. Each crop takes one of both, or stays as it is, a third each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.errors import InputError
from maskformer.losses import build_criterion
from maskformer.targets import Target as Labels
from pipelines.adaptation.mixing import same_size
from pipelines.adaptation.self_training import train_options
from pipelines.adaptation.target import Subject, Target
from pipelines.checkpoints import sha256_of
from pipelines.config import RunConfig
from pipelines.datasets import CropDataset, Part
from pipelines.labelled import LabelledData
from pipelines.loading import Samples
from pipelines.training import fit

BAND = 0.01  # of the spectrum's side on each side of zero: colour and shade, no shapes


def style(subject: Subject, target: Target, source: RunConfig) -> Subject:
    """The network trained on, on the training part of the labelled `source` dressed as the target."""
    effort, adapter = target.effort, subject.adapter
    side = max(adapter.tile // 32, 1) * 32
    if adapter.volume is not None:
        raise InputError("style: works on scenes and pictures; of volumes each is scaled by its own statistics anyway")
    looks = target.crops(adapter)
    # Source pixels by the source's statistics: both then have mean 0, and style is what is left.
    config = source.model_copy(update={"train": train_options(effort, side, effort.seed)})
    student: Any = deepcopy(subject.model)
    with LabelledData(config) as data:
        parts = [Part(data.scenes[p.item].path, data.scenes[p.item].annotations, p.window) for p in data.split.train]
        dataset = CropDataset(parts, data.adapter, side, ("flip", "rotate", "scale"), effort.seed)
        with closing(dataset), tempfile.TemporaryDirectory() as folder:
            fit_on = StyledCrops(dataset, looks, effort.seed)
            fit(student, build_criterion(student.config), fit_on, config.train, folder)
    return replace(subject, model=student, notes=subject.noted("style", {"steps": effort.steps, "looks": len(looks)}))


class StyledCrops:
    """Items of `crops` dressed as one of `looks` (C, h, w each); item k depends on k alone."""

    def __init__(self, crops: Samples, looks: Sequence[Tensor], seed: int = 0) -> None:
        self.crops, self.looks, self.seed = crops, looks, seed

    def __getitem__(self, index: int) -> tuple[Tensor, Labels]:
        image, labels = self.crops[index]
        random = np.random.default_rng([self.seed, index, 2])
        look = same_size(self.looks[int(random.integers(len(self.looks)))], image.shape[1], image.shape[2])
        kind = int(random.integers(3))
        return (image, fourier(image, look), histogram(image, look))[kind], labels

    def fingerprint(self) -> str:
        return sha256_of({"crops": self.crops.fingerprint(), "styled": [self.seed, len(self.looks)]})


def fourier(image: Tensor, look: Tensor, band: float = BAND) -> Tensor:
    """(C, H, W): the image with the look's amplitude at the lowest frequencies."""
    own, other = torch.fft.fft2(image), torch.fft.fft2(look)
    height, width = image.shape[-2:]
    low_rows = torch.fft.fftfreq(height).abs() <= band
    low_columns = torch.fft.fftfreq(width).abs() <= band
    amplitude = torch.where(low_rows[:, None] & low_columns[None], other.abs(), own.abs())
    return torch.fft.ifft2(torch.polar(amplitude, own.angle())).real


def histogram(image: Tensor, look: Tensor) -> Tensor:
    """(C, H, W): each channel's pixels by rank take the values of the look's (C, H, W)."""
    flat = image.flatten(1)
    ranks = flat.argsort(1).argsort(1)
    return look.flatten(1).sort(1).values.gather(1, ranks).view_as(image)
