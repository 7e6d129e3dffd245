"""Ready adapters for CT and MR, intensities fitted to volumes, and slices with their neighbours as channels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import ClassSet
from adapters.errors import InputError
from adapters.volume import SeriesRule, VolumeRules

logger = logging.getLogger(__name__)

# Hounsfield units, lowest and highest: the windows radiologists read by (width, level in brackets).
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (-160.0, 240.0),  # 400, 40
    "mediastinum": (-125.0, 225.0),  # 350, 50
    "liver": (-15.0, 135.0),  # 150, 60
    "brain": (0.0, 80.0),  # 80, 40
    "lung": (-1350.0, 150.0),  # 1500, -600
    "bone": (-500.0, 1300.0),  # 1800, 400
    "wide": (-1024.0, 1024.0),
}
_MOST_VALUES = 1 << 20  # of a channel: percentiles of a million voxels are off by a thousandth of a percent
_PLANES = 64  # read for them, evenly spread
_TAIL = 0.5  # percent cut at each end: vessels, metal, dead voxels
_AIR = 0.05  # of the range above its low end: below lies the air around the patient


def ct(
    classes: ClassSet,
    windows: Sequence[str | tuple[float, float]] | Mapping[str, tuple[float, float]] = ("soft tissue",),
    **settings: Any,
) -> DomainAdapter:
    """CT in Hounsfield units, each window a channel: names of `CT_WINDOWS`, (low, high) pairs, or own names.

    Every window reads the one channel there is, whatever it is called. settings: fields of `DomainAdapter` and of
    `VolumeRules`; the series is a CT unless told, classes that lie in others make the overlap `layered`.
    """
    channels = []
    named = windows.items() if isinstance(windows, Mapping) else ((_window_name(w), w) for w in windows)
    for name, window in named:
        if isinstance(window, str):
            if window not in CT_WINDOWS:
                raise InputError(f"ct: no window '{window}'; known are {', '.join(CT_WINDOWS)}")
            window = CT_WINDOWS[window]
        channels.append(Channel.window(name, float(window[0]), float(window[1]), ("ct", "image", 1)))
    return _adapter("ct", channels, classes, SeriesRule("CT"), settings)


def mri(classes: ClassSet, sequences: Sequence[str] = ("mr",), **settings: Any) -> DomainAdapter:
    """MR: a channel a sequence, found by its name (`t1`, `flair`, ...); a single one is any channel there is.

    Raw MR values have no unit, so by default offset, scale and clip are fitted to each volume as a whole
    (`intensity="volume"`); `"dataset"` keeps the channels as they are, for example those of `fit_volumes`.
    """
    single = len(sequences) == 1
    channels = [Channel(s, ("mr", "image", 1) if single else (f"{i:04d}",)) for i, s in enumerate(sequences)]
    settings = {"intensity": "volume", **settings}
    return _adapter("mri", channels, classes, SeriesRule("MR"), settings)


class VolumeLike(Protocol):
    """What the statistics need of a volume: opened with the channels, read by window."""

    @property
    def path(self) -> Any: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, window: tuple[slice, ...]) -> tuple[NDArray, NDArray[np.bool_]]: ...


def fit_volumes(sources: Sequence[VolumeLike], channels: ChannelSet) -> ChannelSet:
    """Channels with robust statistics of whole volumes: of one, or of a data set, never of a slice.

    The half percent at each end is cut and becomes the clip; offset and scale are mean and spread of what lies above
    the air. Volumes count alike whatever their size. Multiplying a volume by a number changes nothing for the model.
    InputError where a channel has no valid voxel at all.
    """
    if not sources:
        raise InputError("statistics: expected at least one volume")
    samples: list[list[NDArray]] = [[] for _ in channels]
    for source in sources:
        for parts, values in zip(samples, _sample(source, len(channels), _MOST_VALUES // len(sources))):
            if len(values):
                parts.append(values)
    fitted = []
    for i, (channel, parts) in enumerate(zip(channels, samples)):
        imputed = all(getattr(s, "imputed", (False,) * len(channels))[i] for s in sources)
        if not parts and not imputed:
            raise InputError(f"{sources[0].path}: no valid voxel of channel '{channel.name}'")
        fitted.append(channel if imputed else _fitted(channel, np.concatenate(parts)))
    return ChannelSet(tuple(fitted))


def for_volume(adapter: DomainAdapter, source: VolumeLike) -> DomainAdapter:
    """The adapter for one volume: its channels fitted to it where the adapter asks for that, else itself."""
    if adapter.volume is None or adapter.volume.intensity == "dataset":
        return adapter
    return adapter.with_channels(fit_volumes([source], adapter.channels))


def slice_inputs(
    adapter: DomainAdapter, array: NDArray, valid: NDArray[np.bool_], index: int, axis: int = 0
) -> NDArray[np.float32]:
    """The model's picture of one slice: (C, d, h, w) values -> (C (1 + 2 context_slices), height, width) float32.

    axis: of the three, the one across the slices. The neighbours come in order, all channels of the lowest first;
    beyond the ends the outermost slice is repeated. Values of invalid voxels never reach the result.
    """
    if not 0 <= index < array.shape[1 + axis]:
        raise ValueError(f"expected a slice from 0 to {array.shape[1 + axis] - 1}, found {index}")
    around = adapter.context_slices
    places = np.clip(np.arange(index - around, index + around + 1), 0, array.shape[1 + axis] - 1)
    known: dict[int, NDArray[np.float32]] = {}
    # not `take`, which copies all of an array whose slices are not its first axis
    pictures, seen = np.moveaxis(array, 1 + axis, 0), np.moveaxis(valid, axis, 0)
    for place in places:
        if int(place) not in known:
            known[int(place)] = adapter.inputs(pictures[place], seen[place])
    return np.concatenate([known[int(p)] for p in places])


def _adapter(
    name: str, channels: Sequence[Channel], classes: ClassSet, series: SeriesRule, settings: dict[str, Any]
) -> DomainAdapter:
    keys = {f.name for f in fields(VolumeRules)}
    rules = VolumeRules(**{"series": series, **{k: v for k, v in settings.items() if k in keys}})
    rest = {k: v for k, v in settings.items() if k not in keys}
    # 2.5-D: a slice on each side is what tells vessels from nodules
    rest = {"context_slices": 1, "overlap": "layered" if rules.inside else "free", **rest}
    return DomainAdapter(rest.pop("name", name), ChannelSet(tuple(channels)), classes, volume=rules, **rest)


def _window_name(window: str | tuple[float, float]) -> str:
    return window if isinstance(window, str) else f"{window[0]:g} to {window[1]:g} HU"


def _sample(source: VolumeLike, channels: int, most: int) -> list[NDArray[np.float32]]:
    """For each channel up to `most` valid values of planes spread evenly over the volume."""
    # the axis along which the file's planes lie together: reading across it would touch the whole file each time
    axis = 2 if getattr(source, "kind", "") == "nifti" else 0
    length = source.shape[axis]
    places = np.unique(np.linspace(0, length - 1, min(length, _PLANES)).astype(int))
    stride = max(1, -(-len(places) * int(np.prod(source.shape) // length) // max(most, 1)))
    found: list[list[NDArray]] = [[] for _ in range(channels)]
    for place in places:
        window = tuple(
            slice(int(place), int(place) + 1) if a == axis else slice(0, n) for a, n in enumerate(source.shape)
        )
        array, valid = source.read(window)
        if array.shape[0] != channels:
            raise ValueError(f"{source.path}: expected {channels} channels, found {array.shape[0]}")
        for parts, plane in zip(found, array):
            parts.append(plane[valid][::stride].astype(np.float32))
    return [np.concatenate(parts) for parts in found]


def _fitted(channel: Channel, values: NDArray[np.float32]) -> Channel:
    low, high = (float(v) for v in np.percentile(values, [_TAIL, 100 - _TAIL]))
    if high <= low:
        logger.warning("channel '%s' is constant (%g) but for its tails: scale 1", channel.name, low)
        return replace(channel, offset=low, scale=1.0, clip=None)
    body = values[values > low + _AIR * (high - low)]
    # the tail is cut again, now of the body alone: in a head scan most voxels are air
    high = float(np.percentile(body, 100 - _TAIL))
    body = np.clip(body, low, high).astype(np.float64)
    mean, spread = float(f"{body.mean():.6g}"), float(f"{body.std():.6g}")
    if spread == 0:
        return replace(channel, offset=mean, scale=1.0, clip=None)
    return replace(channel, offset=mean, scale=spread, clip=(low, high))
