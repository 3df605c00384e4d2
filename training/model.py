"""LLaMA in PyTorch, as small as it gets; parameters carry the names of Meta's checkpoints.

Queries and keys turn as interleaved pairs (Meta's and GGUF's order), the embedding is also the
output projection, and dropout acts on the embedding and on what each sublayer adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each ``(batch, kv_heads, context, head_dim)``."""


@dataclass(frozen=True)
class Shape:
    """The sizes and constants of a model."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    context: int = 512
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        """Numbers of one head."""
        return self.dim // self.n_heads


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_dim = shape.n_kv_heads * shape.head_dim
        self.wq = nn.Linear(shape.dim, shape.dim, bias=False)
        self.wk = nn.Linear(shape.dim, kv_dim, bias=False)
        self.wv = nn.Linear(shape.dim, kv_dim, bias=False)
        self.wo = nn.Linear(shape.dim, shape.dim, bias=False)

    def forward(
        self, x: Tensor, turn: Tensor, cache: tuple[Tensor, Tensor] | None, start: int
    ) -> Tensor:
        """Return what every position takes up from those before it."""
        batch, length, _ = x.shape
        q, k, v = (
            project(x).view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
            for project in (self.wq, self.wk, self.wv)
        )  # (batch, heads, length, head_dim)
        q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:
            for kept, new in zip(cache, (k, v), strict=True):
                kept[:, :, start : start + length] = new
            k, v = (kept[:, :, : start + length] for kept in cache)
        group = self.shape.n_heads // self.shape.n_kv_heads
        mixed = functional.scaled_dot_product_attention(
            q,
            k.repeat_interleave(group, 1),
            v.repeat_interleave(group, 1),
            is_causal=cache is None,  # with a cache there is one new token, which sees all
        )
        return self.wo(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.dim, shape.ffn_dim, bias=False)
        self.w2 = nn.Linear(shape.ffn_dim, shape.dim, bias=False)
        self.w3 = nn.Linear(shape.dim, shape.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what every position becomes by itself."""
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to its input."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.feed_forward = FeedForward(shape)
        self.attention_norm = nn.RMSNorm(shape.dim, shape.norm_eps)
        self.ffn_norm = nn.RMSNorm(shape.dim, shape.norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, turn: Tensor, cache: tuple[Tensor, Tensor] | None, start: int
    ) -> Tensor:
        """Return the residual stream behind this layer."""
        x = x + self.dropout(self.attention(self.attention_norm(x), turn, cache, start))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class Transformer(nn.Module):
    """Token ids ``(batch, length)`` to logits ``(batch, length, vocab)``."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.dim)
        self.layers = nn.ModuleList(Block(shape, dropout) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.dim, shape.norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("turns", _turns(shape), persistent=False)
        self._initialise()

    def forward(self, tokens: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """Return the logits after each token; with a cache, ``tokens`` is one column."""
        turn = self.turns[start : start + tokens.shape[1]]
        x = self.dropout(self.tok_embeddings(tokens))
        for number, layer in enumerate(self.layers):
            x = layer(x, turn, None if cache is None else cache[number], start)
        return functional.linear(self.norm(x), self.tok_embeddings.weight)

    def new_cache(self, batch: int, dtype: torch.dtype) -> Cache:
        """Return room for the keys and values of ``batch`` whole contexts."""
        sizes = (batch, self.shape.n_kv_heads, self.shape.context, self.shape.head_dim)
        device = self.tok_embeddings.weight.device
        return [
            (
                torch.zeros(sizes, dtype=dtype, device=device),
                torch.zeros(sizes, dtype=dtype, device=device),
            )
            for _ in self.layers
        ]

    def _initialise(self) -> None:
        """Draw small weights; what is added to the residual stream is smaller with depth."""
        deep = 0.02 / (2 * self.shape.n_layers) ** 0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(
                    weight, std=deep if name.endswith(("wo.weight", "w2.weight")) else 0.02
                )


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn neighbouring pairs of ``x`` ``(batch, heads, length, head_dim)`` by their angles."""
    cos, sin = turn.unbind(-1)  # (length, head_dim / 2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).type_as(x)


def _turns(shape: Shape) -> Tensor:
    """Return cosine and sine of every position's angles: ``(context, head_dim / 2, 2)``."""
    pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float64), shape.rope_theta**-pairs)
    return torch.stack((angles.cos(), angles.sin()), -1).float()
