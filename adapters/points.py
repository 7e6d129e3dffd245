"""How a label that is only a point becomes a mask: an assumption, written down where the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from adapters.errors import InputError
from adapters.reading import checked, one_of

LEAST_RADIUS = 1.0  # px; a disc of this radius catches a pixel centre wherever its own centre lies (0.71 would do)


@dataclass(frozen=True)
class PointRule:
    """A point stands for a disc of radius `share` x mean distance to its `neighbours` nearest points, in pixels,
    held between `smallest` and `largest`.

    The geometry-adaptive kernels of MCNN (CVPR 2016, there 0.3 and 3 neighbours) made into masks; that a person is a
    disc is an assumption, and only the place and the number of the discs are known. Discs may overlap and stay whole.

    outside: points off the picture are left out (`drop`) or moved to its edge (`clip`); counted in the report either
        way. duplicates: points at one and the same place all count (`keep`) or only once (`drop`).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    neighbours: int = 3
    share: float = 0.3
    smallest: float = 2.0
    largest: float = 15.0
    outside: Literal["drop", "clip"] = "drop"
    duplicates: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int) or self.neighbours < 1:
            raise InputError(f"points: neighbours: expected a whole number from 1, found {self.neighbours!r}")
        for name in ("share", "smallest", "largest"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise InputError(f"points: {name}: expected a number above 0, found {value!r}")
            object.__setattr__(self, name, float(value))
        if self.smallest < LEAST_RADIUS:
            raise InputError(f"points: smallest: expected {LEAST_RADIUS:g} px or more, found {self.smallest:g}")
        if self.largest < self.smallest:
            raise InputError(f"points: largest: expected at least smallest ({self.smallest:g}), found {self.largest:g}")
        one_of(self.outside, "points: outside", ("drop", "clip"))
        one_of(self.duplicates, "points: duplicates", ("keep", "drop"))

    def radii(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Radius in px of the disc of each of `points` (N, 2), x and y in px. A point alone gets `largest`."""
        if len(points) < 2:
            return np.full(len(points), self.largest)
        from scipy.spatial import KDTree

        nearest = min(self.neighbours, len(points) - 1)
        distances = KDTree(points).query(points, nearest + 1)[0][:, 1:]  # the first is the point itself
        return np.clip(self.share * distances.mean(axis=1), self.smallest, self.largest)

    @property
    def words(self) -> str:
        """The assumption in one line, for reports."""
        return (
            f"points are taken for discs of {self.share:g} x the mean distance to the {self.neighbours} nearest, "
            f"{self.smallest:g} to {self.largest:g} px"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PointRule:
        return cls(**checked(data, "points", cls.__dataclass_fields__))
