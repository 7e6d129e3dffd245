"""A model with its adapter, ready for tiles: native pixels in, objects and class probabilities out.

array, valid → adapter.inputs → pad to 32 → model → MaskSet + probabilities, both cut to the valid pixels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from maskformer import inference
from maskformer.masks import MaskSet
from maskformer.precision import prepare
from maskformer.prediction import Prediction
from pipelines.config import PredictOptions
from pipelines.consensus import agree
from pipelines.devices import PRECISIONS, choose_device, choose_precision

STRIDE = 32  # the coarsest feature map; the forward never pads, so the sides must divide by it
DEFAULT_SCORE = 0.5
DEFAULT_MASK, DEFAULT_KEEP = 0.5, 0.8  # as published
WHOLE_PLANE = (
    "detr",
    "located",
)  # query decoders of MaskFormer: the winner of a pixel takes it, whatever its mask says

# Flips as tuples of axes of (..., H, W); each undoes itself.
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {"none": ((),), "flip": ((), (-1,), (-2,), (-1, -2))}


Traits = list[np.ndarray | None]  # picture by picture
View = tuple[np.ndarray, list[MaskSet], Traits]  # probabilities, objects, and what tells these apart


@dataclass(frozen=True)
class TileResult:
    """One tile: `objects` in tile coordinates, `probabilities` (K, h, w) float16 in 0..1, `valid` (h, w) bool.

    traits: (N, D) float16, what tells the objects apart besides their masks (see `object_traits`), where it is known.
    """

    objects: MaskSet
    probabilities: np.ndarray
    valid: np.ndarray
    traits: np.ndarray | None = None


@dataclass(frozen=True)
class Predictor:
    """`model` maps (B, C, H, W) to a prediction; `options` with every `None` filled in (see `settle`)."""

    model: nn.Module
    adapter: DomainAdapter
    options: PredictOptions
    device: torch.device = field(init=False)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        device = choose_device(self.options.device)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "dtype", choose_precision(self.options.precision, device))
        # One memory layout for every caller: sums in another order would move the last digits of a score.
        self.model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        object.__setattr__(self, "model", prepare(self.model, self.dtype))  # the bundle's own stays float32

    @property
    def batch(self) -> int:
        """Tiles a forward pass; what is left open, as by all that predict no large scene, is one."""
        return 1 if self.options.batch == "auto" else self.options.batch

    def __call__(self, arrays: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[TileResult]:
        """Predict tiles of one shape: `(array (C, h, w), valid (h, w) bool)` each."""
        valids = [valid for _, valid in arrays]
        size = (valids[0].shape[0], valids[0].shape[1])
        batch = torch.from_numpy(np.stack([self.adapter.inputs(a, v) for a, v in arrays]))
        batch = _pad(batch).to(self.device, memory_format=torch.channels_last)
        views = [self._view(batch, axes, size) for axes in FLIPS[self.options.tta]]
        results = []
        for index, valid in enumerate(valids):
            probabilities = np.mean([p[index] for p, _, _ in views], axis=0) * valid
            objects = _clip(agree([o[index] for _, o, _ in views]), valid)
            traits, seen = views[0][2][index], objects.areas > 0
            results.append(
                TileResult(
                    objects if seen.all() else objects[seen],
                    probabilities.astype(np.float16),
                    valid,
                    traits if traits is None else traits[seen],
                )
            )
        return results

    @torch.inference_mode()
    def _view(self, batch: Tensor, axes: tuple[int, ...], size: tuple[int, int]) -> View:
        """Predict one flipped view and flip the answer back."""
        # Flip the picture inside its padding, so that the padding stays at the bottom and right.
        height, width = size
        picture = batch.clone()
        picture[..., :height, :width] = batch[..., :height, :width].flip(axes) if axes else batch[..., :height, :width]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            prediction = self.model(picture)
        # Layered classes do not compete for a pixel.
        combine = "noisy-or" if self.adapter.overlap == "layered" else "sum"
        probabilities = inference.semantic(prediction, size, valid=size, combine=combine).float().cpu().numpy()
        objects, traits = self._objects(prediction, size)
        if axes:
            probabilities = np.flip(probabilities, axes)
            objects = [_flip(o, axes) for o in objects]
        return probabilities, objects, traits

    def _objects(self, prediction: Any, size: tuple[int, int]) -> tuple[list[MaskSet], Traits]:
        options, thing = self.options, self.adapter.classes.is_thing
        score = DEFAULT_SCORE if options.score is None else options.score
        if options.task == "panoptic":
            keep = DEFAULT_KEEP if options.keep is None else options.keep
            inside = self._inside_masks()
            objects = inference.panoptic(prediction, size, size, thing, score, keep, inside_mask=inside)
            return objects, [None] * len(objects)  # of objects that share no pixel, masks decide all
        if self.options.task == "semantic":  # objects come from the finished class map, see assembly
            return [MaskSet.empty(size) for _ in range(len(prediction[0]))], [None] * len(prediction[0])
        mask = DEFAULT_MASK if options.mask is None else options.mask
        queries: list[np.ndarray] = []
        objects = inference.instances(
            prediction, size, valid=size, score=score, mask=mask, thing=thing, queries=queries
        )
        return objects, object_traits(prediction, queries) if queries else [None] * len(objects)

    def _inside_masks(self) -> bool:
        """Whether a segment may take only pixels inside its own mask.

        Mask2Former's rule; MaskFormer's only where the classes leave ground uncovered, which nobody is to win.
        """
        config = getattr(self.model, "config", None)
        return not self.adapter.covers or (config is not None and config.query_decoder not in WHOLE_PLANE)


def object_traits(prediction: Prediction, queries: Sequence[np.ndarray]) -> Traits:
    """(N, D) float16 for the objects of each picture, whose queries are given: their embedding of unit length, where
    the model gives one, else their class probabilities.
    """
    if prediction.mask_embed is not None:
        every = nn.functional.normalize(prediction.mask_embed.float(), dim=-1)
    else:
        every = prediction.class_logits.float().softmax(-1)
    return [one[query].astype(np.float16) for one, query in zip(every.cpu().numpy(), queries, strict=True)]


def settle(
    options: PredictOptions, adapter: DomainAdapter, thresholds: Mapping[str, float], task: str | None = None
) -> PredictOptions:
    """Fill in what the user left open: the adapter's grid, the bundle's thresholds and `task`, this machine's device.

    What `auto` stands for is settled here, so that it is part of a plan's key: shards of another precision do not mix.
    """
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    return options.model_copy(
        update={
            "task": options.task or task or default_task(adapter),
            "device": str(device),
            "precision": next(name for name, dtype in PRECISIONS.items() if dtype == precision),
            "tile": options.tile or adapter.tile,
            "overlap": adapter.tile_overlap if options.overlap is None else options.overlap,
            "score": thresholds.get("score", DEFAULT_SCORE) if options.score is None else options.score,
            "mask": thresholds.get("mask", DEFAULT_MASK) if options.mask is None else options.mask,
            "keep": thresholds.get("overlap", DEFAULT_KEEP) if options.keep is None else options.keep,
        }
    )


def default_task(adapter: DomainAdapter) -> str:
    """Things alone are instances, stuff alone is semantic, both together panoptic."""
    things = adapter.classes.is_thing
    return "instance" if all(things) else "panoptic" if any(things) else "semantic"


def batched(tiles: Iterator[Any], size: int, shape: Any) -> Iterator[list[Any]]:
    """Group neighbours of one `shape(tile)` into lists of at most `size`."""
    group: list[Any] = []
    for tile in tiles:
        if group and (len(group) == size or shape(tile) != shape(group[0])):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group


def _pad(batch: Tensor) -> Tensor:
    height, width = batch.shape[-2:]
    return nn.functional.pad(batch, (0, -width % STRIDE, 0, -height % STRIDE))


def _flip(objects: MaskSet, axes: tuple[int, ...]) -> MaskSet:
    dense = np.flip(objects.to_dense(), axes)
    return MaskSet.from_dense(dense, objects.labels, objects.scores)


def _clip(objects: MaskSet, valid: np.ndarray) -> MaskSet:
    """Cut objects to the valid pixels: nothing is ever seen where the sensor saw nothing."""
    if valid.all() or not len(objects):
        return objects
    return MaskSet.from_dense(objects.to_dense() & valid, objects.labels, objects.scores)
