"""What the decoders of Mask2Former and PEM share: levels of memory in turn, and a prediction before each layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.pixel_decoders import PixelFeatures
from maskformer.prediction import Prediction, predict_layers
from maskformer.query_decoders import MLP

Level = TypeVar("Level")


class LevelDecoder(nn.Module, ABC, Generic[Level]):
    """`decoder_layers` layers over the memory at strides 32, 16, 8 in turn, and predictions from the start on.

    In training `auxiliary` holds the predictions of the raw learned queries and of every layer but the last. The masks
    that say where a layer may look come from mask features shrunk once to the memory's sizes; only the last layer makes
    full-size masks.
    """

    def __init__(self, input_proj: nn.ModuleList, make_layer: Callable[[], nn.Module], config: ModelConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.supervise_layers = config.auxiliary
        self.input_proj = input_proj
        self.level_embed = nn.Embedding(len(input_proj), dim)
        self.query_feat = nn.Embedding(config.num_queries, dim)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.layers = nn.ModuleList(make_layer() for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, config.num_classes + 1)
        self.mask_embed = MLP(dim, dim, config.mask_dim)

    def forward(self, pixels: PixelFeatures) -> Prediction:
        levels = self._levels(pixels)
        batch = pixels.mask_features.shape[0]
        query = self.query_feat.weight.expand(batch, -1, -1)  # (B, Q, d)
        query_position = self.query_embed.weight.expand(batch, -1, -1)
        supervised = self.training and self.supervise_layers
        states = []
        for i, layer in enumerate(self.layers):
            state = self.decoder_norm(query)
            mask_embed = self.mask_embed(state)
            if supervised:
                states.append((self.class_embed(state), mask_embed))
            query = self._look(layer, query, query_position, mask_embed, levels[i % len(levels)])
        state = self.decoder_norm(query)
        states.append((self.class_embed(state), self.mask_embed(state)))
        return predict_layers(states, pixels.mask_features, keep_factors=self.training)

    @abstractmethod
    def _levels(self, pixels: PixelFeatures) -> list[Level]:
        """What the layers look at, coarsest first."""

    @abstractmethod
    def _look(
        self, layer: nn.Module, query: Tensor, query_position: Tensor, mask_embed: Tensor, level: Level
    ) -> Tensor:
        """One layer: query and query_position (B, Q, d), mask_embed (B, Q, c) of the query → the next query."""
