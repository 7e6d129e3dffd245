"""Scale the target's bands by their own statistics, as the source's were scaled by theirs.

Mean and standard deviation without the outermost 0.1 %, as `maskbridge plan` measures them: the cheapest adaptation,
and against a change of gain, offset or haze alone most of the cure. A channel scaled by a fixed window (CT) is physics
and stays; so does one that is constant in the target.
"""

from __future__ import annotations

from dataclasses import replace

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.remote_sensing import fit_channels
from pipelines.adaptation.target import Subject, Target
from pipelines.scene_report import trained_statistics


def input_statistics(subject: Subject, target: Target) -> Subject:
    """The subject with the adapter's offsets and scales measured on the target."""
    if subject.adapter.volume is not None:
        from pipelines.adaptation.studies import study_statistics

        return study_statistics(subject, target)
    old, adapter = subject.adapter.channels, fitted_to(target, subject.adapter)
    note = {
        channel.name: {"offset": [before.offset, channel.offset], "scale": [before.scale, channel.scale]}
        for before, channel in zip(old, adapter.channels, strict=True)
        if channel != before
    }
    return replace(subject, adapter=adapter, notes=subject.noted("input_statistics", note))


def fitted_to(target: Target, adapter: DomainAdapter) -> DomainAdapter:
    """The adapter of scenes with the target's own offsets and scales."""
    old = adapter.channels
    with target.opened(adapter) as sources:
        fitted = fit_channels(sources, old, windows=target.effort.crops, seed=target.effort.seed)
    known = trained_statistics(old)
    new = ChannelSet(tuple(_rescaled(a, b, a.name in known) for a, b in zip(old, fitted, strict=True)))
    return adapter.with_channels(new)


def _rescaled(old: Channel, fitted: Channel, by_statistics: bool) -> Channel:
    """The clip moves with the values: a saturated source must not cut what the target holds."""
    if not by_statistics or (fitted.scale == 1.0 and fitted.clip is None):
        return old
    return replace(fitted, clip=None if old.clip is None else fitted.clip)
