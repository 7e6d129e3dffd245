"""EoMT, the encoder-only mask transformer: a plain ViT whose last blocks also hold the queries (arXiv 2503.19108).

It fills the family's three slots: the trunk is the ViT up to where the queries come in, the pixel decoder hands its
tokens on, and the query decoder is the ViT's last blocks with the heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskformer.annealing import MaskAnnealing
from maskformer.config import ModelConfig
from maskformer.pixel_decoders import PixelFeatures
from maskformer.prediction import STRIDE, LayerPrediction, Prediction, dot_product_masks

PATCHES = (8, 16, 32)  # patch sizes from which doublings lead to the stride of mask logits


def vit_depth(config: ModelConfig) -> int:
    """How many blocks the ViT of `config` has; ValueError where the config does not fit it."""
    if (config.pixel_decoder, config.query_decoder) != ("tokens", "encoder"):
        raise ValueError(
            f"pixel_decoder 'tokens' and query_decoder 'encoder' need each other, "
            f"not {config.pixel_decoder!r} and {config.query_decoder!r}"
        )
    with torch.device("meta"):
        vit = _create(config)
    patch = vit.patch_embed.patch_size
    if patch[0] != patch[1] or patch[0] not in PATCHES:
        raise ValueError(f"backbone_options: patch_size {patch[0]}, expected one of {', '.join(map(str, PATCHES))}")
    for name in ("hidden_dim", "mask_dim"):
        if getattr(config, name) != vit.embed_dim:
            raise ValueError(f"{name}: {getattr(config, name)}, but {config.backbone} is {vit.embed_dim} wide")
    if config.decoder_layers >= len(vit.blocks):
        raise ValueError(f"decoder_layers: {config.decoder_layers}, but {config.backbone} has {len(vit.blocks)} blocks")
    return len(vit.blocks)


def create_vit(config: ModelConfig, start: int, stop: int) -> VisionTransformer:
    """The ViT of `config` with its blocks start..stop-1 alone, freshly initialised."""
    vit = _create(config, depth=stop - start)
    rate = config.backbone_options.get("drop_path_rate", 0.0)
    if rate:  # stochastic depth rises over the whole ViT, whichever part of it this is
        depth = vit_depth(config)
        for index, block in enumerate(vit.blocks, start):
            share = rate * index / (depth - 1)
            block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)
    return vit


def _create(config: ModelConfig, **changes: Any) -> VisionTransformer:
    if not timm.is_model(config.backbone):
        raise ValueError(f"backbone: timm has no model {config.backbone!r}")
    options = {**config.backbone_options, **changes}
    fixed: dict[str, Any] = {"pretrained": False, "num_classes": 0, "global_pool": "", "in_chans": config.in_channels}
    try:
        vit = timm.create_model(config.backbone, **fixed, dynamic_img_size=True, **options)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"backbone: {config.backbone} is no plain ViT with {options}: {error}") from None
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"backbone: {config.backbone} is no plain ViT")
    return vit


class Trunk(nn.Module):
    """Image (B, C, H, W) → [patches (B, D, H/16, W/16), prefix tokens (B, P, D)]: all but the last blocks.

    `config.backbone` is a plain ViT of timm, `config.backbone_options` are its settings (patch_size, img_size, ...).
    Position embeddings are resampled for other sizes than img_size. ValueError where the config does not fit the ViT,
    or a side is no multiple of the patch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        depth = vit_depth(config)
        self.network = create_vit(config, 0, depth - config.decoder_layers)
        self.network.norm = nn.Identity()  # the query decoder has it
        self.channels = (self.network.embed_dim,)

    def forward(self, x: Tensor) -> list[Tensor]:
        high, wide = self.network.patch_embed.patch_size
        if x.shape[-2] % high or x.shape[-1] % wide:
            raise ValueError(f"image of {x.shape[-2]} x {x.shape[-1]}: expected multiples of {high} x {wide}")
        grid = (x.shape[-2] // high, x.shape[-1] // wide)
        tokens = self.network.forward_features(x)  # (B, P + hw, D)
        prefix, patches = tokens.split((self.network.num_prefix_tokens, grid[0] * grid[1]), dim=1)
        return [patches.transpose(1, 2).unflatten(2, grid), prefix]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.network.set_grad_checkpointing(enable)


class Tokens(nn.Module):
    """No pixel decoder: the patches are the mask features (still at stride 16), the prefix tokens the memory."""

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        self.memory_channels = tuple(channels)

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        return PixelFeatures(features[0], tuple(features[1:]))


class ScaleBlock(nn.Module):
    """(B, D, h, w) → (B, D, 2h, 2w): transposed convolution, GELU, depthwise 3×3, LayerNorm over channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


class MaskMLP(nn.Module):
    """Three linear layers of one width with GELU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


class EncoderDecoder(nn.Module):
    """The ViT's last `decoder_layers` blocks over [queries; prefix; patches], and the heads.

    In training every block is preceded by a prediction, which masks the block's attention from queries to patches
    (where its mask logit is not positive) until mask annealing has done away with that. Afterwards, and always where a
    converted model predicts, a block is plain attention and there is one prediction, the last.
    Heads, widths and dropout are the ViT's own, set through `backbone_options`.
    """

    def __init__(self, memory_channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        depth = vit_depth(config)
        vit = create_vit(config, depth - config.decoder_layers, depth)
        dim = memory_channels[0]
        self.supervise_layers = config.auxiliary
        self.grad_checkpointing = False
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.blocks = nn.ModuleList(vit.blocks)
        self.norm = vit.norm
        self.class_embed = nn.Linear(dim, config.num_classes + 1)
        self.mask_embed = MaskMLP(dim)
        doublings = (vit.patch_embed.patch_size[0] // STRIDE).bit_length() - 1
        self.upscale = nn.Sequential(*(ScaleBlock(dim) for _ in range(doublings)))
        self.annealing = MaskAnnealing(config.decoder_layers)

    def forward(self, pixels: PixelFeatures) -> Prediction:
        patches, (prefix,) = pixels.mask_features, pixels.memory
        grid = (patches.shape[-2], patches.shape[-1])
        query = self.query_embed.weight.expand(len(patches), -1, -1)
        x = torch.cat((query.to(patches.dtype), prefix, patches.flatten(2).transpose(1, 2)), dim=1)  # (B, Q+P+hw, D)
        supervised = self.training and self.supervise_layers
        earlier = []
        for index, block in enumerate(self.blocks):
            allowed = None
            if supervised or self.annealing.is_active(index):
                with torch.set_grad_enabled(supervised and torch.is_grad_enabled()):
                    layer = self.predict(x, grid)
                if supervised:
                    earlier.append(layer)
                if self.annealing.is_active(index):
                    allowed = self.attention_mask(index, layer, x.shape[1])
            x = self._run(block, x, attn_mask=allowed)
        class_logits, mask_embed, mask_features = self.predict(x, grid)
        prediction = Prediction(class_logits, dot_product_masks(mask_embed, mask_features), tuple(earlier))
        if not self.training:
            return prediction
        return prediction._replace(mask_embed=mask_embed, mask_features=mask_features)

    def predict(self, tokens: Tensor, grid: tuple[int, int]) -> LayerPrediction:
        """tokens (B, Q+P+hw, D) → what the queries say of the patches; every prediction upscales its own features."""
        x = self.norm(tokens)
        query = x[:, : self.query_embed.num_embeddings]
        patches = x[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        return LayerPrediction(self.class_embed(query), self.mask_embed(query), self._run(self.upscale, patches))

    @torch.no_grad()
    def attention_mask(self, index: int, layer: LayerPrediction, length: int) -> Tensor:
        """(B, 1, N, N) bool, true where a token may look: queries only at the patches inside their mask.

        No query is ever blind: queries and prefix tokens stay in sight.
        """
        features = layer.mask_features
        factor = 2 ** len(self.upscale)
        grid = (features.shape[-2] // factor, features.shape[-1] // factor)
        # Interpolation commutes with the product over channels, and at a sixteenth of the places it costs a sixteenth.
        small = F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
        inside = dot_product_masks(layer.mask_embed, small).flatten(2) > 0  # (B, Q, hw)
        batch, queries, places = inside.shape
        allowed = inside.new_ones(batch, length, length)
        allowed[:, :queries, length - places :] = self.annealing.spare(index, inside)
        return allowed[:, None]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block and each upscaling in the backward pass instead of keeping them.

        At 640 px, the upscaling of one EoMT-L prediction keeps some 0.4 GB a picture, and there are five predictions.
        """
        self.grad_checkpointing = enable

    def _run(self, module: nn.Module, x: Tensor, **keywords: Any) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(module, x, use_reentrant=False, **keywords)
        return module(x, **keywords)


def whole_vit(trunk: Trunk, decoder: EncoderDecoder) -> VisionTransformer:
    """timm's ViT in one piece, sharing all its tensors with the two parts: what pretrained weights are for."""
    vit = copy.copy(trunk.network)
    vit._modules = dict(trunk.network._modules)  # a copy of a module shares them
    blocks: Any = nn.Sequential(*trunk.network.blocks, *decoder.blocks)
    vit.blocks, vit.norm = blocks, decoder.norm
    return vit
