"""Rule `signature`: what reads this model's outputs, and what feeds it, must not notice the change of model.

Classes keep names, kinds and order (ids in files are positions), overlap and coverage stay, no channel is asked for
that the champion does not ask for, a channel of the same name is the same band of the scenes, and resolution or spacing
stay within a percent. Scaling, tiles and thresholds may change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.promotion.frozen import Part
from pipelines.promotion.policy import Verdict

NEAR = 0.01  # of a resolution
LOOK = 256  # pixels a side that are compared band by band
EXACT = ("overlap", "covers", "context_slices", "photos", "stretch", "volume")


def check_signature(candidate: DomainAdapter, champion: DomainAdapter | None, parts: Sequence[Part]) -> Verdict:
    """Whether `candidate` can take the place of `champion`; without one, whether it can read the data at all."""
    if champion is not None and (candidate.volume is None) != (champion.volume is None):
        kinds = ["scenes" if one.volume is None else "volumes" for one in (candidate, champion)]
        says = f"a model of {kinds[0]}, the champion is one of {kinds[1]}"
        return Verdict("signature", False, says, {"faults": [says]})
    faults = _readable(candidate, parts)
    if champion is not None:
        faults = [*_classes(candidate, champion), *_channels(candidate, champion), *_rest(candidate, champion), *faults]
        faults = faults or _bands(candidate, champion, parts)
    names = ", ".join(candidate.classes.names)
    says = "; ".join(faults) or f"classes {names}; channels {', '.join(candidate.channels.names)}"
    return Verdict("signature", not faults, says, {"faults": faults})


def _classes(candidate: DomainAdapter, champion: DomainAdapter) -> list[str]:
    mine = [(one.name, one.kind) for one in candidate.classes]
    theirs = [(one.name, one.kind) for one in champion.classes]
    if mine == theirs:
        return []
    shown = ", ".join(f"{name} ({kind})" for name, kind in mine)
    return [f"classes are {shown}; the champion's {', '.join(f'{name} ({kind})' for name, kind in theirs)}"]


def _channels(candidate: DomainAdapter, champion: DomainAdapter) -> list[str]:
    asked = [one.name for one in candidate.channels if one.impute is None and one.name not in champion.channels.names]
    return [f"asks for {', '.join(asked)}, which the champion does without"] if asked else []


def _rest(candidate: DomainAdapter, champion: DomainAdapter) -> list[str]:
    faults = [
        f"{name} is {getattr(candidate, name)}, the champion's {getattr(champion, name)}"
        for name in EXACT
        if getattr(candidate, name) != getattr(champion, name)
    ]
    for name in ("resolution", "spacing"):
        mine, theirs = getattr(candidate, name), getattr(champion, name)
        if (mine is None) != (theirs is None) or (mine is not None and not np.allclose(mine, theirs, NEAR, 0)):
            faults.append(f"{name} is {mine or 'the data’s own'}, the champion's {theirs or 'the data’s own'}")
    return faults


def _readable(candidate: DomainAdapter, parts: Sequence[Part]) -> list[str]:
    """A band that some scene of the data does not have."""
    for part in parts:
        try:
            with part.open(candidate) as source:
                if source.shape != part.shape:
                    return [f"{part.name}: has {source.shape} pixels at its resolution, expected {part.shape}"]
        except (InputError, ValueError) as error:
            return [str(error)]
    return []


def _bands(candidate: DomainAdapter, champion: DomainAdapter, parts: Sequence[Part]) -> list[str]:
    """Channels of one name and one unit that read other values of the same scene."""
    faults: list[str] = []
    for part in parts[:1]:
        window = tuple(slice(0, min(side, LOOK)) for side in part.shape)
        with part.open(candidate) as mine, part.open(champion) as theirs:
            (a, _), (b, _) = mine.read(window), theirs.read(window)
        for number, channel in enumerate(candidate.channels):
            if channel.name not in champion.channels.names:
                continue
            other = champion.channels.names.index(channel.name)
            same_unit = champion.channels[other].units == channel.units
            if same_unit and not np.array_equal(a[number], b[other], equal_nan=a.dtype.kind == "f"):
                faults.append(f"{part.name}: channel {channel.name} is another band than the champion's")
    return faults
