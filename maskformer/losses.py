"""The losses of mask classification: class cross-entropy, focal (or BCE) and dice on matched masks, every layer.

Sources: MaskFormer (arXiv 2107.06278), whole masks at the input's size; Mask2Former (2112.01527), points, most of them
where a mask is least certain. Unlike the published code, ignored and padded pixels count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer import map_losses, points
from maskformer.config import ModelConfig
from maskformer.fast_linear import fast_affine
from maskformer.mask_losses import ALPHA, MaskLosses
from maskformer.matching import Layer, Match, Matcher
from maskformer.point_losses import PointLosses
from maskformer.prediction import STRIDE, Prediction
from maskformer.targets import Target, check_targets


class Criterion(nn.Module):
    """criterion(prediction, targets) → {"class", "mask", "dice", "total"} and "<loss>.<layer>" of auxiliary layers.

    A located decoder adds "semantic" and "centres" (`map_losses`).

    All are scalars, already weighted; total is their sum. Mask losses are summed over the matched pairs and divided
    by the number of objects (mean over processes, at least 1). Pictures without objects train the class logits alone,
    and every output still gets a finite (zero) gradient.
    """

    empty_weight: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.matcher = Matcher(config)
        weight = torch.ones(config.num_classes + 1)
        weight[-1] = config.no_object_weight
        self.register_buffer("empty_weight", weight, persistent=False)

    def forward(self, prediction: Prediction, targets: list[Target]) -> dict[str, Tensor]:
        height, width = prediction.mask_logits.shape[-2:]
        check_targets(targets, self.config.num_classes, (height, width), STRIDE)
        layers: tuple[Layer, ...] = (*prediction.auxiliary, prediction)
        matching = self.matcher(layers, targets)
        device = prediction.mask_logits.device
        count = num_masks(targets, device)
        with torch.autocast(device.type, enabled=False):
            compare = self._comparer(targets)
            losses: dict[str, Tensor] = {}
            compared = self.mask_losses(layers, matching.pairs, compare)
            for index, (layer, pairs) in enumerate(zip(layers, matching.pairs, strict=True)):
                suffix = "" if index == len(layers) - 1 else f".{index}"
                classes = self.class_loss(layer.class_logits, targets, pairs, matching.elsewhere[index])
                mask, dice = compared[index]
                losses[f"class{suffix}"] = self.config.class_weight * classes
                losses[f"mask{suffix}"] = self.config.mask_weight * mask / count
                losses[f"dice{suffix}"] = self.config.dice_weight * dice / count
            if prediction.maps is not None:
                maps = map_losses.semantic_loss(prediction.maps.semantic.float(), targets)
                centres = map_losses.centre_loss(prediction.maps.centres.float(), targets, count)
                losses["semantic"] = self.config.semantic_weight * maps
                losses["centres"] = self.config.centre_weight * centres
            losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def class_loss(self, class_logits: Tensor, targets: list[Target], pairs: list[Match], elsewhere: Tensor) -> Tensor:
        """Weighted mean cross-entropy of class_logits (B, Q, K+1); unmatched queries should say "no object".

        Unmatched queries whose mask lies mostly in ignored pixels (`elsewhere`) are not asked: nobody knows.
        """
        wanted = torch.full(elsewhere.shape, self.config.num_classes, device=class_logits.device)
        wanted[elsewhere] = -100
        for row, target, match in zip(wanted, targets, pairs, strict=True):
            row[match.queries] = target.labels[match.objects]
        logits = class_logits.float().flatten(0, 1)
        total = F.cross_entropy(logits, wanted.flatten(), self.empty_weight, ignore_index=-100, reduction="sum")
        asked = wanted.flatten() >= 0
        weights = self.empty_weight[wanted.flatten().clamp(min=0)] * asked
        return total / weights.sum().clamp(min=1e-6)

    def mask_losses(
        self, layers: Sequence[Layer], pairs: Sequence[Sequence[Match]], compare: Sequence[Comparer]
    ) -> list[tuple[Tensor, Tensor]]:
        """Focal (or BCE) and dice of each layer's matched masks, summed over all pictures' pairs."""
        zero = layers[-1].class_logits.new_zeros((), dtype=torch.float32)
        sums = [(zero, zero)] * len(layers)
        pictures = zip(matched_logits(layers, pairs), compare, strict=True)
        for b, (logits, one) in enumerate(pictures):
            for index, masks in enumerate(logits):
                # An empty selection sums to 0 and keeps the graph: outputs get zero gradients, DDP its reduction.
                mask, dice = one(masks, pairs[index][b].objects)
                sums[index] = (sums[index][0] + mask.sum(), sums[index][1] + dice.sum())
        return sums

    def _comparer(self, targets: list[Target]) -> list[Comparer]:
        kinds: dict[str, type[Comparer]] = {"input": WholeMasks, "points": MaskPoints, "mask": CoarseMasks}
        kind = kinds[self.config.loss_resolution]
        return [kind(target, self.config) for target in targets]


class WholeMasks:
    """Masks of one picture at the input's size, as MaskFormer compares them."""

    def __init__(self, target: Target, config: ModelConfig) -> None:
        self.target, self.focal = target, config.mask_loss == "focal"

    def __call__(self, logits: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        """logits (M, h, w) of the objects' queries → pixel loss (M,), dice (M,)."""
        return MaskLosses.apply(logits, objects, self.target.layers, self.target.valid, self.focal)


class MaskPoints:
    """Masks of one picture at points, as Mask2Former compares them: most where the mask is least certain.

    Candidates and fresh points are drawn once for all layers and masks of the picture (published: anew for each mask):
    which candidates a mask is asked at is its own affair, and targets are looked up once. Each mask's loss has the
    published distribution; that the masks of a picture share their draw makes their errors go together.
    """

    def __init__(self, target: Target, config: ModelConfig) -> None:
        self.focal = config.mask_loss == "focal"
        self.uncertain = int(config.importance_ratio * config.num_points)
        self.candidates = int(config.oversample_ratio * config.num_points) if self.uncertain else 0
        fresh = config.num_points - self.uncertain
        self.places = points.draw(self.candidates + fresh, target.valid)
        self.seen = points.sample_target(target, self.places)
        self.size = target.valid.shape
        self.everywhere = target.valid.device.type == "cpu" and bool(self.seen.valid.all())

    def __call__(self, logits: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        places = points.on_logits(self.places, self.size, logits.shape[1:])
        values = points.sample_maps(logits.detach(), places)
        chosen = self._choose(values)  # (M, P)
        t = self.seen.inside[objects].gather(1, chosen)
        v = None if self.everywhere else self.seen.valid[chosen]
        return PointLosses.apply(logits, places, chosen, values.gather(1, chosen), t, v, self.focal)

    def _choose(self, values: Tensor) -> Tensor:
        """values (M, all places) → (M, P): the most uncertain candidates, and the fresh places."""
        fresh = torch.arange(self.candidates, len(self.places), device=values.device).expand(len(values), -1)
        if not self.uncertain:
            return fresh
        one = slice(self.candidates)
        return torch.cat((points.most_uncertain(values[:, one], self.seen.valid[one], self.uncertain), fresh), 1)


class CoarseMasks:
    """Masks of one picture at the size of the logits, targets averaged down: a sixteenth of the work."""

    def __init__(self, target: Target, config: ModelConfig) -> None:
        self.focal = config.mask_loss == "focal"
        self.inside, self.share = map_losses.averaged(target, STRIDE)

    def __call__(self, logits: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        x, t, v = logits.flatten(1), self.inside[objects].flatten(1), self.share.flatten()
        return pixel_loss(x, t, v, self.focal), dice_loss(x, t, v)


Comparer = WholeMasks | MaskPoints | CoarseMasks


def matched_logits(layers: Sequence[Layer], pairs: Sequence[Sequence[Match]]) -> Iterator[Sequence[Tensor]]:
    """Of each picture, of each layer: (M, h, w) float32 mask logits of the matched queries, and of no others.

    Where the layers share their mask features, they are multiplied out together: the gradient of the features is then
    made once, not once a layer (whose fills and copies alone took 0.29 of 9.2 s: Mask2Former, float32, 20 objects).
    """
    features = layers[-1].mask_features
    embeds = [layer.mask_embed for layer in layers if layer.mask_features is features]
    if features is None or len(embeds) < len(layers):
        for b in range(len(pairs[0])):
            yield [layer.mask_logits[b][match[b].queries].float() for layer, match in zip(layers, pairs, strict=True)]
        return
    for b, maps in enumerate(features.float().unbind()):
        chosen = [embed[b][match[b].queries] for embed, match in zip(embeds, pairs, strict=True) if embed is not None]
        logits = fast_affine(maps.permute(1, 2, 0).flatten(0, 1), None, torch.cat(chosen).float())
        yield logits.unflatten(1, maps.shape[1:]).split([len(one) for one in chosen])


def pixel_loss(x: Tensor, t: Tensor, v: Tensor, focal: bool) -> Tensor:
    """Focal (α = 0.25, γ = 2) or BCE, mean over what is valid: x, t (M, P), v (P,) or (M, P) → (M,)."""
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    if focal:
        p = x.sigmoid()
        wrong = p + t - 2 * p * t  # 1 - p_t
        loss = (ALPHA * t + (1 - ALPHA) * (1 - t)) * loss * wrong.square()
    return (loss * v).sum(1) / v.sum(-1).clamp(min=1)


def dice_loss(x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """1 − (2·Σpt + 1)/(Σp + Σt + 1) over what is valid: x and t (M, P), v (P,) or (M, P) → (M,)."""
    p = x.sigmoid() * v
    t = t * v
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def num_masks(targets: list[Target], device: torch.device) -> Tensor:
    """Number of objects of the batch, averaged over processes, at least 1."""
    count = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)


def build_criterion(config: ModelConfig) -> nn.Module:
    """The criterion that belongs to `build_model(config)`."""
    if config.architecture == "unet":
        from maskformer.baseline import DenseCriterion  # imports segmentation-models-pytorch

        return DenseCriterion(config)
    return Criterion(config)
