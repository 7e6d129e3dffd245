"""Slices of one batch through the network: class probabilities and objects, averaged over mirrored copies and folds.

A batch goes through the network at once; what follows (all classes at full size) is done a slice at a time, so that
memory holds the probabilities of one slice, not of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from maskformer import dense_inference, inference
from maskformer.instances import draw
from maskformer.masks import MaskSet
from maskformer.precision import prepare
from maskformer.prediction import STRIDE, DensePrediction, Prediction
from pipelines.config import PredictOptions
from pipelines.devices import choose_device, choose_precision
from pipelines.predictor import DEFAULT_MASK, DEFAULT_SCORE, FLIPS
from pipelines.predictor import STRIDE as COARSEST
from pipelines.volumes.agreement import agree_slices
from pipelines.volumes.probabilities import LEAST, ClassMaps, mixed
from pipelines.volumes.soft import Soft, SoftSet, soft_of_maps

AT_ONCE = 32  # queries whose masks are at full size at a time: 32 MiB of float32 at 512 x 512

Size = tuple[int, int]
Picture = tuple[NDArray[np.float32], NDArray[np.bool_]]  # (C, h, w) on the model's scale, (h, w) what is valid


class SliceResult(NamedTuple):
    """One slice: its class probabilities, its objects, and their soft masks where they were asked for."""

    probabilities: ClassMaps
    found: SoftSet


@dataclass(frozen=True)
class Wanted:
    """What is made of a slice: objects or class probabilities alone, their soft masks too; classes from `least` on."""

    thing: tuple[bool, ...]
    layered: bool = False
    score: float = DEFAULT_SCORE
    objects: bool = True
    soft: bool = False
    least: float = LEAST


class SlicePredictor:
    """Networks of one adapter (a model, or its folds) made ready once. `options` are settled ones."""

    def __init__(self, modules: Sequence[nn.Module], options: PredictOptions) -> None:
        self.device = choose_device(options.device)
        self.dtype = choose_precision(options.precision, self.device)
        self.flips = FLIPS[options.tta]
        self.mask = DEFAULT_MASK if options.mask is None else options.mask
        self.modules = []
        for module in modules:
            module.to(self.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            self.modules.append(prepare(module, self.dtype))

    def __call__(self, pictures: Sequence[Picture], wanted: Wanted) -> Iterator[SliceResult]:
        """Predict pictures of one size, in order."""
        height, width = pictures[0][1].shape
        batch = torch.from_numpy(np.stack([values for values, _ in pictures]))
        batch = functional.pad(batch, (0, _padding(width), 0, _padding(height)))
        batch = batch.to(self.device, memory_format=torch.channels_last)
        views = [(axes, self._forward(m, batch, axes, (height, width))) for m in self.modules for axes in self.flips]
        soft = wanted.soft or len(views) > 1
        for number, (_, valid) in enumerate(pictures):
            parts = [self._one(_picture(made, number), axes, (height, width), wanted, soft) for axes, made in views]
            probabilities = mixed([part.probabilities for part in parts], [1 / len(parts)] * len(parts))
            found = agree_slices([part.found for part in parts])
            if not valid.all():
                probabilities = ClassMaps(probabilities.classes, probabilities.maps * valid)
                found = _clip(found, valid)
            yield SliceResult(probabilities, found)

    @torch.inference_mode()
    def _forward(self, module: nn.Module, batch: Tensor, axes: tuple[int, ...], size: Size) -> Any:
        if axes:  # the picture is mirrored inside its padding, which stays at the bottom and right
            batch, plain = batch.clone(), batch
            batch[..., : size[0], : size[1]] = plain[..., : size[0], : size[1]].flip(axes)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return module(batch)

    @torch.inference_mode()
    def _one(self, prediction: Any, axes: tuple[int, ...], size: Size, wanted: Wanted, soft: bool) -> SliceResult:
        """One slice of one view, mirrored back."""
        probabilities = class_maps(prediction, size, wanted)
        objects = SoftSet(MaskSet.empty(size), [])
        if wanted.objects:
            objects = soft_instances(prediction, size, wanted, soft, self.mask)
        if axes:
            maps = np.ascontiguousarray(np.flip(probabilities.maps, axes))
            probabilities = ClassMaps(probabilities.classes, maps)
            objects = _mirror(objects, axes)
        return SliceResult(probabilities, objects)


def class_maps(prediction: Prediction | DensePrediction, size: Size, wanted: Wanted) -> ClassMaps:
    """What `inference.semantic` gives for one picture, of the classes alone that reach `wanted.least` somewhere.

    Which can is told by a quarter of the size: a mask between pixels is at most that of the largest of its neighbours.
    At 120 classes, of which a slice shows a dozen, that takes a fifth of the time and a tenth of the memory.
    """
    if isinstance(prediction, DensePrediction):
        return ClassMaps.of(inference.semantic(prediction, size, valid=size)[0].cpu().numpy(), wanted.least)
    weights = prediction.class_logits[0].float().softmax(-1)[:, :-1]  # (Q, K)
    logits = prediction.mask_logits[0].float()
    most = functional.max_pool2d(logits.sigmoid()[None], 3, 1, 1)[0]
    bound = torch.einsum("qk,qhw->khw", weights, most).amax((1, 2))
    classes = (bound >= wanted.least).nonzero()[:, 0]
    shares = weights[:, classes]
    if not wanted.layered:  # the last one is the sum over all classes, by which it is divided
        shares = torch.cat([shares, weights.sum(1, keepdim=True)], 1)
    total = logits.new_zeros(shares.shape[1], *size)
    for chunk in torch.arange(len(logits), device=logits.device).split(AT_ONCE):
        masks = _upsampled(logits[chunk], size)
        if wanted.layered:  # layered classes do not compete: one minus the probability that every query is wrong
            for place, share in enumerate(shares[chunk].T):
                total[place] += torch.log1p((-share[:, None, None] * masks).clamp(min=-1 + 1e-6)).sum(0)
        else:
            total += torch.einsum("qk,qhw->khw", shares[chunk], masks)
    found = -torch.expm1(total) if wanted.layered else total[:-1] / total[-1].clamp(min=1)
    maps = ClassMaps.of(found.clamp_(0, 1).cpu().numpy(), wanted.least)
    return ClassMaps(classes.cpu().numpy()[maps.classes], maps.maps)


def soft_instances(
    prediction: Prediction | DensePrediction, size: Size, wanted: Wanted, soft: bool = True, mask: float = DEFAULT_MASK
) -> SoftSet:
    """The objects `inference.instances` gives for one picture, with soft masks where `soft` asks for them.

    mask: the probability above which a pixel is an object's. Soft masks are shifted (in logits) so that it becomes one
    half: whoever cuts, averages or resamples them later needs to know of no other threshold.
    """
    score, thing = wanted.score, wanted.thing
    if not soft:
        found = inference.instances(prediction, size, valid=size, score=score, mask=mask, thing=list(thing))[0]
        return SoftSet(found, [])
    if isinstance(prediction, DensePrediction):
        maps = inference.semantic(prediction, size, valid=size)[0].cpu().numpy()
        objects = dense_inference.instances(maps, score, 0, list(thing))
        return SoftSet(objects, soft_of_maps(objects, [maps[k] for k in objects.labels], own=False))
    classes = prediction.class_logits[0].float().softmax(-1)[:, :-1].clone()
    classes[:, ~torch.tensor(list(thing), device=classes.device)] = -1
    flat = classes.flatten()
    order = flat.argsort(descending=True, stable=True)
    order = order[flat[order] >= max(score, 0)]
    queries, labels = order // classes.shape[1], order % classes.shape[1]
    used, place = queries.unique(return_inverse=True)
    logits = prediction.mask_logits[0][used].float()
    limit = math.log(mask / (1 - mask))
    drawn, quality = draw(logits, size, size, limit)
    scores = (flat[order] * quality[place]).cpu().numpy().astype(np.float32)
    which = place.cpu().numpy()
    objects = drawn[which].with_labels(labels.cpu().numpy()).with_scores(scores)
    kept = np.flatnonzero((scores >= score) & (objects.areas >= 1))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    drawn_maps = {int(n): _upsampled(logits[[int(n)]] - limit, size)[0].cpu().numpy() for n in np.unique(which[kept])}
    objects = objects[kept]
    return SoftSet(objects, soft_of_maps(objects, [drawn_maps[int(n)] for n in which[kept]]))


def _padding(length: int) -> int:
    """Pixels to the next multiple of the coarsest stride; two of them at least: one value alone has no spread."""
    return max(-length % COARSEST, 2 * COARSEST - length)


def _upsampled(logits: Tensor, size: Size) -> Tensor:
    """Mask logits (n, h, w) of the padded picture -> probabilities (n, *size) of the picture."""
    large = functional.interpolate(logits[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)
    return large[0, :, : size[0], : size[1]].sigmoid()


def _picture(prediction: Any, number: int) -> Any:
    """The prediction of one picture of a batch."""
    part = slice(number, number + 1)
    if isinstance(prediction, DensePrediction):
        return DensePrediction(prediction.logits[part])
    return Prediction(prediction.class_logits[part], prediction.mask_logits[part])


def _mirror(found: SoftSet, axes: tuple[int, ...]) -> SoftSet:
    objects = found.objects
    if not len(objects):
        return found
    mirrored = MaskSet.from_dense(np.flip(objects.to_dense(), axes), objects.labels, objects.scores)
    soft = []
    for one in found.soft:
        offset = list(one.offset)
        for axis in axes:
            offset[axis] = objects.shape[axis] - one.offset[axis] - one.values.shape[axis]
        soft.append(Soft((offset[0], offset[1]), np.flip(one.values, axes)))
    return SoftSet(mirrored, soft)


def _clip(found: SoftSet, valid: NDArray[np.bool_]) -> SoftSet:
    """Objects cut to the valid pixels: nothing is ever seen where the scanner saw nothing."""
    objects = found.objects
    if not len(objects):
        return found
    cut = MaskSet.from_dense(objects.to_dense() & valid, objects.labels, objects.scores)
    kept = np.flatnonzero(cut.areas)
    soft = []
    for number in kept.tolist() if found.soft else ():
        one = found.soft[number]
        window = tuple(slice(a, a + n) for a, n in zip(one.offset, one.values.shape))
        soft.append(Soft(one.offset, np.where(valid[window], one.values, 0).astype(np.uint8)))
    return SoftSet(cut[kept], soft)
