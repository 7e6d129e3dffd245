"""Channels by name: which bands of a source the model sees, in which order, on which scale."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from adapters.errors import InputError
from adapters.reading import checked, listing, one_of

Impute = Literal["mean", "zero"] | None
Units = Literal["stored", "physical"]


def band_key(name: str) -> str:
    """Spelling that two names of one band share: `NIR_1` is `nir 1` and `nir1`, `B4` is `B04`."""
    text = re.sub(r"[\s_\-]+", " ", str(name)).strip().casefold()
    return re.sub(r"([a-z]) ?0*(\d)", r"\1\2", text)


def _band_keys(names: str | Sequence[str]) -> set[str]:
    """All spellings of one band. GDAL describes Sentinel-2 bands as `B4, central wavelength 665 nm`."""
    names = [names] if isinstance(names, str) else names
    return {band_key(n) for n in names if n} | {band_key(n.split(",")[0]) for n in names if n}


@dataclass(frozen=True)
class Channel:
    """One input plane of the model.

    A value x of the source becomes `(clip(x) - offset) / scale`. `offset`, `scale` and `clip` are in the
    channel's units and describe the data set or a fixed window, never the tile.

    find: names, descriptions or 1-based band indices to look for, in this order; the channel's own name
        comes first.
    units: `stored` takes the values as the file holds them; `physical` takes what the file says they mean (value ×
        its scale + its offset, e.g. reflectance), so that files of different encodings agree.
    impute: what a source without the band gets. `mean` is the offset (0 for the model), `zero` the value 0,
        None makes it an error.
    """

    name: str
    find: tuple[str | int, ...] = ()
    offset: float = 0.0
    scale: float = 1.0
    clip: tuple[float, float] | None = None
    impute: Impute = None
    units: Units = "stored"

    def __post_init__(self) -> None:
        what = f"channel '{self.name}'"
        if not self.name or not isinstance(self.name, str):
            raise InputError(f"{what}: expected a name, found {self.name!r}")
        if isinstance(self.find, str | int):
            raise InputError(f"{what}: find: expected a list of names and band indices, found {self.find!r}")
        object.__setattr__(self, "find", tuple(self.find))
        for item in self.find:
            if isinstance(item, bool) or not isinstance(item, str | int) or (item == ""):
                raise InputError(f"{what}: find: expected names and band indices, found {item!r}")
            if isinstance(item, int) and item < 1:
                raise InputError(f"{what}: find: bands are counted from 1, found {item}")
        object.__setattr__(self, "offset", _finite(self.offset, f"{what}: offset"))
        object.__setattr__(self, "scale", _finite(self.scale, f"{what}: scale"))
        if self.scale == 0:
            raise InputError(f"{what}: scale: expected a number other than 0")
        if self.clip is not None:
            if isinstance(self.clip, str) or not isinstance(self.clip, Sequence) or len(self.clip) != 2:
                raise InputError(f"{what}: clip: expected [low, high], found {self.clip!r}")
            low, high = (_finite(v, f"{what}: clip") for v in self.clip)
            if low >= high:
                raise InputError(f"{what}: clip: expected low < high, found [{low}, {high}]")
            object.__setattr__(self, "clip", (low, high))
        one_of(self.impute, f"{what}: impute", (None, "mean", "zero"))
        one_of(self.units, f"{what}: units", ("stored", "physical"))

    @classmethod
    def window(
        cls, name: str, low: float, high: float, find: tuple[str | int, ...] = (), impute: Impute = None
    ) -> Channel:
        """A channel scaled by a fixed window: low becomes -1, high becomes 1, beyond is cut."""
        return cls(name, find, (low + high) / 2, (high - low) / 2, (low, high), impute)

    @property
    def fill(self) -> float:
        """Value in source units that a source without this band gets."""
        return self.offset if self.impute == "mean" else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "find": list(self.find),
            "offset": self.offset,
            "scale": self.scale,
            "clip": None if self.clip is None else list(self.clip),
            "impute": self.impute,
            "units": self.units,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Channel:
        return cls(**checked(data, "channel", cls.__dataclass_fields__, ["name"]))


@dataclass(frozen=True)
class ChannelSet:
    """The model's input planes in order."""

    channels: tuple[Channel, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels:
            raise InputError("channels: expected at least one")
        keys = [band_key(c.name) for c in self.channels]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise InputError(f"channels: '{self.channels[i].name}' is declared twice")

    def __len__(self) -> int:
        return len(self.channels)

    def __iter__(self) -> Iterator[Channel]:
        return iter(self.channels)

    def __getitem__(self, index: int) -> Channel:
        return self.channels[index]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.channels)

    def select(self, available: Sequence[str | Sequence[str]], where: str = "source") -> tuple[int | None, ...]:
        """0-based band of each channel; None where the band is missing and the channel says how to impute it.

        available: one entry a band: its name, or all names it goes by (description, colour interpretation).
        Names are looked for before indices, and an index never takes a band that bears another channel's
        name: a file ordered blue, green, red is read by its names. InputError names the band that is missing
        or ambiguous and the bands there are.
        """
        spellings = [_band_keys(names) for names in available]
        shown = [n if isinstance(n, str) else next((m for m in n if m), "?") for n in available]
        wanted = [[band_key(c.name), *(band_key(f) for f in c.find if isinstance(f, str))] for c in self.channels]
        found: list[int | None] = [None] * len(self)
        for i, keys in enumerate(wanted):
            for key in keys:
                bands = [b for b, names in enumerate(spellings) if key in names]
                if len(bands) > 1:
                    raise InputError(
                        f"{where}: '{self[i].name}' could be any of bands {listing(b + 1 for b in bands)}; "
                        f"the bands are {listing(shown)}"
                    )
                if bands:
                    found[i] = bands[0]
                    break
        named = {b for b in found if b is not None}
        for i, channel in enumerate(self.channels):
            if found[i] is None:
                indices = [f - 1 for f in channel.find if isinstance(f, int)]
                found[i] = next((b for b in indices if b < len(available) and b not in named), None)
            if found[i] is None and channel.impute is None:
                sought = listing(repr(f) if isinstance(f, str) else f"band {f}" for f in channel.find)
                also = f" (also sought as {sought})" if channel.find else ""
                raise InputError(f"{where}: no band '{channel.name}'{also}; the bands are {listing(shown)}")
        return tuple(found)

    def normalise(self, array: np.ndarray) -> np.ndarray:
        """(C, ...) values in source units -> (C, ...) float32 on the model's scale."""
        if array.ndim < 1 or array.shape[0] != len(self):
            raise ValueError(f"expected {len(self)} channels ({listing(self.names)}), found {array.shape}")
        # float32 holds integers to 2**24 exactly; wider types are scaled in float64 first.
        wide = np.float64 if array.dtype.itemsize > 2 and array.dtype != np.float32 else np.float32
        result = np.empty(array.shape, np.float32)
        for i, channel in enumerate(self.channels):
            plane = array[i].astype(wide)
            if channel.clip is not None:
                np.clip(plane, *channel.clip, out=plane)
            # one rounding of the offset, so that a band imputed by its mean is exactly 0 to the model
            plane -= wide(np.float32(channel.offset))
            plane /= wide(channel.scale)
            result[i] = plane
        return result

    def with_channel(self, index: int, **changes: Any) -> ChannelSet:
        """The same set with one channel changed."""
        channels = list(self.channels)
        channels[index] = replace(channels[index], **changes)
        return ChannelSet(tuple(channels))

    def to_list(self) -> list[dict[str, Any]]:
        return [c.to_dict() for c in self.channels]

    @classmethod
    def from_list(cls, data: Sequence[Mapping[str, Any]]) -> ChannelSet:
        if isinstance(data, str | Mapping) or not isinstance(data, Sequence):
            raise InputError(f"channels: expected a list, found {type(data).__name__}")
        return cls(tuple(Channel.from_dict(c) for c in data))


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise InputError(f"{what}: expected a finite number, found {value!r}")
    return float(value)
