"""The softmax of attention for one row of queries: its scores, its results, how they merge.

A result is ``head_stride`` float32, what the values weigh so far, and behind them its base, the
score that exponentials are taken less of, and the sum of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.cpu.kernel import inline
from pyrllama.cpu.norm import exponential
from pyrllama.cpu.simd import (
    first_lane,
    keep_first,
    load_f32,
    load_f32x16,
    max_f32,
    maximum,
    splat_f32,
    store,
    sum_f32,
)

if TYPE_CHECKING:
    from pyrllama.cpu.vectors import Lanes

f32 = np.float32
LOWEST: Any = f32(-1e30)
"""Stands for minus infinity where differences are taken."""
ZERO: Any = f32(0.0)


@inline
def without_first(x: Lanes, count: int, fill: float) -> Lanes:
    """Set the first ``count`` lanes of finite numbers to ``fill``."""
    return x - keep_first(x, count, ZERO) + keep_first(splat_f32(fill), count, ZERO)


@inline
def softmax(scores: int, unseen: int, count: int, result: int) -> None:
    """Replace a row's scores by exponentials; write their base and sum to ``result``.

    There are ``count``, of which the first ``unseen`` become zeros.
    """
    n_bytes = (count + 15) // 16 * 64
    last, begin = n_bytes - 64, unseen // 16 * 64
    store(scores + last, keep_first(load_f32x16(scores + last), count - last // 4, LOWEST))
    for i in range(0, begin, 64):
        store(scores + i, splat_f32(0.0))
    if unseen:
        edge = without_first(load_f32x16(scores + begin), unseen - begin // 4, LOWEST)
        store(scores + begin, edge)
    greatest = splat_f32(LOWEST)
    for i in range(begin, n_bytes, 64):
        greatest = maximum(greatest, load_f32x16(scores + i))
    peak = max_f32(greatest)
    total = splat_f32(0.0)
    for i in range(begin, n_bytes, 64):
        weights = exponential(load_f32x16(scores + i) - peak)
        store(scores + i, weights)
        total = total + weights
    if unseen:
        # An exponential is never quite zero.
        weights = without_first(load_f32x16(scores + begin), unseen - begin // 4, ZERO)
        store(scores + begin, weights)
    store(result, peak)
    store(result + 4, sum_f32(total))


@inline
def clear(row: int, stride: int) -> None:
    """Make a result that of no positions."""
    for i in range(0, 4 * stride, 64):
        store(row + i, splat_f32(0.0))
    store(row + 4 * stride, LOWEST)
    store(row + 4 * stride + 4, ZERO)


@inline
def merge(row: int, other: int, stride: int) -> None:
    """Add to a row's result that of the part of the positions which follow."""
    base, other_base = load_f32(row + 4 * stride), load_f32(other + 4 * stride)
    peak = max(base, other_base)
    own, its = exponential(splat_f32(base - peak)), exponential(splat_f32(other_base - peak))
    for i in range(0, 4 * stride, 64):
        store(row + i, load_f32x16(row + i) * own + load_f32x16(other + i) * its)
    weight, its_weight = load_f32(row + 4 * stride + 4), load_f32(other + 4 * stride + 4)
    store(row + 4 * stride, peak)
    store(row + 4 * stride + 4, weight * first_lane(own) + its_weight * first_lane(its))


@inline
def copy_row(row: int, target: int, row_bytes: int) -> None:
    """Copy a result."""
    for i in range(0, row_bytes, 64):
        store(target + i, load_f32x16(row + i))


@inline
def write_row(result: int, out: int, head_dim: int, stride: int) -> None:
    """Write a row's weighted mean of values: its total over the sum of its weights."""
    weight = load_f32(result + 4 * stride + 4)
    whole = head_dim // 16 * 64
    for i in range(0, whole, 64):
        store(out + i, load_f32x16(result + i) / weight)
    for i in range(whole, 4 * head_dim, 4):
        store(out + i, load_f32(result + i) / weight)
