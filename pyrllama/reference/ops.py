"""The operations of a LLaMA block in float32, as the papers state them.

Rows are tokens throughout.  Nothing here is fast; everything here is meant to be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ACTIVATION_BLOCK = 32
"""Columns that share a scale when activations are quantised; the block of Q8_0 and Q4_0.  For types
of super-blocks (K-quants and their like) it is 256."""
SMALLEST_BLOCK_MAXIMUM = 2.0**-100
"""A block of activations below it counts as zeros: 127 over it must not overflow."""


def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float
) -> NDArray[np.float32]:
    """Scale each row to a root mean square of 1, then each column by its weight.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight)


def rope(
    x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Turn neighbouring pairs of each head by its token's angles.

    ``x`` is ``(tokens, heads, head_dim)``, ``cos`` and ``sin`` are ``(tokens, head_dim / 2)``.
    Source: Su et al., arXiv 2104.09864, with pairs ``(2i, 2i + 1)``.
    """
    even, odd = x[..., 0::2], x[..., 1::2]  # (tokens, heads, head_dim / 2)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = np.empty_like(x)
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = even * sin + odd * cos
    return turned


def softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities along the last axis; an entry of minus infinity has none."""
    exponentials = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return np.asarray(exponentials / np.sum(exponentials, axis=-1, keepdims=True))


def attention(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    first_position: int,
    window: int | None = None,
) -> NDArray[np.float32]:
    """Return what each query's head gathers from the positions up to its own.

    ``q`` is ``(tokens, heads, head_dim)`` and stands at ``first_position`` and after; ``k``
    and ``v`` are ``(positions, kv_heads, head_dim)`` from position 0.  A key-value head serves
    ``heads / kv_heads`` consecutive query heads (Ainslie et al., arXiv 2305.13245).  A
    ``window`` leaves the last so many positions, the query's own included (Jiang et al., arXiv
    2310.06825).
    """
    n_tokens, n_heads, head_dim = q.shape
    shared_by = n_heads // k.shape[1]
    k, v = np.repeat(k, shared_by, axis=1), np.repeat(v, shared_by, axis=1)
    scores = np.einsum("thd,phd->htp", q, k) / np.float32(np.sqrt(head_dim))
    own_position = first_position + np.arange(n_tokens)
    behind = own_position[:, None] - np.arange(k.shape[0])[None, :]  # (tokens, positions)
    hidden = (behind < 0) | (behind >= (window or np.inf))
    weights = softmax(np.where(hidden, np.float32(-np.inf), scores))
    return np.asarray(np.einsum("htp,phd->thd", weights, v))


def choose_experts(
    logits: NDArray[np.float32], used: int, *, normalised: bool
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the experts of each token, the most probable first, and their weights.

    ``logits`` are the router's, ``(tokens, experts)``; both results are ``(tokens, used)``.  Of
    equal probabilities the first expert's counts as the greater.  ``normalised`` divides the
    weights by their sum.  Source: Jiang et al., arXiv 2401.04088, where weights always sum up
    to 1.
    """
    probabilities = softmax(logits)
    chosen = np.argsort(-probabilities, axis=-1, kind="stable")[:, :used]
    weights = np.take_along_axis(probabilities, chosen, axis=-1)
    if normalised:
        weights = weights / np.sum(weights, axis=-1, keepdims=True)
    return chosen, weights


def swiglu(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``silu(gate) * up`` with ``silu(x) = x / (1 + exp(-x))``.

    Source: Shazeer, arXiv 2002.05202.
    """
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, silu then 0
        return np.asarray(gate / (1 + np.exp(-gate)) * up)


def matmul(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``(rows of x, rows of w)``: weights are stored with a row for every output."""
    return np.asarray(x @ w.T)


def quantize_activations(
    x: NDArray[np.float32],
    block: int = ACTIVATION_BLOCK,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each block of columns to integers from -127 to 127 and a scale.

    ``x`` is ``(n, cols)`` with whole blocks; the result is int8 ``(n, cols)`` and float32
    ``(n, cols / block)``.  With ``m`` the largest magnitude of the block, the scale is ``m / 127``
    and an entry is ``x * (127 / m)`` rounded half to even; a block of zeros stays zeros.
    """
    blocks = x.reshape(len(x), -1, block)
    largest = np.asarray(np.max(np.abs(blocks), axis=-1))  # (n, cols / block)
    largest[largest < SMALLEST_BLOCK_MAXIMUM] = 0
    inverse = np.zeros_like(largest)
    np.divide(np.float32(127), largest, out=inverse, where=largest > 0)
    rounded = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return rounded.reshape(x.shape), np.asarray(largest / np.float32(127))


def matmul_int8(
    x: NDArray[np.float32], w: NDArray[np.float32], block: int = ACTIVATION_BLOCK
) -> NDArray[np.float32]:
    """Multiply as the kernels for quantised weights do: with ``x`` rounded to int8 blocks."""
    rounded, scale = quantize_activations(x, block)
    columns = np.repeat(scale, block, axis=-1)
    return matmul(rounded.astype(np.float32) * columns, w)
