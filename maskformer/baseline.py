"""The honest baseline: a per-pixel U-Net of segmentation-models-pytorch over the same timm encoder."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskformer.config import ModelConfig
from maskformer.prediction import DensePrediction
from maskformer.targets import Target, check_targets


class UNet(nn.Module):
    """U-Net; x (B, C, H, W), H and W multiples of 32 → DensePrediction with K+1 logits, "nothing" last.

    Its encoder is `tu-<timm name>`, so `load_backbone_weights` gives it the very weights a MaskFormer starts from.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = smp.Unet(
            encoder_name=f"tu-{config.backbone}",
            encoder_weights=None,
            in_channels=config.in_channels,
            classes=config.num_classes + 1,
        )
        if config.freeze_batch_norm:
            for norm in self._frozen_norms():
                norm.requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """The timm feature network (what `param_groups` slows down and `load_backbone_weights` fills)."""
        return self.network.encoder.model

    def forward(self, x: Tensor) -> DensePrediction:
        return DensePrediction(self.network(x))

    def train(self, mode: bool = True) -> UNet:
        super().train(mode)
        if self.config.freeze_batch_norm:
            for norm in self._frozen_norms():
                norm.eval()
        return self

    def _frozen_norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, _BatchNorm)]


class DenseCriterion(nn.Module):
    """criterion(prediction, targets) → {"class", "dice", "total"}: cross-entropy + mean dice over the K+1 classes.

    A pixel map cannot hold overlaps: of overlapping objects the smaller one lies on top. Ignored pixels count nowhere.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, prediction: DensePrediction, targets: list[Target]) -> dict[str, Tensor]:
        logits = prediction.logits
        check_targets(targets, self.config.num_classes, (logits.shape[-2], logits.shape[-1]))
        wanted = torch.stack([flatten_target(target, self.config.num_classes) for target in targets])
        valid = torch.stack([target.valid for target in targets])
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            pixel = F.cross_entropy(logits, wanted, reduction="none")
            classes = (pixel * valid).sum() / valid.sum().clamp(min=1)
            p = logits.softmax(1) * valid[:, None]
            t = F.one_hot(wanted, logits.shape[1]).movedim(-1, 1) * valid[:, None]
            overlap, size = (p * t).sum((0, 2, 3)), (p + t).sum((0, 2, 3))  # (K+1,)
            dice = (1 - (2 * overlap + 1) / (size + 1)).mean()
        return {"class": classes, "dice": dice, "total": classes + dice}


def flatten_target(target: Target, nothing: int) -> Tensor:
    """Class index of every pixel (H, W) int64, `nothing` where no object lies; smaller objects lie on top."""
    if not len(target.labels):
        return torch.full(target.valid.shape, nothing, device=target.valid.device)
    order = target.areas().argsort(descending=True, stable=True)
    # The last (smallest) object that covers a pixel: the largest rank among those present, 0 for none.
    rank = torch.zeros(len(order) + 1, dtype=torch.int64, device=order.device)
    rank[order + 1] = torch.arange(1, len(order) + 1, device=order.device)
    top = rank[target.layers.long()].amax(0)
    labels = torch.cat((torch.tensor([nothing], device=order.device), target.labels[order]))
    return labels[top]
