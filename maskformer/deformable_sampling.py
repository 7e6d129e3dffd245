"""The heart of deformable attention: weighted sums of bilinear samples of several maps. Two exact ways.

`sample_grid` goes through grid_sample and suits GPUs, compilation and export. `sample_bags` is for processors, where
grid_sample gathers one channel at a time: there each (token, head) is a bag of table rows summed with weights, which
PyTorch's embedding_bag does in one pass and without keeping a single sample. A layer at 512², width 256, two cores,
float32: the gathering alone 25 ms by grid_sample, 4.3 ms in bags; the whole pixel decoder, processor time of one
thread against transformers' at Swin-T's widths: 1.45 : 3.33 s (bf16 0.65 : 2.05), with backward 3.8 : 6.9 s
(bf16 2.0 : 5.4). Three quarters of what is left in float32 are matrix products and one convolution.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[tuple[int, int], ...]  # (height, width) of each level, in the order of the tokens
PAD = 2  # empty cells before each row and level: places are clamped to them, where value and gradient are zero


def sample(values: Tensor, places: Tensor, sizes: Sizes, heads: int) -> Tensor:
    """Values at learned places round each token, in every level, summed with learned weights.

    values (B, N, d): the levels' maps as tokens, one after another. places (B, N, 3 · S), S = heads · levels · points
    in that order: x offsets from the token's own place, in pixels of the level sampled; y offsets; logits of the
    weights, a softmax over levels · points. → (B, N, d) float32. Bilinear, zero outside, pixel centres at halves.
    """
    graph = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
    if graph or values.device.type != "cpu":
        return sample_grid(values, places, sizes, heads)
    return sample_bags(values, places, sizes, heads)


def sample_grid(values: Tensor, places: Tensor, sizes: Sizes, heads: int) -> Tensor:
    """`sample` by grid_sample, level by level."""
    batch, tokens, _ = values.shape
    x, y, logits = (
        part.unflatten(2, (heads, len(sizes), -1)).transpose(1, 2).flatten(0, 1)  # (B · heads, N, levels, points)
        for part in places.float().chunk(3, dim=2)
    )
    weights = logits.flatten(2).softmax(2)  # (B · heads, N, levels · points)
    own_x, own_y = _own_places(sizes, values.device)  # (N, 1) in 0 … 1
    sampled = []
    for level, (part, (height, width)) in enumerate(zip(_split(values, sizes), sizes, strict=True)):
        grid = torch.stack((x[:, :, level] / width + own_x, y[:, :, level] / height + own_y), dim=3) * 2 - 1
        maps = part.float().unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)  # (B · heads, d/heads, hw)
        maps = maps.reshape(batch * heads, -1, height, width)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    mixed = (torch.cat(sampled, dim=3) * weights[:, None]).sum(3)  # (B · heads, d/heads, N)
    return mixed.reshape(batch, -1, tokens).transpose(1, 2)


def sample_bags(values: Tensor, places: Tensor, sizes: Sizes, heads: int) -> Tensor:
    """`sample` by embedding_bag, on a processor."""
    return _SampleBags.apply(values, places, sizes, heads)  # type: ignore[no-untyped-call]


def _split(tokens: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    return tokens.split([height * width for height, width in sizes], dim=1)


def _own_places(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres of every token in 0 … 1: x (N, 1), y (N, 1)."""
    x, y = [], []
    for height, width in sizes:
        row = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        column = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x.append(row.expand(height, width).flatten())
        y.append(column[:, None].expand(height, width).flatten())
    return torch.cat(x)[:, None], torch.cat(y)[:, None]


class _Layout(NamedTuple):
    """How the levels lie in one table, all with rows of `stride` cells; constants for K = levels · points places."""

    stride: int
    rows: int
    first: tuple[int, ...]  # each level's first row
    x: Tensor  # (N, 1, K): the token's own place in pixels of each level, pixel centres at whole numbers
    y: Tensor
    low: Tensor  # (K,): where x and y are clamped
    right: Tensor
    bottom: Tensor
    origin: Tensor  # (heads, K): table row of each level's pixel (0, 0), for each head

    @property
    def cells(self) -> int:
        return self.rows * self.stride

    @property
    def last(self) -> int:
        """The last cell that has a right, a lower and a lower right neighbour."""
        return self.cells - self.stride - 2


