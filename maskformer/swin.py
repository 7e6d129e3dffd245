"""Swin (Liu et al. 2021, arXiv 2103.14030) as the published checkpoints of the family have it, names included.

The map is padded to the window after the first norm and then rolled. timm rolls first and pads then, so that the same
weights give other features wherever a stage's map is no multiple of the window (ADE20K at 512 px always).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskformer.fast_linear import fast_linear

# embed_dim, depths, heads, window
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "swin-tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin-small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin-base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin-large": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
BLOCKED = -100.0  # added to the scores of tokens that only the roll made neighbours; not -inf, as published


class Swin(nn.Module):
    """Image (B, C, H, W) → four normed maps (B, embed_dim * 2^i, ⌈H/4⌉ / 2^i, …), each halving rounded up.

    Any H and W. The maps are channels-last views. ValueError for an unknown name or option.
    """

    def __init__(self, name: str = "swin-tiny", in_channels: int = 3, **options: Any) -> None:
        super().__init__()
        shape = _options(name, options)
        depths, heads = shape["depths"], shape["heads"]
        self.channels = tuple(shape["embed_dim"] * 2**i for i in range(4))
        self.patch_embed = PatchEmbed(in_channels, self.channels[0])
        rates = torch.linspace(0, shape["drop_path"], sum(depths), device="cpu").split(list(depths))
        self.layers = nn.ModuleList(
            Stage(
                [
                    Block(
                        dim,
                        heads[i],
                        shape["window"],
                        shape["window"] // 2 if j % 2 else 0,
                        int(dim * shape["mlp_ratio"]),
                        float(rate),
                    )
                    for j, rate in enumerate(rates[i])
                ],
                PatchMerging(dim) if i < 3 else None,
            )
            for i, dim in enumerate(self.channels)
        )
        for i, dim in enumerate(self.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        maps = []
        for i, stage in enumerate(self._stages()):
            x = stage(x)
            maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for stage in self._stages():
            stage.checkpointing = enable

    def _stages(self) -> list[Stage]:
        return list(cast("Iterable[Stage]", self.layers))


class PatchEmbed(nn.Module):
    """4x4 patches → tokens (B, H/4, W/4, dim); sides are padded with 0 to multiples of 4."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks at one resolution; `downsample` halves it afterwards and is called by Swin."""

    def __init__(self, blocks: Sequence[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            again = self.checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x


class PatchMerging(nn.Module):
    """Tokens (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2C): four neighbours, columns first, normed and projected."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
        return fast_linear(self.reduction, self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Block(nn.Module):
    """Attention in (shifted) windows, then an MLP; pre-norm, stochastic depth on both."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) → the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return fast_linear(self.fc2, fast_linear(self.fc1, x, "gelu"))


class WindowAttention(nn.Module):
    """Self-attention within windows of `window` x `window` tokens, the grid of windows moved by `shift`."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) → the same shape.

        Padding is 0 before the projection, so a padded token's query, key and value are the projection's bias: only
        real tokens are projected, and one gather pads, rolls and partitions them.
        """
        batch, height, width, dim = x.shape
        plan = window_plan(height, width, self.window, self.shift, x.device)
        tokens = fast_linear(self.qkv, x).flatten(1, 2).index_select(1, plan.gather)  # (B, windows * area, 3C)
        if plan.padded.numel():
            tokens[:, plan.padded] = self.qkv.bias.to(tokens.dtype)
        area = self.window**2
        q, k, v = tokens.view(-1, area, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        bias = self._bias(x.device)
        if plan.mask is not None:
            bias = (bias + plan.mask[:, None]).repeat(batch, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        mixed = mixed.transpose(1, 2).reshape(batch, -1, dim).index_select(1, plan.scatter)
        return fast_linear(self.proj, mixed).unflatten(1, (height, width))

    def _bias(self, device: torch.device) -> Tensor:  # (1, heads, area, area)
        index = relative_position_index(self.window, device)
        return self.relative_position_bias_table.t().index_select(1, index).unflatten(1, (self.window**2, -1))[None]


class Plan(NamedTuple):
    """How a map's tokens lie in windows. T = height * width, S = windows * area, row by row."""

    gather: Tensor  # (S,) the token of each place; 0 where the place is padding
    padded: Tensor  # the places that are padding
    scatter: Tensor  # (T,) the place of each token
    mask: Tensor | None  # (windows, area, area) float32, 0 or BLOCKED; None where nothing was rolled


def _cached(function: Any) -> Any:
    """One result a shape, kept; computed in place where a graph is being captured."""

    @functools.lru_cache(
        maxsize=24
    )  # eight a picture size: three sizes, up to 100 MB each for windows of 12 at 1024 px
    def kept(*arguments: Any) -> Any:
        # Made outside inference mode: a cached inference tensor could not take part in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            return function(*arguments)

    @functools.wraps(function)
    def choose(*arguments: Any) -> Any:
        return function(*arguments) if torch.compiler.is_compiling() else kept(*arguments)

    return choose


@_cached
def window_plan(height: int, width: int, window: int, shift: int, device: torch.device) -> Plan:
    """Padding to the window at the bottom and the right, then a roll by `shift` up and left, then windows."""
    rows, columns = -(-height // window) * window, -(-width // window) * window

    def count(start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=device)

    def place(y: Tensor, x: Tensor) -> Tensor:  # where tokens (y, x) of the padded map lie among the windows
        y, x = (y - shift) % rows, (x - shift) % columns
        row = (y // window * (columns // window)) * window**2 + y % window * window
        return (row[:, None] + x // window * window**2 + x % window).flatten()

    # No `nonzero`: a captured graph must know each length from the shape.
    scatter = place(count(0, height), count(0, width))
    below, beside = place(count(height, rows), count(0, columns)), place(count(0, height), count(width, columns))
    gather = torch.zeros(rows * columns, dtype=torch.int64, device=device)
    gather = gather.scatter(0, scatter, count(0, height * width))
    mask = None
    if shift:
        row = (count(0, rows) >= rows - shift).int()
        column = (count(0, columns) >= columns - shift).int()
        part = _partition(2 * row[:, None] + column, window)
        mask = torch.where(part[:, :, None] == part[:, None], 0.0, BLOCKED)
    return Plan(gather, torch.cat((below, beside)), scatter, mask)


@_cached
def relative_position_index(window: int, device: torch.device) -> Tensor:
    """(area * area,): row of the bias table for each pair of a window's tokens, query first."""
    place = torch.arange(window, device=device)
    away = place[:, None] - place + window - 1  # (window, window)
    pairs = away[:, None, :, None] * (2 * window - 1) + away[None, :, None, :]  # (y, x, y', x')
    return pairs.flatten()


def _partition(grid: Tensor, window: int) -> Tensor:  # (H, W) -> (windows, area)
    return grid.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2).flatten(0, 1).flatten(1)


def _options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    if name not in SIZES:
        raise ValueError(f"backbone: {name!r} is not one of {', '.join(SIZES)}")
    shape: dict[str, Any] = dict(zip(("embed_dim", "depths", "heads", "window"), SIZES[name], strict=True))
    shape.update(drop_path=0.0, mlp_ratio=4.0)
    unknown = sorted(set(options) - set(shape))
    if unknown:
        raise ValueError(f"backbone_options: {name} has no {unknown[0]!r}; it has {', '.join(shape)}")
    shape.update(options)
    if len(shape["depths"]) != 4 or len(shape["heads"]) != 4:
        raise ValueError("backbone_options: depths and heads are four numbers each")
    for i, heads in enumerate(shape["heads"]):
        if shape["embed_dim"] * 2**i % heads:
            raise ValueError(f"backbone_options: width {shape['embed_dim'] * 2**i} is no multiple of {heads} heads")
    return shape


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
