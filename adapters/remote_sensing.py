"""Ready adapters for aerial and satellite pictures, and channel statistics of a data set.

The scalings below are starting points (ImageNet's for 8-bit pictures, published value ranges for the
satellites); `fit_channels` replaces them with those of the data at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import ClassSet
from adapters.errors import InputError

logger = logging.getLogger(__name__)

Window = tuple[slice, ...]

_MOST_VALUES = 1 << 20  # of a channel; a mean over a million pixels is off by a thousandth of the spread

# Mean and standard deviation of ImageNet's red, green and blue on 0..255: what pretrained backbones expect.
_IMAGENET = {"red": (123.675, 58.395), "green": (116.28, 57.12), "blue": (103.53, 57.375)}

# Sentinel-2 MSI: name -> what its band is called elsewhere. Reflectance is DN / 10 000 (before the offset of
# processing baseline 04.00).
_SENTINEL2: dict[str, tuple[str, ...]] = {
    "B01": ("coastal", "coastal aerosol"),
    "B02": ("blue",),
    "B03": ("green",),
    "B04": ("red",),
    "B05": ("rededge1", "red edge 1", "rededge"),
    "B06": ("rededge2", "red edge 2"),
    "B07": ("rededge3", "red edge 3"),
    "B08": ("nir", "nir08"),
    "B8A": ("nir narrow", "narrow nir", "rededge4"),
    "B09": ("water vapour", "water vapor", "nir09"),
    "B10": ("cirrus",),
    "B11": ("swir16", "swir1", "swir 1"),
    "B12": ("swir22", "swir2", "swir 2"),
}
# Landsat: which band number holds a spectral band depends on the sensor.
_LANDSAT: dict[str, dict[str, int]] = {
    "oli": {"coastal": 1, "blue": 2, "green": 3, "red": 4, "nir": 5, "swir1": 6, "swir2": 7},
    "tm": {"blue": 1, "green": 2, "red": 3, "nir": 4, "swir1": 5, "swir2": 7},
}
_LANDSAT_NAMES = {"nir": ("nir08",), "swir1": ("swir16", "swir 1"), "swir2": ("swir22", "swir 2")}


def rgb_aerial(classes: ClassSet, **settings: Any) -> DomainAdapter:
    """8-bit red, green, blue. Bands by name, else the first three in this order."""
    return _adapter("rgb-aerial", _rgb(), classes, settings)


def rgbn(classes: ClassSet, **settings: Any) -> DomainAdapter:
    """8-bit red, green, blue, near infrared (NAIP and the like). Bands by name, else the first four."""
    nir = Channel("nir", ("near infrared", "nearinfrared", "infrared", "n", 4), 120.0, 50.0)
    return _adapter("rgbn", [*_rgb(), nir], classes, settings)


def panchromatic(classes: ClassSet, low: float = 0.0, high: float = 2047.0, **settings: Any) -> DomainAdapter:
    """One band, scaled by a fixed window; the default is 11-bit data, as most such sensors deliver."""
    channel = Channel.window("panchromatic", low, high, ("pan", "gray", "grey", 1))
    return _adapter("panchromatic", [channel], classes, settings)


def sentinel2(classes: ClassSet, bands: Sequence[str] = ("B02", "B03", "B04", "B08"), **settings: Any) -> DomainAdapter:
    """Sentinel-2 MSI in integer reflectance (DN = 10 000 × reflectance), bands by their official names."""
    unknown = [b for b in bands if b not in _SENTINEL2]
    if unknown:
        raise InputError(f"sentinel2: unknown band '{unknown[0]}'; known are {', '.join(_SENTINEL2)}")
    # land reflects around 0.15 ± 0.15; clouds and snow stay inside the clip
    channels = [Channel(b, _SENTINEL2[b], 1500.0, 1500.0, (0.0, 12000.0)) for b in bands]
    return _adapter("sentinel-2", channels, classes, settings)


def landsat(
    classes: ClassSet,
    bands: Sequence[str] = ("blue", "green", "red", "nir", "swir1", "swir2"),
    sensor: str = "oli",
    **settings: Any,
) -> DomainAdapter:
    """Landsat in Collection 2 level 2 integers (reflectance = 0.0000275 × DN - 0.2).

    sensor: `oli` (Landsat 8, 9) or `tm` (TM, ETM+: Landsat 4 to 7). Bands are found as `B4`, `SR_B4`,
    `band 4 reflectance`, or by their spectral name; never by position, because stacks leave bands out.
    """
    if sensor not in _LANDSAT:
        raise InputError(f"landsat: unknown sensor '{sensor}'; known are {', '.join(_LANDSAT)}")
    numbers = _LANDSAT[sensor]
    channels = []
    for band in bands:
        if band not in numbers:
            raise InputError(f"landsat: {sensor} has no band '{band}'; known are {', '.join(numbers)}")
        n = numbers[band]
        find = (
            *_LANDSAT_NAMES.get(band, ()),
            f"B{n}",
            f"SR_B{n}",
            f"band {n} reflectance",
            f"band {n} surface reflectance",
        )
        # DN of reflectance 0.15 and of a spread of 0.15; the valid range is 7273 to 43636
        channels.append(Channel(band, find, 12727.0, 5455.0, (7273.0, 43636.0)))
    return _adapter(f"landsat-{sensor}", channels, classes, settings)


class SampledSource(Protocol):
    """What `fit_channels` needs of a source: the declared channels, read by window."""

    @property
    def path(self) -> Any: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, window: Window) -> tuple[NDArray, NDArray[np.bool_]]: ...


def fit_channels(
    sources: Sequence[SampledSource],
    channels: ChannelSet,
    *,
    windows: int = 64,
    size: int = 256,
    seed: int = 0,
    tail: float = 0.001,
) -> ChannelSet:
    """The channels with offset = mean and scale = standard deviation of the data set; deterministic in
    `seed`.

    sources: opened with these channels. `windows` squares of side `size` are dealt to the sources by area;
    only valid pixels count, and the `tail` share at each end is cut first (a few glints and dead pixels
    would otherwise set the scale). For data wider than 8 bit that cut becomes the channel's clip. A channel
    a source imputes is left as it is. InputError where a channel has no valid pixel at all.
    """
    if not sources:
        raise InputError("statistics: expected at least one source")
    random = np.random.default_rng(seed)
    areas = np.array([np.prod(s.shape, dtype=float) for s in sources])
    shares = np.maximum(np.round(windows * areas / areas.sum()), 1).astype(int)
    samples: list[list[NDArray]] = [[] for _ in channels]
    stride = -(-int(shares.sum()) * size * size // _MOST_VALUES)
    wide = False
    for source, share in zip(sources, shares):
        imputed = getattr(source, "imputed", (False,) * len(channels))
        for _ in range(share):
            array, valid = source.read(_random_window(source.shape, size, random))
            if array.shape[0] != len(channels):
                raise ValueError(f"{source.path}: expected {len(channels)} channels, found {array.shape[0]}")
            wide |= array.dtype.itemsize > 1
            for i, plane in enumerate(array):
                if not imputed[i]:
                    values = plane[valid][::stride]
                    samples[i].append(values[np.isfinite(values)].astype(np.float32))
    fitted = []
    for channel, parts in zip(channels, samples):
        values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if parts and not len(values):
            raise InputError(f"{_paths(sources)}: no valid pixel of channel '{channel.name}' in {windows} windows")
        fitted.append(_fitted(channel, values, tail, wide) if parts else channel)
    return ChannelSet(tuple(fitted))


def _fitted(channel: Channel, values: NDArray, tail: float, wide: bool) -> Channel:
    low, high = (float(v) for v in np.quantile(values, [tail, 1 - tail]))
    inner = np.clip(values.astype(np.float64), low, high)
    # six digits: more would only make the JSON longer
    mean, spread = (float(f"{v:.6g}") for v in (inner.mean(), inner.std()))
    if spread == 0:
        logger.warning("channel '%s' is constant (%g) in the sampled windows: scale 1", channel.name, mean)
        return replace(channel, offset=mean, scale=1.0, clip=None)
    return replace(channel, offset=mean, scale=spread, clip=(low, high) if wide else None)


def _random_window(shape: tuple[int, ...], size: int, random: np.random.Generator) -> Window:
    starts = [int(random.integers(0, max(n - size, 0) + 1)) for n in shape]
    return tuple(slice(a, min(a + size, n)) for a, n in zip(starts, shape))


def _paths(sources: Sequence[SampledSource]) -> str:
    rest = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{sources[0].path}{rest}"


def _rgb() -> list[Channel]:
    return [Channel(name, (name[0], i + 1), *_IMAGENET[name]) for i, name in enumerate(("red", "green", "blue"))]


def _adapter(name: str, channels: Sequence[Channel], classes: ClassSet, settings: dict[str, Any]) -> DomainAdapter:
    return DomainAdapter(settings.pop("name", name), ChannelSet(tuple(channels)), classes, **settings)