@functools.lru_cache(maxsize=16)
def _layout(sizes: Sizes, heads: int, points: int) -> _Layout:
    # Made outside inference mode: a cached inference tensor could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        stride = max(width for _, width in sizes) + PAD
        first, row = [], PAD
        for height, _ in sizes:
            first.append(row)
            row += height + PAD
        own_x, own_y = _own_places(sizes, torch.device("cpu"))
        heights, widths = (
            torch.tensor(sizes, dtype=torch.float32, device="cpu").repeat_interleave(points, dim=0).unbind(1)
        )
        corner = (torch.tensor(first, device="cpu").repeat_interleave(points) * stride + PAD) * heads
        return _Layout(
            stride=stride,
            rows=row + 1,  # the last level's right neighbours wrap into one more row
            first=tuple(first),
            x=(own_x * widths - 0.5)[:, None],
            y=(own_y * heights - 0.5)[:, None],
            low=torch.full_like(widths, -PAD),
            right=widths,
            bottom=heights,
            origin=(corner + torch.arange(heads, device="cpu")[:, None]).float(),
        )


class _Samples(NamedTuple):
    """n = B · N · heads bags of K places. row (n, K) int32: table row of the upper left corner; the rest float32."""

    row: Tensor
    x: Tensor  # way from the left to the right corner, 0 … 1
    y: Tensor
    weight: Tensor

    def corner_weights(self) -> Tensor:
        """(n, 4, K): upper left, upper right, lower left, lower right."""
        corners = self.weight.new_empty(self.weight.shape[0], 4, self.weight.shape[1])
        lower = self.weight * self.y
        upper = self.weight - lower
        for top, left in ((upper, 0), (lower, 2)):
            torch.mul(top, self.x, out=corners[:, left + 1])
            torch.sub(top, corners[:, left + 1], out=corners[:, left])
        return corners

    def corner_rows(self, shifts: tuple[int, ...]) -> Tensor:
        """(n, 4, K) int32."""
        rows = self.row.new_empty(self.row.shape[0], 4, self.row.shape[1])
        for corner, shift in enumerate(shifts):
            torch.add(self.row, shift, out=rows[:, corner])
        return rows


def _samples(places: Tensor, layout: _Layout, heads: int) -> _Samples:
    batch, tokens, _ = places.shape
    x, y, logits = (part.float().unflatten(2, (heads, -1)) for part in places.chunk(3, dim=2))  # (B, N, heads, K)
    cells, ways = [], []
    for offset, own, high in ((x, layout.x, layout.right), (y, layout.y, layout.bottom)):
        place = offset + own
        cell = torch.clamp(place, layout.low, high, out=place).floor()
        cells.append(cell)
        ways.append(place.sub_(cell).view(batch * tokens * heads, -1))
    # Exact in float32 up to 16.7 million rows a picture (levels of an 8192² picture); pictures are told apart after.
    row = cells[0].mul_(heads).add_(cells[1], alpha=layout.stride * heads).add_(layout.origin).to(torch.int32)
    # Only a NaN, which passes the clamp above, is still out of range; its weight is NaN too and tells.
    row.clamp_(0, layout.last * heads)
    if batch > 1:
        row += torch.arange(batch, dtype=torch.int32).mul_(layout.cells * heads)[:, None, None, None]
    # By hand: over a last dimension of 12, softmax takes 4.9 ms where these passes take 1.2 (516 096 numbers).
    weight = (logits - logits.amax(3, keepdim=True)).exp_()
    weight /= weight.sum(3, keepdim=True)
    return _Samples(row.view(batch * tokens * heads, -1), ways[0], ways[1], weight.view(batch * tokens * heads, -1))


