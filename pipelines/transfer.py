"""A trained model carried to a new domain: channels and classes of two adapters matched by name, with an account.

Channels of one name keep their weights. An old channel without a counterpart is folded in where its light is nearest,
or evenly where nobody knows; a new one is made of the old one nearest in wavelength, else of their mean. Its own mean
is 0 after scaling, so where it says nothing the model answers as before. Classes of one name keep their rows, others
are made as declared: `{vehicle: [car, truck]}` is the mean of both, `{car: [vehicle], truck: [vehicle]}` two copies.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from adapters.channels import Channel, band_key
from adapters.classes import ClassSet, value_key
from adapters.errors import InputError
from adapters.reading import did_you_mean, listing
from maskformer.transfer import Recipe, Transfer, transfer

if TYPE_CHECKING:
    from pipelines.bundle import Bundle

log = logging.getLogger(__name__)

# Middle of the band in nm, by what bands are called: the usual names and Sentinel-2's. A panchromatic one has none.
WAVELENGTHS = {
    "coastal": 443, "blue": 490, "green": 560, "yellow": 600, "red": 665, "rededge": 705, "nir": 842, "swir1": 1610,
    "swir2": 2190, "b01": 443, "b02": 490, "b03": 560, "b04": 665, "b05": 705,
    "b06": 740, "b07": 783, "b08": 842, "b8a": 865, "b09": 945, "b10": 1375, "b11": 1610, "b12": 2190,
}  # fmt: skip
_BY_KEY = {band_key(name): length for name, length in WAVELENGTHS.items()}
NEAR = 0.35  # of the wavelength: red for near infrared, not blue for thermal


@dataclass(frozen=True)
class Account:
    """The matching in words, and what became of the tensors; JSON-ready by `to_dict`."""

    source: str
    channels: Mapping[str, str]
    classes: Mapping[str, str]
    tensors: Transfer

    def describe(self) -> str:
        lines = [f"started from {self.source}: {self.tensors.describe()}"]
        for title, matched in (("channel", self.channels), ("class", self.classes)):
            lines += [f"  {title} {name}: {how}" for name, how in matched.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        tensors = self.tensors
        return {
            "from": self.source,
            "channels": dict(self.channels),
            "classes": dict(self.classes),
            "kept": len(tensors.kept),
            "mapped": dict(tensors.mapped),
            "fresh": dict(tensors.fresh),
            "unused": dict(tensors.unused),
        }


def start_from(
    bundle: Bundle, model: nn.Module, adapter: DomainAdapter, declared: Mapping[str, Sequence[str]] | None = None
) -> Account:
    """Load the bundle's weights into `model`, whose channels and classes are `adapter`'s; the account.

    declared: new class → the bundle's classes it is made of. InputError where one of them is unknown.
    """
    inputs, channels = match_channels(bundle.adapter, adapter)
    classes, kinds = match_classes(bundle.adapter.classes, adapter.classes, declared or {})
    tensors = transfer(model, bundle.build().state_dict(), Recipe(inputs, classes))
    if not tensors.kept and not tensors.mapped:
        raise InputError(f"{bundle.folder}: not one of its tensors fits the new model; is it another architecture?")
    account = Account(_name(bundle), channels, kinds, tensors)
    log.info("%s", account.describe())
    return account


def _name(bundle: Bundle) -> str:
    """What the account calls it: its name and version in the registry, else its folder's name; never a whole path."""
    named = f"{bundle.name} version {bundle.version}" if bundle.version else bundle.folder.name
    return f"{named} ({bundle.digest[:12]})"


def match_channels(old: DomainAdapter, new: DomainAdapter) -> tuple[Tensor, dict[str, str]]:
    """(new inputs, old inputs) weights of the stem, and for each channel how it was matched.

    Inputs are channels × slices, all channels of the lowest slice first. A new slice of context starts without
    weight; one that is dropped is folded into the outermost that stays.
    """
    planes, words = _planes(tuple(old.channels), tuple(new.channels))
    slices = _slices(old.context_slices, new.context_slices)
    if old.context_slices != new.context_slices:
        words["(slices)"] = f"{2 * old.context_slices + 1} slices became {2 * new.context_slices + 1}"
    return torch.kron(slices, planes), words


