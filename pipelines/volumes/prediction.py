"""Predict one volume in memory: slices → class probabilities and objects → linked → cut on the file's own grid.

Class probabilities live for a few slices; the class map is a byte a voxel, objects are runs. So memory does not grow
with the number of classes. Several planes are averaged through temporary files.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from adapters.base import DomainAdapter
from adapters.errors import InputError
from adapters.medical import for_volume
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.assembly import DEFAULT_SEMANTIC
from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions
from pipelines.manifest import Stopwatch
from pipelines.predictor import settle
from pipelines.sources.unpack import check_space
from pipelines.volumes.agreement import agree
from pipelines.volumes.bias import flatten
from pipelines.volumes.labels import components, nested
from pipelines.volumes.linking import LinkRules, SliceLinker, torn
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.probabilities import ClassMaps, Spool, averaged, smoothed
from pipelines.volumes.resampling import Resampling, plan_resampling
from pipelines.volumes.restoring import Decision, forward_values, restore_labels, restore_objects
from pipelines.volumes.slice_predictor import SlicePredictor, Wanted
from pipelines.volumes.slicing import Slices, turn_objects
from pipelines.volumes.soft import HardSet, LinkedSet, SoftStore
from pipelines.volumes.source import VolumeSource

__all__ = ["VolumeModel", "VolumeOptions", "VolumePredictor", "VolumeResult", "regions"]

Progress = Callable[..., None]  # (stage, done, total)


@dataclass(frozen=True)
class VolumeModel:
    """A model with its adapter and where it comes from; `folds` are further ones of the same adapter, averaged in.

    task: what the model was trained for, where its bundle says so.
    """

    module: nn.Module
    adapter: DomainAdapter
    thresholds: Mapping[str, float] = field(default_factory=dict)
    name: str = "model"
    version: str | None = None
    sha256: str = ""
    digest: str = ""
    folds: tuple[nn.Module, ...] = ()
    task: str | None = None

    @classmethod
    def load(cls, reference: str | Path, folds: Sequence[str | Path] = ()) -> VolumeModel:
        """The model of a bundle folder or `models:/...`, and with it those of other folds.

        InputError where a fold's model wants other channels, classes, slices or another grid.
        """
        found = load_bundle(reference)
        name = Path(found.name).name if "://" not in str(found.name) else str(found.name)
        others = [load_bundle(fold) for fold in folds]
        for fold, other in zip(folds, others):
            _check_fold(str(fold), found.adapter, other.adapter)
        digest = found.digest
        if others:
            digest = hashlib.sha256(" ".join([digest, *(other.digest for other in others)]).encode()).hexdigest()
            name = f"{name} and {len(others)} folds"
        thresholds = _mean_thresholds([one.thresholds for one in (found, *others)])
        modules = tuple(other.build() for other in others)
        task = found.provenance.get("task")
        return cls(found.build(), found.adapter, thresholds, name, found.version, found.sha256, digest, modules, task)

    @property
    def rules(self) -> VolumeRules:
        return self.adapter.volume or VolumeRules()


@dataclass(frozen=True)
class VolumeResult:
    """On the source's own grid: labels (0 nothing, k + 1 class k) uint8, and objects in canonical order.

    torn: objects that the audit after linking found in two pieces; more than 0 is a fault of this code.
    """

    labels: NDArray[np.uint8]
    objects: MaskSet
    torn: int


@dataclass(frozen=True)
class _Volume:
    """One volume on its way: the slices of each plane, and the way back to its own grid."""

    source: VolumeSource
    views: Sequence[Slices]
    resampling: Resampling
    known: NDArray[np.bool_]  # on the source's grid
    watch: Stopwatch


class VolumePredictor:
    """Predicts volumes with one model; the network is prepared once."""

    def __init__(self, model: VolumeModel, options: VolumeOptions | None = None) -> None:
        self.model, self.options = model, options or VolumeOptions()
        names = ("task", "score", "mask", "tta", "device", "precision", "batch")
        asked = PredictOptions(**{name: getattr(self.options, name) for name in names})
        self.settled = settle(asked, model.adapter, model.thresholds, model.task)
        self.predictor = SlicePredictor([model.module, *model.folds], self.settled)
        threshold = model.thresholds.get("semantic", DEFAULT_SEMANTIC)
        self.decision = Decision(model.adapter, model.rules, threshold)

    def __call__(
        self, source: VolumeSource, on_progress: Progress | None = None, watch: Stopwatch | None = None
    ) -> VolumeResult:
        """Predict an opened volume. watch: gets the seconds of `read`, `resample`, `predict` and `objects`."""
        watch = watch or Stopwatch()
        volume = self._prepared(source, watch)
        labels, linked = self._predicted(volume, on_progress)
        found = self._restored_objects(linked, volume)
        with watch.stage("objects"):
            objects = self._objects(labels, found, len(volume.views) > 1)
            least = max(1.0, self.options.min_volume_mm3 / source.geometry.voxel_volume_mm3 - 1e-9)
            objects = objects[(objects.areas >= least) & (objects.scores >= (self.settled.score or 0.0))].canonical()
            pieces = sum(int(torn(one.linked).sum()) for one in linked)
        return VolumeResult(labels, objects, pieces)

    def _prepared(self, source: VolumeSource, watch: Stopwatch) -> _Volume:
        rules, adapter = self.model.rules, self.model.adapter
        resampling = plan_resampling(source.geometry, rules.orientation, adapter.spacing)
        with watch.stage("read"):
            flatten(source, rules)
            scaled = for_volume(adapter, source)
            values, known = source.read()
            source.notes += doubts(values, source.modality, rules)
        with watch.stage("resample"):
            values, valid = forward_values(resampling, values, known)
        planes = self.options.planes or rules.planes
        axes = dict.fromkeys(resampling.target.axis_of(plane) for plane in planes)
        views = [Slices(values, valid, axis, scaled) for axis in axes]
        return _Volume(source, views, resampling, known, watch)

    def _predicted(self, volume: _Volume, on_progress: Progress | None) -> tuple[NDArray, list[LinkedSet]]:
        """The class map on the source's grid, and what each plane found."""
        views, linked = volume.views, list[LinkedSet]()
        if len(views) == 1:
            stream = self._probabilities(volume, 0, linked, on_progress)
            return self._restored(volume, stream, views[0].axis), linked
        classes, shape = len(self.model.adapter.classes), volume.resampling.target.shape
        needed = classes * int(np.prod(shape)) * len(views)
        check_space(volume.source.path, needed, Path(tempfile.gettempdir()))
        with ExitStack() as stack:
            spools = [stack.enter_context(Spool(classes, shape)) for _ in views]
            with volume.watch.stage("predict"):
                for number, spool in enumerate(spools):
                    for position, one in enumerate(self._probabilities(volume, number, linked, on_progress)):
                        spool.write(views[number].axis, position, one)
            return self._restored(volume, averaged(spools), 0), linked

    def _restored(self, volume: _Volume, stream: Iterable[ClassMaps], axis: int) -> NDArray:
        """The class map; what making the slices takes is told apart from what bringing them back takes."""
        watch, began = Stopwatch(), time.perf_counter()
        labels = restore_labels(_timed(stream, watch), axis, volume.resampling, volume.known, self.decision)
        made = watch.seconds.get("predict", 0.0)
        seconds = volume.watch.seconds
        seconds["predict"] = round(seconds.get("predict", 0.0) + made, 3)
        seconds["resample"] = round(seconds.get("resample", 0.0) + time.perf_counter() - began - made, 3)
        return labels

    def _probabilities(
        self, volume: _Volume, number: int, linked: list[LinkedSet], on_progress: Progress | None
    ) -> Iterator[ClassMaps]:
        """Class probabilities slice by slice; at their end the linked objects are put into `linked`."""
        task, adapter, view = self.settled.task, self.model.adapter, volume.views[number]
        soft = task != "semantic" and not volume.resampling.is_exact
        wanted = Wanted(
            tuple(adapter.classes.is_thing),
            adapter.overlap == "layered",
            self.settled.score if self.settled.score is not None else 0.0,
            task != "semantic",
            soft or len(volume.views) > 1,
            self.decision.least,
        )
        linker = SliceLinker(view.shape, LinkRules(iou=self.options.link_iou, gap=self.options.gap))
        parts, store = [MaskSet.empty(view.shape)], SoftStore()
        stage = "predict" if len(volume.views) == 1 else f"predict, plane {number + 1}"

        def each() -> Iterator[ClassMaps]:
            position = 0
            for positions in view.batches(self.options.batch):
                for result in self.predictor([view[p] for p in positions], wanted):
                    parts.append(linker.add(position, result.found.objects))
                    store.add(position, result.found)
                    yield result.probabilities
                    position += 1
                    if on_progress:
                        on_progress(stage, position, len(view))

        yield from smoothed(each()) if self.options.smooth else each()
        found = MaskSet.concatenate([*parts, linker.finish()])
        if wanted.objects:
            linked.append(LinkedSet(found, turn_objects(found, view.axis), view.axis, store))

    def _restored_objects(self, linked: Sequence[LinkedSet], volume: _Volume) -> MaskSet | None:
        """What the views found, agreed on and on the source's grid; None where objects come from the class map."""
        if self.settled.task == "semantic":
            return None
        with volume.watch.stage("resample"):
            if len(linked) == 1 and volume.resampling.is_exact:
                return volume.resampling.back_objects(linked[0].objects)
            return restore_objects(agree(linked), volume.resampling)

    def _objects(self, labels: NDArray, found: MaskSet | None, several: bool) -> MaskSet:
        """All objects on the source's grid, the overlap policy applied there; `several`: views have agreed on them."""
        adapter, rules = self.model.adapter, self.model.rules
        if found is None:
            return regions(labels, adapter, rules)
        found = adapter.outputs(found[found.areas > 0])
        if several:
            found = apart(found)
        if self.settled.task == "panoptic":
            found = MaskSet.concatenate([found, self._stuff(labels, found)])
        return found

    def _stuff(self, labels: NDArray, things: MaskSet) -> MaskSet:
        """One object of every stuff class of the class map; where classes exclude each other, things come first."""
        adapter = self.model.adapter
        if adapter.overlap == "exclusive" and len(things):
            labels = np.where(things.union(np.zeros(len(things), np.int64)).to_dense()[0], 0, labels)
        found = regions(labels, adapter, self.model.rules)
        return found[~np.asarray(adapter.classes.is_thing)[found.labels]]


