"""Attention layers of the DETR family: post-norm, positions added to queries and keys, never to values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskformer import trained_attention
from maskformer.fast_linear import fast_affine, fast_linear


class Attention(nn.Module):
    """Multi-head attention, batch first, through PyTorch's fused kernel.

    `in_proj` holds query, key and value projections in that order, as nn.MultiheadAttention does: published weights
    load one to one and xavier initialisation sees the same fan.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, Q, d), key and value (B, N, d) → (B, Q, d). mask: bool (B, 1, Q, N), true where one may look."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q, k, v = (
            self._split(fast_affine(weight, bias, x))
            for weight, bias, x in zip(weights, biases, (query, key, value), strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        if not dropout and trained_attention.fits(q, k):
            mixed = trained_attention.attend(q, k, v, mask)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return fast_linear(self.out_proj, mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:  # (B, N, d) -> (B, heads, N, d/heads)
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return fast_linear(self.linear2, self.dropout(fast_linear(self.linear1, x, "relu")))


class EncoderLayer(nn.Module):
    """Self-attention over a map's tokens, then feed-forward; post-norm."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads, dropout)
        self.feedforward = FeedForward(dim, feedforward, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x (B, N, d), position (1, N, d)."""
        where = x + position
        x = self.norm1(x + self.dropout(self.self_attention(where, where, x)))
        return self.norm2(x + self.dropout(self.feedforward(x)))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the memory, then feed-forward; post-norm."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads, dropout)
        self.cross_attention = Attention(dim, heads, dropout)
        self.feedforward = FeedForward(dim, feedforward, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, query_position: Tensor, memory: Tensor, memory_position: Tensor) -> Tensor:
        """query and query_position (B, Q, d), memory and memory_position (B, N, d) → (B, Q, d)."""
        where = query + query_position
        query = self.norm1(query + self.dropout(self.self_attention(where, where, query)))
        seen = self.cross_attention(query + query_position, memory + memory_position, memory)
        query = self.norm2(query + self.dropout(seen))
        return self.norm3(query + self.dropout(self.feedforward(query)))
