"""Query decoders: mask features and memory → class and mask logits of a set of queries.

Source: MaskFormer (arXiv 2107.06278): a DETR decoder whose queries start at zero and carry a learned position.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from maskformer.attention import DecoderLayer
from maskformer.config import ModelConfig
from maskformer.fast_linear import fast_linear
from maskformer.pixel_decoders import PixelFeatures, biased_conv
from maskformer.position import sine_position
from maskformer.prediction import Prediction, predict_layers


class MLP(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        widths = (inputs, hidden, hidden, outputs)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = fast_linear(layer, x, "relu")
        return fast_linear(self.layers[-1], x)


class DETRDecoder(nn.Module):
    """`decoder_layers` post-norm layers over the stride-32 memory; one shared norm and shared heads on every layer."""

    def __init__(self, memory_channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.supervise_layers = config.auxiliary
        # As published, a memory that already has the right width enters as it is.
        self.input_proj: nn.Module = nn.Identity()
        if memory_channels[0] != dim:
            self.input_proj = biased_conv(memory_channels[0], dim, 1)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, config.num_heads, config.feedforward_dim, config.dropout)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, config.num_classes + 1)
        self.mask_embed = MLP(dim, dim, config.mask_dim)

    def forward(self, pixels: PixelFeatures) -> Prediction:
        memory = self.input_proj(pixels.memory[0])
        batch, dim, height, width = memory.shape
        position = sine_position(height, width, dim, memory.device).to(memory.dtype).flatten(2).transpose(1, 2)
        memory = memory.flatten(2).transpose(1, 2)  # (B, hw, d)
        query_position = self.query_embed.weight.expand(batch, -1, -1)  # (B, Q, d)
        query = torch.zeros_like(query_position)
        states = []
        for layer in self.layers:
            query = layer(query, query_position, memory, position)
            states.append(query)
        if not (self.training and self.supervise_layers):
            states = states[-1:]
        return self.heads(self.norm(torch.stack(states)), pixels.mask_features)

    def heads(self, states: Tensor, mask_features: Tensor) -> Prediction:
        """states (L, B, Q, d), mask_features (B, c, h, w) → the last layer's prediction, earlier ones as auxiliary."""
        layers = list(zip(self.class_embed(states), self.mask_embed(states), strict=True))
        return predict_layers(layers, mask_features, keep_factors=self.training)