def _sum_rows(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return torch.embedding_bag(table, rows, starts, mode=0, per_sample_weights=weights)[0]


def _bag_starts(bags: int, size: int) -> Tensor:
    return torch.arange(0, bags * size, size, dtype=torch.int32)


class _SampleBags(torch.autograd.Function):
    """The levels become one zero-padded table (cells · heads, d / heads), so that no place needs a bounds check."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, sizes: Sizes, heads: int) -> Tensor:
        batch, tokens, dim = values.shape
        layout = _layout(sizes, heads, places.shape[2] // (3 * heads * len(sizes)))
        shifts = (0, heads, layout.stride * heads, (layout.stride + 1) * heads)
        table = values.new_zeros((batch, layout.rows, layout.stride, dim), dtype=torch.float32)
        for part, (height, width), first in zip(_split(values, sizes), sizes, layout.first, strict=True):
            table[:, first : first + height, PAD : PAD + width] = part.unflatten(1, (height, width))
        table = table.view(-1, dim // heads)
        samples = _samples(places, layout, heads)
        rows, weights = samples.corner_rows(shifts).view(-1), samples.corner_weights().view(-1)
        mixed = _sum_rows(table, rows, _bag_starts(batch * tokens * heads, 4 * samples.row.shape[1]), weights)
        ctx.save_for_backward(table, *samples)
        ctx.sizes, ctx.layout, ctx.shifts = sizes, layout, shifts
        ctx.values, ctx.places = (values.shape, values.dtype), (places.shape, places.dtype)
        return mixed.view(batch, tokens, dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        table, *parts = ctx.saved_tensors
        samples = _Samples(*parts)
        gradient = gradient.float().reshape(-1, table.shape[1])  # (n, d / heads)
        for_values = for_places = None
        if ctx.needs_input_grad[0]:
            for_values = _values_gradient(ctx, table, samples, gradient)
        if ctx.needs_input_grad[1]:
            for_places = _places_gradient(ctx, table, samples, gradient)
        return for_values, for_places, None, None


def _values_gradient(ctx: Any, table: Tensor, samples: _Samples, gradient: Tensor) -> Tensor:
    """Bags the other way round: each table row gathers from the bags it was in. One sort serves all four corners."""
    (batch, _, dim), dtype = ctx.values
    layout, points = ctx.layout, samples.row.shape[1]
    _, order = torch.sort(samples.row.view(-1), stable=True)
    counts = torch.bincount(samples.row.view(-1), minlength=table.shape[0])
    starts = (counts.cumsum(0) - counts).to(torch.int32)
    bags = order.div(points, rounding_mode="floor").to(torch.int32)
    weights = samples.corner_weights()
    padded = torch.zeros_like(table)
    for corner, shift in enumerate(ctx.shifts):
        one = weights[:, corner].reshape(-1).index_select(0, order)
        padded[shift:] += _sum_rows(gradient, bags, starts, one)[: table.shape[0] - shift]
    cells = padded.view(batch, layout.rows, layout.stride, dim)
    levels = [
        cells[:, first : first + height, PAD : PAD + width].flatten(1, 2)
        for (height, width), first in zip(ctx.sizes, layout.first, strict=True)
    ]
    return torch.cat(levels, dim=1).to(dtype)


def _places_gradient(ctx: Any, table: Tensor, samples: _Samples, gradient: Tensor) -> Tensor:
    """Each corner's share of the output's gradient, then the chain through bilinear weights and softmax."""
    shape, dtype = ctx.places
    bags, points = samples.row.shape
    upper_left, upper_right, lower_left, lower_right = (
        _dot_products(gradient, table, samples.corner_rows(ctx.shifts).view(-1)).view(bags, 4, points).unbind(1)
    )
    upper_slope, lower_slope = upper_right - upper_left, lower_right - lower_left
    upper = torch.addcmul(upper_left, samples.x, upper_slope)
    down = torch.addcmul(lower_left, samples.x, lower_slope) - upper
    value = torch.addcmul(upper, samples.y, down)  # gradient of the weight
    result = torch.empty(shape, dtype=torch.float32)
    for_x, for_y, for_logits = result.view(-1, shape[2]).chunk(3, dim=1)
    across = torch.addcmul(upper_slope, samples.y, lower_slope - upper_slope)
    torch.mul(samples.weight, across, out=across)
    for_x.copy_(across.view_as(for_x))
    for_y.copy_((down * samples.weight).view_as(for_y))
    value *= samples.weight
    for_logits.copy_((value - samples.weight * value.sum(1, keepdim=True)).view_as(for_logits))
    return result.to(dtype)


def _dot_products(left: Tensor, right: Tensor, rows: Tensor) -> Tensor:
    """left[n] · right[rows[n, k]] for each n and k: rows is flat, equally many for each n → flat (len(rows),).

    Through the sparse product, which makes no copy of the rows: 5 ms for 516 096 dots of 32 numbers, where
    embedding_bag's own backward takes 10 and gathering them takes 34.
    """
    starts = torch.arange(0, rows.shape[0] + 1, rows.shape[0] // left.shape[0], dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)  # says once that CSR is in beta
        pattern = torch.sparse_csr_tensor(
            starts, rows, left.new_zeros(rows.shape), (left.shape[0], right.shape[0]), check_invariants=False
        )
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
