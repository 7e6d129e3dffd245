"""Attention of few queries with its gradient, in bfloat16 on a processor.

PyTorch's fused kernel is made for inference and for long sequences: of 100 queries its backward pass takes 58 ms over
4096 keys, 11 over 1024 and 4.3 over 100 (batch 2, 8 heads of 32, two cores of an AMD EPYC). The five matrix products it
stands for take 24, 4.0 and 0.9, at 13 MB more memory over 4096 keys for the probabilities, and forward 33 instead of
18, 6 instead of 5, 0.4 instead of 0.7 ms. Scores are rounded to bfloat16 on the way, as products are. In float32 there
is nothing to gain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_SCORES = 1 << 24  # of a batch: 32 MB of probabilities are kept a layer


def fits(query: Tensor, key: Tensor) -> bool:
    """Whether `attend` is the quicker way for query (B, heads, Q, c) and key (B, heads, N, c)."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    few = query.shape[:3].numel() * key.shape[2] <= MOST_SCORES
    return torch.is_grad_enabled() and query.device.type == "cpu" and query.dtype == torch.bfloat16 and few


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """`scaled_dot_product_attention` of query (B, h, Q, c), key and value (B, h, N, c) → (B, h, Q, c).

    mask: bool, broadcast to (B, h, Q, N), true where one may look; a query that may look nowhere is not allowed.
    """
    return _Attention.apply(query, key, value, mask)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        shape = query.shape
        ctx.scale = shape[-1] ** -0.5
        q, k, v = (query * ctx.scale).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:
            scores.unflatten(0, shape[:2]).masked_fill_(~mask, -torch.inf)
        chance = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, chance)
        return torch.bmm(chance, v).unflatten(0, shape[:2])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, chance = ctx.saved_tensors
        heads = gradient.shape[:2]
        gradient = gradient.flatten(0, 1)
        of_chance = torch.bmm(gradient, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_chance, chance, -1, chance.dtype)
        of_query = torch.bmm(of_scores, k).mul_(ctx.scale)
        of_key = torch.bmm(of_scores.transpose(1, 2), q)
        of_value = torch.bmm(chance.transpose(1, 2), gradient)
        return of_query.unflatten(0, heads), of_key.unflatten(0, heads), of_value.unflatten(0, heads), None
