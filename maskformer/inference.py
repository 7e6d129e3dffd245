"""From logits to what a user asks for: class probabilities, instances, or a panoptic partition.

The order is always: decide at low resolution which queries matter and where, upsample that alone, crop the padding,
resize to the wanted size. `size` is (height, width) of the answer; `valid` the (height, width) of the real picture in
the top-left corner of the padded input (the whole input by default), one pair for all pictures or one each.

Sources: MaskFormer (arXiv 2107.06278) for semantic and panoptic, Mask2Former (2112.01527) for instances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskformer import dense_inference
from maskformer.class_maps import class_map
from maskformer.instances import draw
from maskformer.masks import MaskSet
from maskformer.panoptic import Queries, Rule, merge
from maskformer.prediction import STRIDE, DensePrediction, Prediction

Size = tuple[int, int]


@torch.no_grad()
def semantic(
    prediction: Prediction | DensePrediction,
    size: Size,
    valid: Size | Sequence[Size] | None = None,
    combine: str = "sum",
) -> Tensor:
    """Class probabilities (B, K, *size) float32 in 0..1.

    combine "sum" is the published Σ_q p_q(class)·m_q, divided by its sum over classes where that exceeds 1 (the
    published sum has no upper bound; the best class stays the same). "noisy-or" is 1 − Π_q (1 − p_q(class)·m_q): the
    probability that at least one query is right; classes do not compete, so it is the one for layered classes.
    """
    if combine not in ("sum", "noisy-or"):
        raise ValueError(f"combine: {combine!r}, expected 'sum' or 'noisy-or'")
    if isinstance(prediction, DensePrediction):
        probabilities = prediction.logits.float().softmax(1)[:, :-1]
        return torch.cat(
            [
                _resize(one[None, :, : real[0], : real[1]], size)
                for one, real in zip(probabilities, _valid(prediction, valid), strict=True)
            ]
        )
    maps = []
    for classes, masks, real in _pictures(prediction, valid):
        evidence = class_map(classes[:, :-1], masks, real, combine)
        probability = evidence / evidence.sum(0).clamp(min=1) if combine == "sum" else evidence
        maps.append(_resize(probability[None], size))
    return torch.cat(maps).clamp_(0, 1)


@torch.no_grad()
def instances(
    prediction: Prediction | DensePrediction,
    size: Size,
    valid: Size | Sequence[Size] | None = None,
    score: float = 0.5,
    mask: float = 0.5,
    min_area: int = 0,
    thing: Sequence[bool] | None = None,
    limit: int | None = None,
    queries: list[NDArray[np.int64]] | None = None,
) -> list[MaskSet]:
    """Objects of each picture, best first; masks may overlap, and a query may give an object per class.

    An object's score is p(class) × the mean mask probability inside its mask (mask probability > `mask`); objects under
    `score`, smaller than `min_area` pixels, empty, or of classes that are not `thing` are left out. `limit` keeps the
    most probable classes of queries before masks are looked at (published: 100; here no limit). `queries` takes (N,)
    the query of each object, picture by picture; nothing for a per-pixel prediction.
    """
    if isinstance(prediction, DensePrediction):
        probabilities = semantic(prediction, size, valid)
        return [dense_inference.instances(one.cpu().numpy(), score, min_area, thing) for one in probabilities]
    found, threshold = [], _logit(mask)
    for classes, masks, real in _pictures(prediction, valid):
        candidates = classes[:, :-1].clone()
        if thing is not None:
            candidates[:, ~torch.tensor(list(thing), device=candidates.device)] = -1
        flat = candidates.flatten()
        # The mask's mean is at most 1: what is under the threshold now cannot come back. Nor can empty ones matter.
        order = flat.argsort(descending=True, stable=True)[:limit]
        order = order[flat[order] >= max(score, 0)]
        query, labels = order // candidates.shape[1], order % candidates.shape[1]
        used, place = query.unique(return_inverse=True)
        drawn, quality = draw(masks[used].float(), real, size, threshold)
        scores = (flat[order] * quality[place]).cpu().numpy()
        objects = drawn[place.cpu().numpy()]
        objects = objects.with_labels(labels.cpu().numpy()).with_scores(scores.astype(np.float32))
        kept = np.flatnonzero((scores >= score) & (objects.areas >= max(min_area, 1)))
        kept = kept[np.argsort(-objects.scores[kept], kind="stable")]
        found.append(objects[kept])
        if queries is not None:
            queries.append(query.cpu().numpy()[kept])
    return found


class Count(NamedTuple):
    """`kept`: objects found; `expected`: what no threshold decides, the sum of probabilities to be an object."""

    kept: int
    expected: float


@torch.no_grad()
def count(
    prediction: Prediction | DensePrediction,
    size: Size,
    valid: Size | Sequence[Size] | None = None,
    score: float = 0.5,
    mask: float = 0.5,
    min_area: int = 0,
    thing: Sequence[bool] | None = None,
) -> list[Count]:
    """How many objects each picture has: those `instances` keeps, and the sum of p(class) over queries and things.

    A per-pixel prediction has no queries; there `expected` sums the scores of its regions.
    """
    kept = instances(prediction, size, valid, score, mask, min_area, thing)
    if isinstance(prediction, DensePrediction):
        regions = instances(prediction, size, valid, 0.0, mask, min_area, thing)
        return [Count(len(k), float(every.scores.sum())) for k, every in zip(kept, regions, strict=True)]
    probabilities = prediction.class_logits.float().softmax(-1)[..., :-1]  # (B, Q, K)
    if thing is not None:
        probabilities = probabilities[..., torch.tensor(list(thing), device=probabilities.device)]
    expected = probabilities.sum((1, 2)).tolist()
    return [Count(len(k), e) for k, e in zip(kept, expected, strict=True)]


@torch.no_grad()
def panoptic(
    prediction: Prediction | DensePrediction,
    size: Size,
    valid: Size | Sequence[Size] | None = None,
    thing: Sequence[bool] | None = None,
    score: float = 0.8,
    overlap: float = 0.8,
    inside_mask: bool = False,
) -> list[MaskSet]:
    """A partition of each picture: every pixel in at most one segment; stuff of one class is one segment.

    Queries whose best class is an object with p > `score` compete for pixels by p·m; a query keeps its pixels if they
    are at least `overlap` of its own mask (m ≥ 0.5). All classes are things by default. `inside_mask` is Mask2Former's
    rule: only pixels with m ≥ 0.5 belong to the winner. Segments come in query order, each with ids of its own.
    """
    if isinstance(prediction, DensePrediction):
        probabilities = semantic(prediction, size, valid)
        return [dense_inference.panoptic(one.cpu().numpy(), thing) for one in probabilities]
    rule = Rule(overlap, inside_mask)
    return [
        merge(_competing(classes, masks, score), real, size, thing, rule)
        for classes, masks, real in _pictures(prediction, valid)
    ]


def _competing(classes: Tensor, masks: Tensor, score: float) -> Queries:
    """The queries whose best class is an object with p > `score`."""
    best, labels = classes.max(1)
    kept = (labels != classes.shape[1] - 1) & (best > score)
    return Queries(masks[kept].float(), labels[kept], best[kept])


def _pictures(prediction: Prediction, valid: Size | Sequence[Size] | None) -> Iterator[tuple[Tensor, Tensor, Size]]:
    """Of each picture: class probabilities (Q, K+1), mask logits (Q, h, w), both float32, and its valid size."""
    probabilities = prediction.class_logits.float().softmax(-1)
    yield from zip(probabilities, prediction.mask_logits, _valid(prediction, valid), strict=True)


def _valid(prediction: Prediction | DensePrediction, valid: Size | Sequence[Size] | None) -> list[Size]:
    if isinstance(prediction, DensePrediction):
        maps, step = prediction.logits, 1
    else:
        maps, step = prediction.mask_logits, STRIDE
    height, width = maps.shape[-2] * step, maps.shape[-1] * step
    if valid is None:
        valid = (height, width)
    each = [cast(Size, valid)] * len(maps) if isinstance(valid[0], int) else list(cast(Sequence[Size], valid))
    for real in each:
        if not (0 < real[0] <= height and 0 < real[1] <= width):
            raise ValueError(f"valid: {real} pixels of a padded input of {(height, width)}")
    if len(each) != len(maps):
        raise ValueError(f"valid: {len(each)} sizes for {len(maps)} pictures")
    return each


def _resize(x: Tensor, size: Size) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _logit(probability: float) -> float:
    if not 0 < probability < 1:
        raise ValueError(f"mask threshold {probability}: expected a number between 0 and 1")
    return float(np.log(probability / (1 - probability)))
