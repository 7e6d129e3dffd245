"""Queries that start at places of the picture, and masks that start as ellipses round them. Not in the paper.

A DETR decoder learns where its queries look over hundreds of epochs. This one is told: a small head marks object
centres in a feature map (a Gaussian bump an object, as in CenterNet, arXiv 1904.07850), the local maxima of that map
become the queries (as in FastInst, 2303.08594), and a query's mask starts from an ellipse round its place, whose shift
and radii it predicts. The rest (DETR layers, heads, matching one to one, losses) is MaskFormer's. Positions are
counted in pixels, not in shares of the picture, so that a crop and a whole tile look alike.

Measured on tree crowns (280 boxes to learn from, 200 steps of 4 crops of 256 px on a CPU): see `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.pixel_decoders import MEMORY_STRIDES, PixelFeatures, biased_conv
from maskformer.position import pixel_position
from maskformer.prediction import STRIDE, PixelMaps, Prediction
from maskformer.query_decoders import MLP, DETRDecoder

NOT_A_PEAK = -10.0  # the class logit of places that only fill up the number of queries: p < 1e-4
REACH = 0.75  # cells a centre may move: further, and two neighbours could claim one object
STEEP = 4.0  # logit at the centre of an ellipse (0 on its edge); 4 is p = 0.98


class LocatedDecoder(DETRDecoder):
    """The `num_queries` best centres of the map at `query_stride` look at the memory at `memory_stride`.

    Two objects closer than two cells of the map share a maximum: for dense scenes of small objects `query_stride` 4
    finds centres in the mask features.
    """

    def __init__(self, memory_channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__(memory_channels, config)
        dim = config.hidden_dim
        del self.query_embed  # queries come from the picture
        self.num_queries = config.num_queries
        self.query_stride = config.query_stride
        self.memory_level = MEMORY_STRIDES.index(config.memory_stride)
        self.input_proj = biased_conv(memory_channels[self.memory_level], dim, 1)
        channels = dict(zip((*MEMORY_STRIDES, STRIDE), (*memory_channels, config.mask_dim), strict=True))
        self.candidates = nn.Sequential(
            biased_conv(channels[self.query_stride], dim, 3), nn.ReLU(), nn.Conv2d(dim, dim, 1)
        )
        self.centre_embed = nn.Conv2d(dim, config.num_classes, 1)
        # Centres are rare: they start at p = 0.05.
        nn.init.constant_(self.centre_embed.bias, -3.0)  # type: ignore[arg-type]
        nn.init.zeros_(self.class_embed.bias)
        self.semantic_embed = nn.Conv2d(config.mask_dim, config.num_classes, 1)
        self.shape_embed: MLP | None = None
        if config.mask_prior == "ellipse":
            self.shape_embed = MLP(dim, dim, 5)
            nn.init.zeros_(self.shape_embed.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.shape_embed.layers[-1].bias)  # type: ignore[arg-type]
            self.radius = config.prior_radius / STRIDE

    def forward(self, pixels: PixelFeatures) -> Prediction:
        maps = dict(zip((*MEMORY_STRIDES, STRIDE), (*pixels.memory, pixels.mask_features), strict=True))
        features = self.candidates(maps[self.query_stride])
        centres = self.centre_embed(torch.relu(features))  # (B, K, h, w)
        chosen, head_start = self.choose(centres.detach().float())
        query = _pick(features, chosen)  # (B, Q, d)
        query_position = _pick(self._position(features, self.query_stride), chosen)
        places = _pick(_cell_centres(features, self.query_stride / STRIDE), chosen)  # (B, Q, 2): x, y

        memory_map = self.input_proj(pixels.memory[self.memory_level])
        memory_position = self._position(memory_map, MEMORY_STRIDES[self.memory_level]).flatten(2).transpose(1, 2)
        memory = memory_map.flatten(2).transpose(1, 2)
        states = [query]
        for layer in self.layers:
            query = layer(query, query_position, memory, memory_position)
            states.append(query)
        if not (self.training and self.supervise_layers):
            states = states[-1:]
        every = [self._predict(self.norm(state), pixels.mask_features, head_start, places) for state in states]
        dense = PixelMaps(self.semantic_embed(pixels.mask_features), centres) if self.training else None
        return every[-1]._replace(auxiliary=tuple(every[:-1]), maps=dense)

    @torch.no_grad()
    def choose(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Centre logits (B, K, h, w) → indices (B, Q) of the best local maxima (3 × 3), class logits (B, Q, K+1).

        Where there are fewer maxima than queries, other places fill up. The decoder adds its own class logits to
        these: the centre logits of a maximum, "no object" elsewhere.
        """
        is_peak = centres == F.max_pool2d(centres, 3, stride=1, padding=1)
        value = torch.where(is_peak, centres, centres - 100).flatten(2).amax(1)
        chosen = value.topk(min(self.num_queries, value.shape[1]), dim=1).indices
        start = _pick(torch.where(is_peak, centres, NOT_A_PEAK), chosen)
        return chosen, F.pad(start, (0, 1))

    def _predict(self, state: Tensor, mask_features: Tensor, head_start: Tensor, places: Tensor) -> Prediction:
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(state), mask_features)
        if self.shape_embed is not None:
            step = self.query_stride / STRIDE
            shape = self.shape_embed(state).float()
            middle = places + REACH * step * shape[..., :2].tanh()
            radii = self.radius * shape[..., 2:4].clamp(-3, 4).exp()
            masks = masks + ellipses(middle, radii, STEEP * shape[..., 4].clamp(-3, 3).exp(), masks.shape[-2:])
        return Prediction(self.class_embed(state) + head_start, masks)

    def _position(self, like: Tensor, stride: int) -> Tensor:
        height, width = like.shape[-2:]
        position = pixel_position(height, width, like.shape[1], stride, like.device)
        return position.to(like.dtype).expand(len(like), -1, -1, -1)


def ellipses(middle: Tensor, radii: Tensor, steep: Tensor, size: Sequence[int]) -> Tensor:
    """Logits steep·(1 − (Δx/rx)² − (Δy/ry)²), not under −12: middle and radii (B, Q, 2) as x, y → (B, Q, *size)."""
    height, width = size
    x = torch.arange(width, device=middle.device) + 0.5
    y = torch.arange(height, device=middle.device) + 0.5
    across = steep[..., None] * ((x - middle[..., :1]) / radii[..., :1]).square()  # (B, Q, w)
    down = steep[..., None] * ((y - middle[..., 1:]) / radii[..., 1:]).square()  # (B, Q, h)
    return (steep[..., None, None] - across[..., None, :] - down[..., :, None]).clamp(min=-12)


def _cell_centres(like: Tensor, step: float) -> Tensor:
    """x and y of the cells of a map (B, d, h, w), a cell being `step` mask pixels wide: (B, 2, h, w)."""
    batch, _, height, width = like.shape
    y = (torch.arange(height, device=like.device) + 0.5) * step
    x = (torch.arange(width, device=like.device) + 0.5) * step
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width))).expand(batch, -1, -1, -1)


def _pick(maps: Tensor, chosen: Tensor) -> Tensor:
    """Values of maps (B, c, h, w) at flat indices (B, Q) → (B, Q, c)."""
    index = chosen[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).transpose(1, 2)
