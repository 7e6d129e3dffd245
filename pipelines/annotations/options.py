"""How a label file is to be read, where the file does not say it itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from adapters.errors import InputError
from adapters.points import PointRule
from adapters.reading import one_of


@dataclass(frozen=True)
class LabelOptions:
    """class_column: column or key that holds the class. Without it: a Pascal VOC `name`, a column `class`, `label`,
        `category`, `class_name` or `class_id`, else the adapter's only class.
    default_class: class of objects that no column tells the class of.
    buffer_m, buffer_px: half width of lines, in metres on the ground or in pixels.
    boxes: what a box label is taken for, an assumption the report repeats: the `ellipse` inside it or the `box`.
    rectangles_are_boxes: polygons that are all upright rectangles are boxes too.
    outside: what pixels are that no label speaks about: beyond the edge of a label raster, or off all vector labels.
    layer: layer of a vector file, band of a label raster (name or 1-based index), array of an `.npz`.
    instances: every value of a label raster is one object; its class is `default_class`, else the only class.
    connectivity: neighbours (4 or 8) that make one region of a class raster one object.
    points: how points become masks; without it the adapter's rule (`DomainAdapter.points`) holds.
    centres: outlines and boxes are taken for points at their centroids.
    dots: a label picture marks each object by a dot on black.
    resample: labels of a volume that lie on another grid than the image are brought onto its grid, not refused.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a typo in a run config is an error

    class_column: str | None = None
    default_class: str | None = None
    buffer_m: float | None = None
    boxes: Literal["ellipse", "box"] = "ellipse"
    outside: Literal["ignore", "background"] = "background"
    layer: str | None = None
    buffer_px: float | None = None
    rectangles_are_boxes: bool = False
    instances: bool = False
    connectivity: Literal[4, 8] = 8
    points: PointRule | None = None
    centres: bool = False
    dots: bool = False
    resample: bool = False

    def __post_init__(self) -> None:
        one_of(self.boxes, "labels: boxes", ("ellipse", "box"))
        one_of(self.outside, "labels: outside", ("ignore", "background"))
        one_of(self.connectivity, "labels: connectivity", (4, 8))
        for name in ("buffer_m", "buffer_px"):
            _positive(getattr(self, name), f"labels: {name}")
        if self.buffer_m is not None and self.buffer_px is not None:
            raise InputError("labels: expected buffer_m or buffer_px, found both")


def _positive(value: Any, what: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9):
        raise InputError(f"{what}: expected a number above 0, found {value!r}")
