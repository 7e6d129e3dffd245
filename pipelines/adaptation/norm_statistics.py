"""Batch norms' running statistics measured again on the target (AdaBN, Li et al. 2016). No weight is learned.

A share of the old statistics stays, for a few crops say little about many channels (Schneider et al. 2020): the target
counts as n crops against `PRIOR` of the source.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.adaptation.target import Subject, Target, crops

PRIOR = 16


def norm_statistics(subject: Subject, target: Target) -> Subject:
    """The subject with other running means and variances; as it is where the network has no batch norm."""
    norms = batch_norms(subject.model)
    effort = target.effort
    if norms:
        with target.opened(subject.adapter) as sources:
            images = list(crops(sources, subject.adapter, effort.crops, effort.seed))
        measure(subject.model, norms, images, effort.batch)
    share = round(effort.crops / (effort.crops + PRIOR), 3)
    note = {"batch_norms": len(norms), "share_of_target": share if norms else 0.0}
    return replace(subject, notes=subject.noted("norm_statistics", note))


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those that carry running statistics."""
    return [part for part in model.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


@torch.no_grad()
def measure(model: nn.Module, norms: list[_BatchNorm], images: list[torch.Tensor], batch: int) -> None:
    """Replace running statistics by the mean over `images` (C, H, W each), mixed with the old ones; eval mode after."""
    share = len(images) / (len(images) + PRIOR)
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for start in range(0, len(images), batch):
        model(torch.stack(images[start : start + batch]))
    for norm, old, momentum in zip(norms, before, momenta, strict=True):
        for name, value in norm.named_buffers():
            if name in ("running_mean", "running_var"):
                value.mul_(share).add_(old[name], alpha=1 - share)
        norm.momentum = momentum
    model.eval()