def _timed(stream: Iterable[ClassMaps], watch: Stopwatch) -> Iterator[ClassMaps]:
    """The stream, and under `predict` the seconds that making its items takes."""
    items, last = iter(stream), object()
    while True:
        with watch.stage("predict"):
            one = next(items, last)
        if one is last:
            return
        yield cast(ClassMaps, one)


def doubts(values: NDArray, modality: str | None, rules: VolumeRules) -> list[str]:
    """What makes a file that does not say its modality, as NIfTI never does, look like one of another.

    A CT in Hounsfield units has air at -1000; magnetic resonance has nothing near that.
    """
    wanted = rules.series.modality
    if modality is not None or wanted not in ("CT", "MR") or not values.size:
        return []
    least = float(values.min())
    if wanted == "CT" and least >= 0:
        return [f"the model is for CT in Hounsfield units, but no value is below 0 (the least is {least:g})"]
    if wanted == "MR" and least <= -500:
        return [f"the model is for MR, but values down to {least:g} look like a CT in Hounsfield units"]
    return []


def apart(objects: MaskSet) -> MaskSet:
    """Every object whose mask fell into parts that do not touch, as an object a part: one id is one piece."""
    result = []
    for number in range(len(objects)):
        one = HardSet(objects).soft_of(number)
        parts = components(one.values > 0, int(objects.labels[number]))
        placed = parts.place(objects.shape, one.offset)
        result.append(placed.with_scores(np.full(len(parts), objects.scores[number], np.float32)))
    return MaskSet.concatenate(result) if result else objects


