"""Random changes to a training crop: the image and every plane that belongs to it change together.

Built from torchvision.transforms.v2; our own are only the quarter turns and the channel jitter, because the
library's colour jitter knows one or three channels and a satellite has four to thirteen. Names switch
transforms on (`train.augment` in the run config); no names, no change: that is evaluation.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from adapters.errors import InputError

# Sides of the source window relative to the crop. "scale": objects appear 0.75 to 1.33 times their size; more would
# change the ground resolution by more than one scene differs from the next of the same sensor. "scale_wide" is for
# pictures that come at any magnification.
SCALES = {"scale": (0.75, 4 / 3), "scale_wide": (0.5, 2.0)}


class QuarterTurns(v2.Transform):
    """Rotate by 0, 90, 180 or 270 degrees: exact, no interpolation. Overhead imagery has no "up"."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        turned = torch.rot90(inpt.as_subclass(torch.Tensor), params["turns"], (-2, -1))
        return tv_tensors.wrap(turned, like=inpt)


class ChannelJitter(v2.Transform):
    """Gain and offset for the whole image and for each channel, in normalised space, any channel count.

    gain: standard deviation of the log gain; offset: in standard deviations of the data. Half of either is
    common to all channels (illumination), half is a channel's own (sensor, haze).
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, gain: float = 0.1, offset: float = 0.15) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        channels = next(item.shape[-3] for item in flat_inputs if isinstance(item, tv_tensors.Image))
        shared = math.sqrt(0.5)

        def draw(deviation: float) -> Tensor:
            return deviation * shared * (torch.randn(1, 1, 1) + torch.randn(channels, 1, 1))

        return {"gain": draw(self.gain).exp(), "offset": draw(self.offset)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return tv_tensors.wrap(inpt * params["gain"] + params["offset"], like=inpt)


class Noise(v2.Transform):
    """White noise of a random strength up to `deviation`, in standard deviations of the data."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, deviation: float = 0.1) -> None:
        super().__init__()
        self.deviation = deviation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"deviation": self.deviation * float(torch.rand(()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return tv_tensors.wrap(inpt + params["deviation"] * torch.randn_like(inpt), like=inpt)


class Negative(v2.Transform):
    """Half of the pictures as their negative, mirrored at the data's mean: light on dark teaches dark on light."""

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"sign": 1 - 2 * int(torch.randint(2, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return tv_tensors.wrap(inpt * params["sign"], like=inpt)


TRANSFORMS: dict[str, Callable[[], v2.Transform]] = {
    "flip": lambda: v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]),
    "mirror": v2.RandomHorizontalFlip,  # street level: left and right only
    "rotate": QuarterTurns,
    "negative": Negative,
    "colour": ChannelJitter,
    "noise": Noise,
}
NAMES = (*SCALES, *TRANSFORMS)  # scales are done by the window that is read, see `Augmentation.extent`


class Augmentation:
    """Named random transforms of one crop. Draws from torch's CPU generator, extents from the given one."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Raises InputError for an unknown name."""
        for name in names:
            if name not in NAMES:
                near = difflib.get_close_matches(name, NAMES, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(NAMES)}"
                raise InputError(f"train.augment: unknown augmentation {name!r}; {hint}")
        self.names = tuple(names)
        self.scale = max((SCALES[name] for name in names if name in SCALES), key=lambda s: s[1], default=(1.0, 1.0))
        # In the order of TRANSFORMS whatever the config's order: geometry first, colour last.
        self.transform = v2.Compose([make() for name, make in TRANSFORMS.items() if name in names] or [_same])

    def extent(self, crop: int, generator: np.random.Generator) -> int:
        """Side of the source window, in source pixels, that will be resized to `crop`; log-uniform."""
        low, high = self.scale
        if low == high:
            return round(crop * low)
        return round(crop * math.exp(generator.uniform(math.log(low), math.log(high))))

    def __call__(self, image: Tensor, planes: Tensor, present: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """image (C, h, h) float, planes (M, h, h) int32, present (h, h) bool: pixels with data -> the same at
        `size`. The image is 0 where no data is. Of the planes (label maps) objects may vanish: dropping them is the
        caller's."""
        image, planes, present = resize(image, planes, present, size)
        if self.names:
            stack = tv_tensors.Mask(torch.cat([planes, present[None]]))
            changed, stack = self.transform(tv_tensors.Image(image), stack)
            image, stack = changed.as_subclass(Tensor), stack.as_subclass(Tensor)
            planes, present = stack[:-1], stack[-1].bool()
        return image * present, planes, present


def resize(image: Tensor, planes: Tensor, present: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image bilinear with antialiasing, planes nearest; a pixel that mixes in one without data has none."""
    if image.shape[-2:] == (size, size):
        return image, planes, present
    image = v2.functional.resize(image, [size, size], antialias=True)
    # NEAREST_EXACT shares the image's pixel centres; plain NEAREST (what v2.Resize does to masks) lies up to
    # half a pixel beside them.
    nearest = InterpolationMode.NEAREST_EXACT
    # In float32, which holds numbers to 16 million: of whole numbers the resampling takes bytes alone.
    planes = v2.functional.resize(planes.float(), [size, size], interpolation=nearest).to(planes.dtype)
    share = v2.functional.resize(present[None].float(), [size, size], antialias=True)[0]
    return image, planes, share > 0.999


def _same(*inputs: Any) -> Any:
    return inputs
