"""Random changes to a slice: MONAI's transforms, drawn from a seed of their own, so that a sample is a function of it.

The names are those of scenes; what they mean is what medicine can bear: a body has an "up", so `rotate` turns by up to
15 degrees, and only `flip` mirrors along every axis. `mirror` swaps the patient's right and left.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional

from adapters.errors import InputError

NAMES = ("flip", "mirror", "rotate", "scale", "elastic", "colour", "noise", "smooth", "bias")
TURN = math.pi / 12
SCALES = (0.8, 1.25)  # MONAI counts from 1: a scale of 1.25 shrinks what is seen by that
REACH = 1.3  # of a window that is turned and scaled, against the crop that is left of it
_KEYS = ("image", "planes", "present")
_MODES = ("bilinear", "nearest", "nearest")


class SliceAugmentation:
    """Named random transforms of one picture and the label maps that belong to it. No names, no change."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Raises InputError for an unknown name."""
        for name in names:
            if name not in NAMES:
                near = difflib.get_close_matches(name, NAMES, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known for volumes: {', '.join(NAMES)}"
                raise InputError(f"train.augment: unknown augmentation {name!r}; {hint}")
        self.names = tuple(names)
        self._made: dict[int, Any] = {}

    @property
    def moves(self) -> bool:
        """Whether pixels come from elsewhere than their own place."""
        return bool({"rotate", "scale", "elastic"} & set(self.names))

    def extent(self, crop: int) -> int:
        """Side of the window to read, of which `crop` pixels in the middle are left; the rest is what turns in."""
        return crop + 2 * math.ceil((REACH - 1) * crop / 2) if self.moves else crop

    def __call__(self, image: Tensor, planes: Tensor, present: Tensor, crop: int, seed: int) -> tuple[Tensor, ...]:
        """image (C, e, e) float, planes (M, e, e) int, present (e, e) bool -> the same at `crop`, from the middle.

        The image is 0 where no data is. Of the planes (label maps) objects may vanish: dropping them is the caller's.
        """
        if not self.names:
            return _middle(image * present, crop), _middle(planes, crop), _middle(present, crop)
        if crop not in self._made:
            self._made[crop] = _compose(self.names, crop)
        data = {"image": image.float(), "planes": planes.float(), "present": present[None].float()}
        with _plain_tensors():
            data = self._made[crop].set_random_state(seed=seed)(data)
        changed, present = data["image"], _middle(data["present"][0] > 0.5, crop)
        planes = _middle(data["planes"].round().to(planes.dtype), crop)
        return _middle(changed, crop) * present, planes, present


def _compose(names: Sequence[str], crop: int) -> Any:
    """MONAI's transforms of these names, geometry first; imported here, for it takes seconds."""
    from monai import transforms as mt

    size = (crop, crop)
    turn = TURN if "rotate" in names else 0.0
    scale = (SCALES[0] - 1, SCALES[1] - 1) if "scale" in names else 0.0
    moved: dict[str, Any] = {
        "mode": _MODES,
        "padding_mode": "zeros",
        "spatial_size": size,
        "scale_range": [scale, scale],
    }
    made: dict[str, Callable[[], list[Any]]] = {
        "flip": lambda: [mt.RandFlipd(_KEYS, prob=0.5, spatial_axis=axis) for axis in (0, 1)],
        "colour": lambda: [
            mt.RandScaleIntensityd("image", factors=0.15, prob=0.5),
            mt.RandShiftIntensityd("image", offsets=0.15, prob=0.5),
            mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.75, 1.33)),
        ],
        "bias": lambda: [mt.RandBiasFieldd("image", degree=2, coeff_range=(0.0, 0.2), prob=0.3)],
        "smooth": lambda: [mt.RandGaussianSmoothd("image", sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2), prob=0.2)],
        "noise": lambda: [mt.RandGaussianNoised("image", prob=0.3, std=0.1)],
    }
    steps: list[Any] = []
    if "elastic" in names:
        elastic: dict[str, Any] = {"spacing": (24, 24), "magnitude_range": (0.5, 2.0), "rotate_range": turn}
        steps.append(mt.Rand2DElasticd(_KEYS, prob=1.0, **elastic, **moved))
    elif turn or scale:
        steps.append(mt.RandAffined(_KEYS, prob=1.0, rotate_range=turn, **moved))
    for name, make in made.items():
        if name in names:
            steps += make()
    return mt.Compose(steps)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI's transforms on plain tensors: the record of what was done costs as much as the doing."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def mirrored(image: Tensor, planes: Tensor, present: Tensor, axis: int | None, context: int) -> tuple[Tensor, ...]:
    """Right and left swapped: the pictures' `axis` (0 rows, 1 columns) reversed, or with None the order of the slices.

    image (C (2 context + 1), h, w): the slices one after the other, C channels each.
    """
    if axis is None:
        slices = image.unflatten(0, (2 * context + 1, -1)).flip(0).flatten(0, 1)
        return slices, planes, present
    return image.flip(1 + axis), planes.flip(1 + axis), present.flip(axis)


def _middle(x: Tensor, size: int) -> Tensor:
    """The middle (..., size, size)."""
    before = (x.shape[-1] - size) // 2
    return functional.pad(x, (-before, before + size - x.shape[-1]) * 2)
