"""Changes of a picture of known kind and size: what another sensor, season or day does to one and the same place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AIR = np.array([205.0, 214.0, 226.0])[:, None, None]  # what haze adds: a bright bluish grey
WEAK_BAND = np.array([0.45, 0.6, 0.75])[:, None, None]

Change = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Shift:
    """A change of values (3, H, W) in 0..255, then pixels `coarser` times as large."""

    name: str
    change: Change
    coarser: int = 1

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        changed = self.change(pixels.astype(np.float64))
        if self.coarser > 1:
            bands, height, width = changed.shape
            n = self.coarser
            changed = changed[:, : height // n * n, : width // n * n]
            changed = changed.reshape(bands, height // n, n, width // n, n).mean((2, 4))
        return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def same(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return pixels


def haze(pixels: NDArray[np.float64], through: float, seed: int) -> NDArray[np.float64]:
    """Of the light `through` (mean) comes through, more here and less there; the air adds its own, the sensor noise."""
    random = np.random.default_rng(seed)
    clouds = ndimage.gaussian_filter(random.normal(size=pixels.shape[1:]), max(pixels.shape[1:]) / 8, mode="wrap")
    clouds = (clouds - clouds.mean()) / clouds.std()
    share = np.clip(through * (1 + 0.25 * clouds), 0.08, 1)
    return pixels * share + AIR * (1 - share) + random.normal(0, 2, pixels.shape)


def gain(pixels: NDArray[np.float64], factor: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return pixels * factor


def gamma(pixels: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    return 255 * (pixels / 255) ** power


def noise(pixels: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    return pixels + np.random.default_rng(0).normal(0, deviation, pixels.shape)


def blur(pixels: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    return ndimage.gaussian_filter(pixels, (0, sigma, sigma))


def grey(pixels: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Colours fade towards the mean of the bands."""
    return pixels * (1 - share) + pixels.mean(0, keepdims=True) * share


def stripes(pixels: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    """A line scanner whose detectors differ: each column has an offset of its own."""
    return pixels + np.random.default_rng(1).normal(0, deviation, (3, 1, pixels.shape[2]))


def jpeg(pixels: NDArray[np.float64], quality: int) -> NDArray[np.float64]:
    """Squeezed as a photo and unpacked."""
    import io

    from PIL import Image

    packed = io.BytesIO()
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    Image.fromarray(np.moveaxis(rounded, 0, -1)).save(packed, "JPEG", quality=quality)
    return np.moveaxis(np.asarray(Image.open(packed), np.float64), -1, 0)


def warm(pixels: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """A low sun: more red, less blue."""
    return pixels * np.array([1 + strength, 1.0, 1 - strength])[:, None, None]


def slope(pixels: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Brighter to one side, darker to the other, by at most `strength`."""
    return pixels * np.linspace(1 - strength, 1 + strength, pixels.shape[2])


def shadow(pixels: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Clouds above the sensor throw soft shadows on `share` of the ground."""
    random = np.random.default_rng(2)
    clouds = ndimage.gaussian_filter(random.normal(size=pixels.shape[1:]), 16, mode="wrap")
    dark = ndimage.gaussian_filter((clouds > np.quantile(clouds, 1 - share)).astype(float), 2)
    return pixels * (1 - 0.7 * dark)


def motion(pixels: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Smeared along the flight, by columns."""
    return ndimage.uniform_filter1d(pixels, length, axis=1)


def levels(pixels: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Few grey levels are left of 256."""
    return np.rint(pixels / 255 * (count - 1)) * 255 / (count - 1)


def misregistered(pixels: NDArray[np.float64], pixels_apart: int) -> NDArray[np.float64]:
    """Red and blue lie so many pixels beside green, one each way."""
    sides = zip(pixels, (-pixels_apart, 0, pixels_apart), strict=True)
    return np.stack([ndimage.shift(band, (step, step), order=0, mode="nearest") for band, step in sides])


def dead_pixels(pixels: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """A share of all values is black or white."""
    random = np.random.default_rng(4)
    values = 255.0 * random.integers(0, 2, pixels.shape)
    return np.where(random.random(pixels.shape) < share, values, pixels)


def sharpened(pixels: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Edges overdrawn, as a processing chain does: an unsharp mask."""
    return pixels + strength * (pixels - ndimage.gaussian_filter(pixels, (0, 1.5, 1.5)))


# What adaptation is measured on.
BENCHMARKED = (
    Shift("none", same),
    *(Shift(f"haze, seed {seed}", partial(haze, through=0.35, seed=seed)) for seed in (0, 1, 2)),
    Shift("gain", partial(gain, factor=WEAK_BAND)),
    Shift("resolution x2", same, 2),
)
# Drift's number was chosen on these, with the buildings model,
CHOSEN_ON = (
    Shift("none", same),
    *(Shift(f"haze {t}", partial(haze, through=t, seed=3)) for t in (0.8, 0.6, 0.4, 0.25)),
    *(Shift(f"gain {g}", partial(gain, factor=g)) for g in (0.8, 0.6, 0.4, 0.25)),
    *(Shift(f"noise {d}", partial(noise, deviation=d)) for d in (8, 20, 40)),
    *(Shift(f"blur {s}", partial(blur, sigma=s)) for s in (0.7, 1.5, 3.0)),
    *(Shift(f"gamma {p}", partial(gamma, power=p)) for p in (0.4, 0.7, 1.5, 2.5)),
    *(Shift(f"grey {s}", partial(grey, share=s)) for s in (0.5, 1.0)),
    *(Shift(f"stripes {d}", partial(stripes, deviation=d)) for d in (6, 15, 35)),
    *(Shift(f"resolution x{n}", same, n) for n in (2, 3)),
)
# and is tested on these, of kinds that were written down before it was tried on any of them.
TESTED_ON = (
    *(Shift(f"jpeg {q}", partial(jpeg, quality=q)) for q in (40, 12, 4)),
    *(Shift(f"warm {t}", partial(warm, strength=t)) for t in (0.15, 0.3, 0.5)),
    *(Shift(f"slope {t}", partial(slope, strength=t)) for t in (0.3, 0.6, 0.9)),
    *(Shift(f"shadow {s}", partial(shadow, share=s)) for s in (0.15, 0.35, 0.6)),
    *(Shift(f"motion {n}", partial(motion, length=n)) for n in (5, 11, 21)),
    *(Shift(f"levels {n}", partial(levels, count=n)) for n in (16, 6, 3)),
    *(Shift(f"misregistered {n}", partial(misregistered, pixels_apart=n)) for n in (1, 3, 6)),
    *(Shift(f"dead pixels {s}", partial(dead_pixels, share=s)) for s in (0.01, 0.04, 0.12)),
    *(Shift(f"sharpened {s}", partial(sharpened, strength=s)) for s in (1.0, 3.0, 8.0)),
)