def regions(labels: NDArray[np.uint8], adapter: DomainAdapter, rules: VolumeRules) -> MaskSet:
    """Objects of a class map: the connected parts of every thing, each stuff class as one; nested classes filled."""
    parts = [MaskSet.empty(labels.shape)]
    # by boxes: 120 classes of a whole body would be compared with 120 times its voxels
    for k, box in enumerate(ndimage.find_objects(labels, len(adapter.classes))):
        if box is not None:
            mask = labels[box] == k + 1
            inside = components(mask, k) if adapter.classes.is_thing[k] else MaskSet.from_dense(mask[None], [k])
            parts.append(inside.place(labels.shape, [part.start for part in box]))
    return nested(MaskSet.concatenate(parts), adapter.classes, rules)


def _check_fold(fold: str, first: DomainAdapter, other: DomainAdapter) -> None:
    """The channels' statistics may differ a little from fold to fold; what they are may not."""
    for name in ("classes", "overlap", "spacing", "context_slices", "volume"):
        if getattr(first, name) != getattr(other, name):
            raise InputError(f"{fold}: not a fold of the same model: its adapter has another `{name}`")
    fitted = (
        first.volume is not None and first.volume.intensity == "volume"
    )  # to every scan: the adapter's do not count
    if first.channels.names != other.channels.names or (not fitted and first.channels != other.channels):
        raise InputError(f"{fold}: not a fold of the same model: its channels differ in name or scale")


def _mean_thresholds(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every threshold that all folds have tuned; of others that of the first."""
    first = each[0]
    shared = [name for name in first if all(name in one for one in each)]
    return {**first, **{name: float(np.mean([one[name] for one in each])) for name in shared}}
