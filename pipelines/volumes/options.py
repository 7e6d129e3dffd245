"""How a volume is predicted and what is written. Light: the flow's form and the command line read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adapters.volume import Plane
from pipelines.config import PredictOptions, Strict

SLICES = 4  # a forward pass


def slices_at_once(predict: PredictOptions) -> int:
    """Slices a forward pass by a run config; its `auto` is for the tiles of scenes."""
    return predict.batch if isinstance(predict.batch, int) and "batch" in predict.model_fields_set else SLICES


class VolumeOptions(Strict):
    """How a volume is predicted and what is written. `None` takes the adapter's or the bundle's value."""

    task: Literal["semantic", "instance", "panoptic"] | None = Field(
        None, description="class map, objects, or both: stuff from the class map, things as objects"
    )
    score: float | None = Field(None, ge=0, le=1, description="objects below are left out")
    mask: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="voxels above this mask probability are an object's; default: the model's, else 0.5",
    )
    min_volume_mm3: float = Field(0.0, ge=0, description="objects smaller than this are left out")
    link_iou: float = Field(0.3, gt=0, le=1, description="least IoU of an object in neighbouring slices")
    gap: int = Field(0, ge=0, description="slices an object may be missing in")
    smooth: bool = Field(False, description="class probabilities averaged with the neighbouring slices, 1:2:1")
    planes: tuple[Plane, ...] | None = Field(None, description="slicing planes; several are brought to a consensus")
    series: str | None = Field(None, description="DICOM series, by UID or its end")
    channel_axis: int | None = Field(None, description="axis of the channels in a 4-D file; default the last")
    allow_uneven: bool = Field(False, description="resample uneven or tilted slices on purpose")
    seg: bool | None = Field(None, description="segmentation.dcm; default: for DICOM input")
    rtstruct: bool = Field(False, description="structures.dcm too: outlines as RTSTRUCT")
    report: bool = Field(True, description="report.html")
    keep_names: bool = Field(False, description="output folders named as the inputs; else by a hash")
    folds: tuple[str, ...] = Field((), description="further models (folds) whose predictions are averaged")
    tta: Literal["none", "flip"] = Field("none", description="flip: averaged over mirrored slices, four times as slow")
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch: int = Field(SLICES, gt=0, description="slices a forward pass")
