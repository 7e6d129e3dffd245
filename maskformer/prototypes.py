"""PEM's query decoder (arXiv 2402.19422): a query takes one pixel a head, the one most like it, instead of a mean.

Built from a written description of the published behaviour, not from its code. What one would not guess from the paper
is kept as published and marked QUIRK. As in `masked_decoder`, the masks that limit the choice come from mask features
shrunk once to the memory's sizes; only the last layer makes full-size masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer.attention import Attention, FeedForward
from maskformer.config import ModelConfig
from maskformer.level_decoder import LevelDecoder
from maskformer.pixel_decoders import PixelFeatures, biased_conv
from maskformer.position import sine_position


class Level(NamedTuple):
    """A memory map: positioned (B, d, h, w), level and place added; mask_features (B, c, hw), shrunk to it."""

    positioned: Tensor
    mask_features: Tensor


class PrototypeAttention(nn.Module):
    """PEM-CA: every head of every query looks up the single most similar pixel inside its mask; no softmax.

    Keys are both what is compared and what is taken; they and the queries have unit length over all channels, before
    the heads part. The lookup costs one product of queries and keys, everything after it only Q rows.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.memory_norm = nn.BatchNorm2d(dim)
        self.memory_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.key = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))
        self.final = nn.Linear(dim, dim)
        for linear in (self.key, self.query, self.proj, self.final):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, query_position: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        """query and query_position (B, Q, d), memory (B, d, h, w) with position, allowed bool (B, Q, hw) → (B, Q, d).

        QUIRK: the product of prototype and query is brought to unit length over the query axis (dim 1), not over its
        channels: queries of a picture share one budget per channel, and the result depends on how many there are.
        """
        keys = self.key(self.memory_conv(self.memory_norm(memory)).flatten(2).transpose(1, 2))
        keys = F.normalize(keys.float(), dim=2)  # (B, hw, d)
        asked = F.normalize(self.query(self.norm(query + query_position)).float(), dim=2)  # (B, Q, d)
        prototype = self._prototypes(asked, keys, allowed)
        mixed = F.normalize(self.proj(prototype * asked).float(), dim=1)
        return query + self.final(mixed * self.alpha + prototype)

    def _prototypes(self, asked: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
        """Per query and head the key of the best allowed pixel, (B, Q, d); of equals the first, pixel 0 if none."""
        split = keys.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, hw, d/heads)
        with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):  # bf16 would tie the best hundred pixels
            wanted = asked.unflatten(2, (self.heads, -1)).transpose(1, 2)
            similarity = wanted @ split.transpose(2, 3)  # (B, heads, Q, hw)
            best = similarity.masked_fill(~allowed[:, None], float("-inf")).argmax(dim=3, keepdim=True)
        prototype = split.gather(2, best.expand(-1, -1, -1, split.shape[3]))  # (B, heads, Q, d/heads)
        return prototype.transpose(1, 2).flatten(2)


class PrototypeLayer(nn.Module):
    """Prototype attention, self-attention of the queries, feed-forward; pre-norm: residuals are never normalised."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.cross_attention = PrototypeAttention(dim, heads)
        self.self_attention = Attention(dim, heads, dropout)
        self.feedforward = FeedForward(dim, feedforward, dropout)
        self.norm1 = nn.LayerNorm(dim)  # of self-attention; prototype attention has its own
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, query_position: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        """As PrototypeAttention; positions are added after the norm, to queries and keys of self-attention only."""
        query = self.cross_attention(query, query_position, memory, allowed)
        value = self.norm1(query)
        where = value + query_position
        query = query + self.dropout(self.self_attention(where, where, value))
        return query + self.dropout(self.feedforward(self.norm2(query)))


class PrototypeDecoder(LevelDecoder[Level]):
    """See `LevelDecoder`; each level of memory goes through a 1×1 convolution, also where it has the right width (as
    published).
    """

    def __init__(self, memory_channels: Sequence[int], config: ModelConfig) -> None:
        dim = config.hidden_dim
        input_proj = nn.ModuleList(biased_conv(width, dim, 1) for width in memory_channels)
        shape = (dim, config.num_heads, config.feedforward_dim, config.dropout)
        super().__init__(input_proj, lambda: PrototypeLayer(*shape), config)

    def _look(
        self, layer: nn.Module, query: Tensor, query_position: Tensor, mask_embed: Tensor, level: Level
    ) -> Tensor:
        return layer(query, query_position, level.positioned, allowed_pixels(mask_embed, level.mask_features))

    def _levels(self, pixels: PixelFeatures) -> list[Level]:
        levels = []
        for memory, project, embed in zip(pixels.memory, self.input_proj, self.level_embed.weight, strict=True):
            height, width = memory.shape[-2:]
            value = project(memory) + embed[:, None, None]  # (B, d, h, w)
            position = sine_position(height, width, value.shape[1], value.device).to(value.dtype)
            shrunk = F.interpolate(pixels.mask_features.detach(), size=(height, width), mode="bilinear")
            levels.append(Level(value + position, shrunk.flatten(2)))
        return levels


def allowed_pixels(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Which pixels each query may take, bool (B, Q, hw): where its mask logit is not negative.

    mask_embed (B, Q, c), mask_features (B, c, hw) at the memory's size. No gradient flows through it.

    QUIRK: everything is opened only where every query of the picture is empty; Mask2Former opens it per query. A single
    empty query keeps a row of -inf, whose argmax is pixel 0: it takes the key of the picture's top left corner.
    QUIRK without consequence: the published reset tests each head and writes in place into a mask that is one tensor
    expanded over the heads, so that a write for one head is a write for all. Masks are the same for all heads, so all
    of a picture's heads are empty or none is, and the shared memory changes no number; here heads are not expanded.
    """
    with torch.no_grad():
        inside = torch.bmm(mask_embed, mask_features) >= 0
        return inside | ~inside.flatten(1).any(dim=1)[:, None, None]
