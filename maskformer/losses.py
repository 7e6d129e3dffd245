"""The losses of mask classification: class cross-entropy, focal (or BCE) and dice on matched masks, every layer.

Source: MaskFormer (arXiv 2107.06278). Unlike the published code, ignored and padded pixels count nowhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer import map_losses
from maskformer.config import ModelConfig
from maskformer.matching import ALPHA, Match, Matcher
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
        check_targets(targets, self.config.num_classes, (STRIDE * height, STRIDE * width))
        layers = (*prediction.auxiliary, prediction)
        class_logits = torch.stack([layer.class_logits for layer in layers])
        mask_logits = torch.stack([layer.mask_logits for layer in layers])
        matching = self.matcher(class_logits.detach(), mask_logits.detach(), targets)
        count = num_masks(targets, mask_logits.device)
        with torch.autocast(mask_logits.device.type, enabled=False):
            losses: dict[str, Tensor] = {}
            for index, pairs in enumerate(matching.pairs):
                suffix = "" if index == len(layers) - 1 else f".{index}"
                classes = self.class_loss(class_logits[index], targets, pairs, matching.elsewhere[index])
                mask, dice = self.mask_losses(mask_logits[index], targets, pairs, count)
                losses[f"class{suffix}"] = self.config.class_weight * classes
                losses[f"mask{suffix}"] = self.config.mask_weight * mask
                losses[f"dice{suffix}"] = self.config.dice_weight * dice
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
        self, mask_logits: Tensor, targets: list[Target], pairs: list[Match], count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Focal (or BCE) and dice of mask_logits (B, Q, h, w), sums over pairs / count.

        At "input" resolution the matched masks alone are upsampled; at "mask" resolution the targets are averaged
        down to h × w, which costs a sixteenth.
        """
        mask_sum = mask_logits.new_zeros((), dtype=torch.float32)
        dice_sum = mask_sum
        for logits, target, match in zip(mask_logits, targets, pairs, strict=True):
            x = logits[match.queries].float()  # (M, h, w)
            t = target.masks[match.objects].float() * target.valid
            v = target.valid.float()
            if self.config.loss_resolution == "input":
                x = F.interpolate(x[:, None], size=t.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
            else:
                share = F.avg_pool2d(v[None, None], STRIDE)[0, 0]
                t = F.avg_pool2d(t[:, None], STRIDE)[:, 0] / share.clamp(min=1e-6)
                v = share
            # An empty selection sums to 0 and keeps the graph: outputs get zero gradients, DDP its reduction.
            mask_sum = mask_sum + self._pixel_loss(x.flatten(1), t.flatten(1), v.flatten()).sum()
            dice_sum = dice_sum + dice_loss(x.flatten(1), t.flatten(1), v.flatten()).sum()
        return mask_sum / count, dice_sum / count

    def _pixel_loss(self, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        if self.config.mask_loss == "focal":
            loss = focal(x, t, loss)
        return loss @ v / v.sum().clamp(min=1)  # (M,)


def focal(x: Tensor, t: Tensor, cross_entropy: Tensor) -> Tensor:
    """Focal loss per pixel, α = 0.25 for the object, γ = 2 (Lin et al. 2017)."""
    p = x.sigmoid()
    wrong = p + t - 2 * p * t  # 1 - p_t
    return (ALPHA * t + (1 - ALPHA) * (1 - t)) * cross_entropy * wrong.square()


def dice_loss(x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """1 − (2·Σpt + 1)/(Σp + Σt + 1) over valid pixels: x and t (M, P), v (P,) → (M,)."""
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
