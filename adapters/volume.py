"""What an adapter says about volumes: the grid, the slicing planes, the series, the intensities, the nesting."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from adapters.errors import InputError
from adapters.reading import checked, one_of

Plane = Literal["axial", "coronal", "sagittal", "thick"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal", "thick")
Intensity = Literal["dataset", "volume"]


@dataclass(frozen=True)
class SeriesRule:
    """Which series of a DICOM folder is predicted. What is None does not matter.

    modality: `CT`, `MR`. description: a regular expression found in the series' description, whatever the case.
    thickness: (least, most) mm between slices. slices: the least number of them.
    """

    modality: str | None = None
    description: str | None = None
    thickness: tuple[float, float] | None = None
    slices: int = 1

    def __post_init__(self) -> None:
        if self.description is not None:
            try:
                re.compile(self.description)
            except (re.error, TypeError) as error:
                raise InputError(f"series: description: not a regular expression: {error}") from error
        if self.modality is not None and (not isinstance(self.modality, str) or not self.modality):
            raise InputError(f"series: modality: expected a word such as CT, found {self.modality!r}")
        if self.thickness is not None:
            values = tuple(self.thickness)
            if len(values) != 2 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                raise InputError(f"series: thickness: expected [least, most] in mm, found {self.thickness!r}")
            if not 0 <= values[0] <= values[1]:
                raise InputError(f"series: thickness: expected least <= most, found {self.thickness!r}")
            object.__setattr__(self, "thickness", (float(values[0]), float(values[1])))
        if isinstance(self.slices, bool) or not isinstance(self.slices, int) or self.slices < 1:
            raise InputError(f"series: slices: expected a whole number from 1, found {self.slices!r}")

    def refuses(self, modality: str, description: str, thickness: float, slices: int) -> str | None:
        """Why a series does not fit, or None where it does."""
        if self.modality is not None and modality.upper() != self.modality.upper():
            return f"modality {modality} is not {self.modality}"
        if self.description is not None and not re.search(self.description, description, re.IGNORECASE):
            return f"its description does not match '{self.description}'"
        if slices < self.slices:
            return f"{slices} slices are fewer than {self.slices}"
        if self.thickness is not None and not self.thickness[0] <= thickness <= self.thickness[1]:
            return f"{thickness:.3g} mm between slices are not in {self.thickness[0]:g} to {self.thickness[1]:g}"
        return None


@dataclass(frozen=True)
class VolumeRules:
    """How volumes are laid out for the model and what their classes mean to each other.

    orientation: of the model's grid, such as `RAS`; None keeps the file's own. The adapter's `spacing` is along its
        axes.
    planes: the slices the model sees; `thick` are those across the widest spacing. Several planes are predicted each
        and brought to a consensus.
    series: which series of a DICOM folder.
    intensity: `dataset` scales by the channels as they are; `volume` fits offset, scale and clip of every channel to
        the whole volume first, robustly. Never to a slice.
    inside: class name -> name of the class it lies in: a voxel labelled with the inner class belongs to the outer
        one as well (enhancing -> core -> whole tumour; lesion -> liver).
    flatten: divide MR by the smooth field of its coil first, estimated for each volume (`pipelines.volumes.bias`).
    """

    orientation: str | None = "RAS"
    planes: tuple[Plane, ...] = ("thick",)
    series: SeriesRule = field(default_factory=SeriesRule)
    intensity: Intensity = "dataset"
    inside: Mapping[str, str] = field(default_factory=dict)
    flatten: bool = False

    def __post_init__(self) -> None:
        if self.orientation is not None:
            letters = sorted("RAS"["RLAPSI".index(c) // 2] for c in str(self.orientation).upper() if c in "RLAPSI")
            if letters != ["A", "R", "S"] or len(str(self.orientation)) != 3:
                raise InputError(f"volume: orientation: expected three letters such as RAS, found {self.orientation!r}")
            object.__setattr__(self, "orientation", str(self.orientation).upper())
        if isinstance(self.planes, str) or not isinstance(self.planes, Sequence) or not self.planes:
            raise InputError(f"volume: planes: expected a list of {', '.join(PLANES)}, found {self.planes!r}")
        for plane in self.planes:
            one_of(plane, "volume: planes", PLANES)
        if len(set(self.planes)) < len(self.planes):
            raise InputError(f"volume: planes: one is named twice in {list(self.planes)}")
        object.__setattr__(self, "planes", tuple(self.planes))
        if not isinstance(self.series, SeriesRule):
            raise InputError(f"volume: series: expected a SeriesRule, found {self.series!r}")
        one_of(self.intensity, "volume: intensity", ("dataset", "volume"))
        if not isinstance(self.flatten, bool):
            raise InputError(f"volume: flatten: expected true or false, found {self.flatten!r}")
        object.__setattr__(self, "inside", dict(self.inside))
        for name in self.inside:
            self.outer(name)

    def __hash__(self) -> int:
        nested = tuple(sorted(self.inside.items()))
        return hash((self.orientation, self.planes, self.series, self.intensity, nested, self.flatten))

    def outer(self, name: str) -> list[str]:
        """The classes a class lies in, innermost first; InputError where they go round in a circle."""
        chain: list[str] = []
        while name in self.inside:
            name = self.inside[name]
            if name in chain or len(chain) > len(self.inside):
                raise InputError(f"volume: inside: '{name}' lies inside itself")
            chain.append(name)
        if chain and len(chain) != len(set(chain)):
            raise InputError(f"volume: inside: '{name}' lies inside itself")
        return chain

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        data = asdict(self)
        data["planes"] = list(self.planes)
        data["series"]["thickness"] = None if self.series.thickness is None else list(self.series.thickness)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VolumeRules:
        values = checked(data, "volume", cls.__dataclass_fields__)
        if "series" in values:
            fields = checked(values["series"], "volume: series", SeriesRule.__dataclass_fields__)
            values["series"] = SeriesRule(**fields)
        if "planes" in values and isinstance(values["planes"], list):
            values["planes"] = tuple(values["planes"])
        return cls(**values)
