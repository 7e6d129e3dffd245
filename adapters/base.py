"""DomainAdapter: the description of a domain that travels with the weights."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adapters.channels import ChannelSet
from adapters.class_lists import class_map
from adapters.classes import ClassSet
from adapters.errors import InputError
from adapters.overlap import OVERLAPS, Overlap, resolve
from adapters.points import PointRule
from adapters.reading import checked, one_of
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet

if TYPE_CHECKING:
    from maskformer.targets import Target

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Annotation:
    """What is known about one window: its objects, and the pixels nothing is known about.

    objects: MaskSet on the window's canvas, labels are class indices. ignore: (h, w) bool, or None for no
        such pixel. crowds: regions of several objects of a class that nobody told apart; they are ignored, too.
    """

    objects: MaskSet
    ignore: NDArray[np.bool_] | None = None
    crowds: MaskSet | None = None


@dataclass(frozen=True)
class DomainAdapter:
    """How a domain looks to the model. Frozen; equal adapters have equal JSON.

    overlap: who may share a pixel in the output: `exclusive` nobody, `layered` objects of different classes,
        `free` any objects.
    covers: the classes tile the plane: a pixel without an object is unlabelled, not background.
    tile, tile_overlap: grid defaults in pixels. resolution: ground metres a pixel; spacing: (slice, row,
        column) in mm; both None where the data's own is meant. context_slices: neighbours on each side fed
        as channels. volume: grid, planes, series and nesting of volumes; spacing is then along the axes of its
        orientation. points: how labels that are points become masks; an adapter with it counts, and evaluation adds
        the scores of counting. photos: pictures are read as people see them (upright, 8-bit colour), not as rasters.
    stretch: percentiles (low, high) of each whole picture, never of a tile, that become 0 and 255 before the channels'
        own scale: for pictures whose exposure means nothing (microscopy). None leaves the values alone.
    """

    name: str
    channels: ChannelSet
    classes: ClassSet
    overlap: Overlap = "free"
    covers: bool = False
    tile: int = 512
    tile_overlap: int = 64
    resolution: float | None = None
    spacing: tuple[float, float, float] | None = None
    context_slices: int = 0
    points: PointRule | None = None
    volume: VolumeRules | None = None
    photos: bool = False
    stretch: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        what = f"adapter '{self.name}'"
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"adapter: expected a name, found {self.name!r}")
        for key, kind in (("channels", ChannelSet), ("classes", ClassSet), ("covers", bool), ("photos", bool)):
            if not isinstance(getattr(self, key), kind):
                raise InputError(f"{what}: {key}: expected a {kind.__name__}, found {getattr(self, key)!r}")
        one_of(self.overlap, f"{what}: overlap", OVERLAPS)
        for key, least in (("tile", 1), ("tile_overlap", 0), ("context_slices", 0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{what}: {key}: expected a whole number from {least}, found {value!r}")
        if self.tile_overlap >= self.tile:
            raise InputError(f"{what}: tile_overlap: expected less than tile ({self.tile}), found {self.tile_overlap}")
        if self.points is not None and not isinstance(self.points, PointRule):
            raise InputError(f"{what}: points: expected a PointRule, found {self.points!r}")
        self._check_volume(what)
        if self.resolution is not None:
            object.__setattr__(self, "resolution", _positive(self.resolution, f"{what}: resolution"))
        if self.spacing is not None:
            if isinstance(self.spacing, str) or len(self.spacing) != 3:
                raise InputError(f"{what}: spacing: expected three lengths in mm, found {self.spacing!r}")
            spacing = tuple(_positive(v, f"{what}: spacing") for v in self.spacing)
            object.__setattr__(self, "spacing", spacing)
        if self.stretch is not None:
            object.__setattr__(self, "stretch", _percentiles(self.stretch, f"{what}: stretch"))

    def _check_volume(self, what: str) -> None:
        if self.volume is None:
            return
        if not isinstance(self.volume, VolumeRules):
            raise InputError(f"{what}: volume: expected VolumeRules, found {self.volume!r}")
        for name in (*self.volume.inside, *self.volume.inside.values()):
            if name not in self.classes.names:
                raise InputError(
                    f"{what}: volume: inside: no class '{name}'; known are {', '.join(self.classes.names)}"
                )

    def inputs(self, array: NDArray, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(C, h, w) values of the declared channels -> (C, h, w) float32 for the model, 0 where not valid.

        Values of invalid pixels never reach the result, whatever they are.
        """
        if valid.shape != array.shape[1:]:
            raise ValueError(f"expected valid of shape {array.shape[1:]}, found {valid.shape}")
        result = self.channels.normalise(np.where(valid, array, array.dtype.type(0)))
        np.nan_to_num(result, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        result[:, ~valid] = 0.0
        return result

    def targets(self, annotation: Annotation, valid: NDArray[np.bool_]) -> Target:
        """Training target of one window: objects, and where the loss may look.

        Pixels that are not valid or ignored are not looked at, nor, where the classes cover the plane,
        unlabelled ones.
        """
        from maskformer.targets import Target  # torch is imported only by those who train

        looked_at = valid.astype(bool)
        if annotation.ignore is not None:
            looked_at &= ~annotation.ignore
        if self.covers:
            looked_at &= annotation.objects.to_label_map() > 0
        return Target.from_mask_set(annotation.objects, looked_at)

    def outputs(self, objects: MaskSet) -> MaskSet:
        """The objects with the overlap policy applied; see `adapters.overlap.resolve`."""
        return resolve(objects, self.overlap)

    def with_channels(self, channels: ChannelSet) -> DomainAdapter:
        """The same adapter with other channels (for example with a data set's statistics)."""
        return replace(self, channels=channels)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: plain dicts, lists, strings and numbers."""
        data: dict[str, Any] = {"format": "maskbridge-adapter", "version": FORMAT_VERSION}
        for field in fields(self):
            data[field.name] = getattr(self, field.name)
        data["channels"] = self.channels.to_list()
        data["classes"] = self.classes.to_dict()
        data["volume"] = None if self.volume is None else self.volume.to_dict()
        data["points"] = None if self.points is None else self.points.to_dict()
        for key in ("spacing", "stretch"):
            data[key] = None if data[key] is None else list(data[key])
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DomainAdapter:
        """The adapter of `to_dict()`; InputError says which key is wrong and what was expected."""
        known = [field.name for field in fields(cls)]
        values = checked(data, "adapter", ["format", "version", *known], ["name", "channels", "classes"])
        one_of(values.pop("format", "maskbridge-adapter"), "adapter: format", ["maskbridge-adapter"])
        one_of(values.pop("version", FORMAT_VERSION), "adapter: version", [FORMAT_VERSION])
        values["channels"] = ChannelSet.from_list(values["channels"])
        named = isinstance(values["classes"], str)  # a published list, so that a config need not repeat 133 classes
        values["classes"] = class_map(values["classes"]) if named else ClassSet.from_dict(values["classes"])
        if values.get("volume") is not None:
            values["volume"] = VolumeRules.from_dict(values["volume"])
        if values.get("points") is not None:
            values["points"] = PointRule.from_dict(values["points"])
        return cls(**values)

    def to_json(self) -> str:
        """Stable text: equal adapters give equal bytes."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the JSON; the file appears only when complete."""
        path = Path(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: str | Path) -> DomainAdapter:
        """Read what `save` wrote. InputError names the file and the fault."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot read the adapter: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"{path}: expected an adapter in JSON: {error}") from error
        try:
            return cls.from_dict(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InputError(f"{what}: expected a number above 0, found {value!r}")
    return float(value)


def _percentiles(value: Any, what: str) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise InputError(f"{what}: expected two percentiles, found {value!r}")
    low, high = value
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value) or not 0 <= low < high <= 100:
        raise InputError(f"{what}: expected percentiles 0 <= low < high <= 100, found {value!r}")
    return float(low), float(high)