def _planes(old: Sequence[Channel], new: Sequence[Channel]) -> tuple[Tensor, dict[str, str]]:
    table = torch.zeros(len(new), len(old))
    words: dict[str, str] = {}
    names = [band_key(channel.name) for channel in old]
    for i, channel in enumerate(new):
        if band_key(channel.name) in names:
            j = names.index(band_key(channel.name))
            table[i, j] = 1
            same = (channel.offset, channel.scale) == (old[j].offset, old[j].scale)
            words[channel.name] = "kept" if same else "kept, though its scaling differs"
    for j in range(len(old)):
        if table[:, j].any():
            continue
        near = _nearest(old[j], new)
        if near is None:
            table[:, j] += 1 / len(new)
            words[f"({old[j].name})"] = "folded into all channels alike"
        else:
            table[near, j] += 1
            words[f"({old[j].name})"] = f"folded into {new[near].name}"
    for i, channel in enumerate(new):
        if channel.name in words:
            continue
        if table[i].any():
            words[channel.name] = "made of what was folded into it"
            continue
        near = _nearest(channel, old)
        table[i] = 1 / len(old) if near is None else torch.eye(len(old))[near]
        words[channel.name] = (
            "the mean of all channels" if near is None else f"as {old[near].name}, nearest in wavelength"
        )
    return table, words


def _nearest(channel: Channel, others: Sequence[Channel]) -> int | None:
    """Which of the others is nearest in wavelength; None where no wavelength is known, or none is near."""
    length, lengths = wavelength(channel), [wavelength(other) for other in others]
    known = [i for i, other in enumerate(lengths) if other is not None]
    if length is None or not known:
        return None
    best = min(known, key=lambda i: abs((lengths[i] or 0) - length))
    return best if abs((lengths[best] or 0) - length) <= NEAR * length else None


def wavelength(channel: Channel) -> int | None:
    """nm, by the channel's name or what it is called elsewhere."""
    names = [channel.name, *(name for name in channel.find if isinstance(name, str))]
    return next((_BY_KEY[key] for key in map(band_key, names) if key in _BY_KEY), None)


def _slices(old: int, new: int) -> Tensor:
    """(new slices, old slices): by their distance from the middle one."""
    table = torch.zeros(2 * new + 1, 2 * old + 1)
    for j in range(2 * old + 1):
        table[min(max(j - old, -new), new) + new, j] = 1
    return table


def match_classes(old: ClassSet, new: ClassSet, declared: Mapping[str, Sequence[str]]) -> tuple[Tensor, dict[str, str]]:
    """(new classes, old classes) weights of the class head's rows, and for each new class how it was made."""
    names = [value_key(name) for name in old.names]
    parts = {value_key(new.names[_index(new, name)]): list(sources) for name, sources in declared.items()}
    table, words = torch.zeros(len(new), len(old)), {}
    for i, name in enumerate(new.names):
        sources = parts.get(value_key(name)) or ([name] if value_key(name) in names else [])
        for source in sources:
            table[i, _index(old, source)] += 1 / len(sources)
        if not sources:
            words[name] = "fresh"
        elif sources == [name]:
            words[name] = "kept"
        else:
            words[name] = "made of " + ", ".join(sources)
    used = table.any(0)
    words.update({f"({name})": "unused" for j, name in enumerate(old.names) if not used[j]})
    return table, words


def _index(classes: ClassSet, name: str) -> int:
    names = [value_key(one) for one in classes.names]
    if value_key(name) not in names:
        raise InputError(
            f"class_map: no class '{name}'{did_you_mean(name, classes.names)}; there are {listing(classes.names)}"
        )
    return names.index(value_key(name))
