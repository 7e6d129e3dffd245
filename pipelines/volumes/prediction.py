"""Predict one volume in memory: slices → class probabilities and objects → linked, on the model's grid → back.

Class probabilities live for a slice (or the smoothing's few); the class map is a byte a voxel, objects are runs. So
memory does not grow with the number of classes. Several planes are averaged through temporary files.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from adapters.base import DomainAdapter
from adapters.medical import for_volume
from adapters.volume import Plane, VolumeRules
from maskformer.masks import MaskSet
from pipelines.assembly import DEFAULT_SEMANTIC, class_map
from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions, Strict
from pipelines.predictor import Predictor, TileResult, settle
from pipelines.sources.unpack import check_space
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.labels import components, nested
from pipelines.volumes.linking import LinkRules, SliceLinker, torn
from pipelines.volumes.probabilities import Spool, averaged, smoothed
from pipelines.volumes.resampling import Resampling, plan_resampling
from pipelines.volumes.slicing import ContextAdapter, Slices, turn_objects
from pipelines.volumes.source import VolumeSource

NOTHING = 0
Progress = Callable[..., None]  # (stage, done, total)


class VolumeOptions(Strict):
    """How a volume is predicted and what is written. `None` takes the adapter's or the bundle's value."""

    task: Literal["semantic", "instance", "panoptic"] | None = None
    score: float | None = Field(None, ge=0, le=1, description="objects below are left out")
    min_volume_mm3: float = Field(0.0, ge=0, description="objects smaller than this are left out")
    link_iou: float = Field(0.3, gt=0, le=1, description="least IoU of an object in neighbouring slices")
    gap: int = Field(0, ge=0, description="slices an object may be missing in")
    smooth: bool = Field(False, description="class probabilities averaged with the neighbouring slices, 1:2:1")
    planes: tuple[Plane, ...] | None = Field(None, description="slicing planes; several are brought to a consensus")
    series: str | None = Field(None, description="DICOM series, by UID or its end")
    channel_axis: int | None = None
    allow_uneven: bool = Field(False, description="resample uneven or tilted slices on purpose")
    seg: bool | None = Field(None, description="segmentation.dcm; default: for DICOM input")
    keep_names: bool = Field(False, description="output folders named as the inputs; else by a hash")
    tta: Literal["none", "flip"] = "none"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch: int = Field(4, gt=0)


@dataclass(frozen=True)
class VolumeModel:
    """A model with its adapter and where it comes from."""

    module: nn.Module
    adapter: DomainAdapter
    thresholds: Mapping[str, float] = field(default_factory=dict)
    name: str = "model"
    version: str | None = None
    sha256: str = ""
    digest: str = ""

    @classmethod
    def load(cls, reference: str | Path) -> VolumeModel:
        """The model of a bundle folder or `models:/...`."""
        found = load_bundle(reference)
        name = Path(found.name).name if "://" not in str(found.name) else str(found.name)
        return cls(found.build(), found.adapter, found.thresholds, name, found.version, found.sha256, found.digest)

    @property
    def rules(self) -> VolumeRules:
        return self.adapter.volume or VolumeRules()


@dataclass(frozen=True)
class VolumeResult:
    """On the source's own grid: labels (0 nothing, k + 1 class k) uint8 and objects in canonical order.

    torn: objects that the audit after linking found in two pieces; more than 0 is a fault of this code.
    """

    labels: NDArray[np.uint8]
    objects: MaskSet
    torn: int


class VolumePredictor:
    """Predicts volumes with one model; the network is prepared once."""

    def __init__(self, model: VolumeModel, options: VolumeOptions | None = None) -> None:
        self.model, self.options = model, options or VolumeOptions()
        asked = PredictOptions(
            task=self.options.task,
            score=self.options.score,
            tta=self.options.tta,
            device=self.options.device,
            precision=self.options.precision,
            batch=self.options.batch,
        )
        self.settled = settle(asked, model.adapter, model.thresholds)
        self.predictor = Predictor(model.module, cast(DomainAdapter, ContextAdapter(model.adapter)), self.settled)

    def __call__(self, source: VolumeSource, on_progress: Progress | None = None) -> VolumeResult:
        """Predict an opened volume."""
        rules, adapter = self.model.rules, self.model.adapter
        resampling = plan_resampling(source.geometry, rules.orientation, adapter.spacing)
        values, valid = source.read()
        values = resampling.forward(values)
        valid = np.ones(resampling.target.shape, bool) if valid.all() else resampling.forward_mask(valid)
        self._scale_for(source)
        labels, objects, pieces = self._on_grid(values, valid, resampling.target, source, on_progress)
        del values, valid
        return VolumeResult(*self._back(labels, objects, resampling, source.geometry), pieces)

    def _scale_for(self, source: VolumeSource) -> None:
        """Channels fitted to the whole volume where the adapter wants that; the network stays as it is prepared."""
        fitted = cast(DomainAdapter, ContextAdapter(for_volume(self.model.adapter, source)))
        self.predictor = copy.copy(self.predictor)
        object.__setattr__(self.predictor, "adapter", fitted)  # replace() would prepare the network anew

    def _on_grid(
        self,
        values: NDArray,
        valid: NDArray[np.bool_],
        grid: VolumeGeometry,
        source: VolumeSource,
        on_progress: Progress | None,
    ) -> tuple[NDArray[np.uint8], MaskSet, int]:
        """The class map on the model's grid, the objects of the first plane, and how many of them are torn."""
        planes = self.options.planes or self.model.rules.planes
        axes = list(dict.fromkeys(grid.axis_of(plane) for plane in planes))
        views = [Slices(values, valid, axis, self.model.adapter.context_slices) for axis in axes]
        labels = np.zeros(grid.shape, np.uint8)
        collected: list[MaskSet] = []
        if len(views) == 1:
            turned, seen = np.moveaxis(labels, axes[0], 0), np.moveaxis(valid, axes[0], 0)
            stream = self._probabilities(views[0], collected, on_progress)
            for position, one in enumerate(stream):
                turned[position] = self._class_map(one, seen[position])
        else:
            classes = len(self.model.adapter.classes)
            check_space(source.path, classes * valid.size * len(views), Path(tempfile.gettempdir()))
            with ExitStack() as stack:
                spools = [stack.enter_context(Spool(classes, grid.shape)) for _ in views]
                for number, (view, spool) in enumerate(zip(views, spools)):
                    stream = self._probabilities(view, collected if number == 0 else None, on_progress)
                    for position, one in enumerate(stream):
                        spool.write(view.axis, position, one[:, None])
                for position, one in enumerate(averaged(spools)):
                    labels[position] = self._class_map(one, valid[position])
        linked = MaskSet.concatenate(collected) if collected else MaskSet.empty(views[0].shape)
        return labels, turn_objects(linked, axes[0]), int(torn(linked).sum())

    def _probabilities(
        self, view: Slices, collected: list[MaskSet] | None, on_progress: Progress | None
    ) -> Iterator[NDArray[np.float32]]:
        """Class probabilities slice by slice; the linked objects go to `collected`, where there is one."""
        linker = SliceLinker(view.shape, LinkRules(iou=self.options.link_iou, gap=self.options.gap))

        def each() -> Iterator[NDArray]:
            for position, result in enumerate(self._slices(view)):
                if collected is not None and self.settled.task != "semantic":
                    collected.append(linker.add(position, result.objects))
                yield result.probabilities
                if on_progress:
                    on_progress("predict", position + 1, len(view))
            if collected is not None and self.settled.task != "semantic":
                collected.append(linker.finish())

        return smoothed(each()) if self.options.smooth else (one.astype(np.float32) for one in each())

    def _slices(self, view: Slices) -> Iterator[TileResult]:
        for positions in view.batches(self.options.batch):
            yield from self.predictor([view[position] for position in positions])

    def _class_map(self, probabilities: NDArray, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        adapter, rules = self.model.adapter, self.model.rules
        threshold = self.model.thresholds.get("semantic", DEFAULT_SEMANTIC)
        if adapter.overlap != "layered":
            ids = class_map(probabilities, valid, adapter, threshold)
            ids[~valid] = NOTHING
            return ids
        # one label a voxel: inner classes are painted over the outer ones, which hold them anyway
        ids = np.zeros(valid.shape, np.uint8)
        for k in sorted(range(len(adapter.classes)), key=lambda k: (len(rules.outer(adapter.classes.names[k])), k)):
            ids[(probabilities[k] >= threshold) & valid] = k + 1
        return ids

    def _back(
        self, labels: NDArray[np.uint8], objects: MaskSet, resampling: Resampling, geometry: VolumeGeometry
    ) -> tuple[NDArray[np.uint8], MaskSet]:
        adapter = self.model.adapter
        back = resampling.back_labels(labels)
        if self.settled.task == "semantic":
            found = regions(back, adapter, self.model.rules)
        else:
            found = resampling.back_objects(adapter.outputs(objects))
        least = max(1.0, self.options.min_volume_mm3 / geometry.voxel_volume_mm3 - 1e-9)
        found = found[(found.areas >= least) & (found.scores >= (self.settled.score or 0.0))]
        return back, found.canonical()


def regions(labels: NDArray[np.uint8], adapter: DomainAdapter, rules: VolumeRules) -> MaskSet:
    """Objects of a class map: the connected parts of every thing, each stuff class as one; nested classes filled."""
    parts: list[MaskSet] = []
    for k, thing in enumerate(adapter.classes.is_thing):
        mask = labels == k + 1
        if mask.any():
            parts.append(components(mask, k) if thing else MaskSet.from_dense(mask[None], [k]))
    found = MaskSet.concatenate(parts) if parts else MaskSet.empty(labels.shape)
    return nested(found, adapter.classes, rules)
