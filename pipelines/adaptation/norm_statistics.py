"""Batch norms' running statistics measured again on the target (AdaBN, Li et al. 2016). No weight is learned.

It needs norms whose statistics are those of the model's own training data, so that swapping them puts the target where
the source was. A backbone with frozen norms carries ImageNet's instead; `restate`, which training ends with, writes
the training data's into it without moving an output.

A share of the old statistics stays, for a few crops say little about many channels (Schneider et al. 2020): the target
counts as n crops against `PRIOR` of the source, and less the nearer its features are to the trained ones. Two places of
one scene differ too (0.15 on the buildings of the benchmark), and there other statistics only cost: 3.5 points of IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.adaptation.target import Subject, Target
from pipelines.predictor import batched

PRIOR = 16
NEAR = 0.3  # mean distance of features, in trained deviations, up to which nothing is moved
BATCH = 16
MOST = 10.0  # of one channel's distance: a feature that was all but constant in training must not drown the others


def norm_statistics(subject: Subject, target: Target) -> Subject:
    """The subject with other running means and variances; as it is where it has no norms that know the source."""
    norms = batch_norms(subject.model)
    if not norms or not subject.norms_known:
        why = "its norms are frozen at another data set's statistics" if norms else "the network has no batch norm"
        return replace(subject, notes=subject.noted("norm_statistics", {"left_out": why}))
    images = target.crops(subject.adapter)
    apart = float(
        np.mean([distance(norm, *found) for norm, found in zip(norms, moments(subject.model, norms, images))])
    )
    share = max(0.0, 1 - NEAR / apart) * len(images) / (len(images) + PRIOR) if apart > 0 else 0.0
    if share > 0:
        measure(subject.model, norms, images, share)
    note = {"batch_norms": len(norms), "distance": round(apart, 4), "share_of_target": round(share, 3)}
    return replace(subject, notes=subject.noted("norm_statistics", note))


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those that carry running statistics."""
    return [part for part in model.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


@torch.no_grad()
def measure(model: nn.Module, norms: Sequence[_BatchNorm], images: Sequence[Tensor], share: float) -> None:
    """`share` of the running statistics becomes the mean over `images` (C, H, W each); eval mode after."""
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for group in batched(iter(images), BATCH, lambda image: image.shape):
        model(torch.stack(group))
    for norm, old, momentum in zip(norms, before, momenta, strict=True):
        for name, value in norm.named_buffers():
            if name in ("running_mean", "running_var"):
                value.mul_(share).add_(old[name], alpha=1 - share)
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def moments(model: nn.Module, norms: Sequence[_BatchNorm], images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance (C,), float64, of what each norm is given when the model looks at `images` in eval mode."""
    sums: dict[int, list[Tensor]] = {}

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].float()
        variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
        variance, mean = variance.cpu().double(), mean.cpu().double()  # not every device has float64
        sums.setdefault(id(norm), []).append(torch.stack((mean, variance + mean**2)))

    model.eval()
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        for image in images:
            model(image[None])
    finally:
        for hook in hooks:
            hook.remove()
    found = [torch.stack(sums[id(norm)]).mean(0) for norm in norms]
    return [(mean, (square - mean**2).clamp(min=0)) for mean, square in found]


@torch.no_grad()
def restate(model: nn.Module, images: Sequence[Tensor]) -> int:
    """Make the running statistics those of `images`, and scale and bias such that the output stays; how many norms.

    y = g (x - m) / s + b is also g' (x - m') / s' + b' with g' = g s' / s and b' = b + g (m' - m) / s.
    """
    norms = [norm for norm in batch_norms(model) if norm.affine]
    for norm, (mean, variance) in zip(norms, moments(model, norms, images), strict=True):
        weight, bias, old_mean, old_variance = (
            x.cpu().double()  # type: ignore[union-attr]
            for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        scale = weight / (old_variance + norm.eps).sqrt()
        norm.bias.copy_(bias + scale * (mean - old_mean))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
    return len(norms)


def distance(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> float:
    """2-Wasserstein distance of features to the trained Gaussian in its deviations, mean over channels (C,)."""
    known = norm.running_mean.cpu().double()  # type: ignore[union-attr]
    trained = (norm.running_var.cpu().double() + norm.eps).sqrt()  # type: ignore[union-attr]
    apart = torch.hypot(mean - known, (variance + norm.eps).sqrt() - trained) / trained
    return float(apart.clamp(max=MOST).mean())
