"""Rotation of queries and keys, the KV cache's layout, and attention over it.

The cache is blocks of 32 tokens, in float16 or float32.  In a block every layer has its keys
and then its values, head by head: keys as two tiles of ``(head_dim, 16 positions)``, so that
the scores of 16 positions leave a product at once; values as ``(32 positions, head_stride)``.
The stride is the head's size padded to 16.

Attention runs over the blocks from the first with an online softmax (Milakov and Gimelshein,
2018): the greatest score so far, the sum of exponentials and the weighted values are corrected
when a block raises the first.  The order never depends on how a prompt was cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.cpu.kernel import KernelFunction, inline, kernel, view
from pyrllama.cpu.norm import exponential
from pyrllama.cpu.records import ACTIVATIONS, STEP
from pyrllama.cpu.simd import (
    Lanes,
    first_lane,
    float_to_half,
    fused_multiply_add,
    half_to_float,
    keep_first,
    load_f32,
    load_f32x16,
    load_i16x16,
    load_i64,
    load_u16,
    max_f32,
    maximum,
    splat_f32,
    square_root,
    store,
    sum_f32,
    swap_pairs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Step = view(STEP)
Activations = view(ACTIVATIONS)

f32, i16 = np.float32, np.int16
ONE: Any = f32(1.0)
LOWEST = f32(-1e30)
"""Stands for minus infinity where differences are taken."""


@inline
def rotate(x: int, table: int, out: int, head_stride: int, scale: float) -> None:
    """Rotate interleaved pairs by a position's angles and multiply by ``scale``.

    ``(a, b)`` becomes ``(a cos - b sin, b cos + a sin)``: the table holds every cosine twice,
    then every sine twice with its sign, zeros behind the head.
    """
    for i in range(0, 4 * head_stride, 64):
        v = load_f32x16(x + i)
        turned = v * load_f32x16(table + i)
        sine = load_f32x16(table + 4 * head_stride + i)
        store(out + i, fused_multiply_add(swap_pairs(v), sine, turned) * scale)


def cache_kernels(
    size: int,
    load: Callable[[int], Lanes],
    keep: Callable[[int, Lanes], None],
    copy: Callable[[int, int], None],
) -> tuple[KernelFunction, KernelFunction]:
    """Return the kernels that fill and read a cache whose numbers have ``size`` bytes.

    ``load`` reads 16 of them as float32, ``keep`` stores 16, and ``copy`` moves one.
    """

    @kernel
    def store_key_value(step: int, layer: int, token: int, head: int, work: int) -> None:
        """Rotate a token's key of one KV head and put key and value into the cache."""
        s = Step(step)
        position = load_i64(s.positions + 8 * token)
        block = load_i64(load_i64(s.tables + 8 * token) + 8 * (position // BLOCK_TOKENS))
        slot = position % BLOCK_TOKENS
        head_bytes = size * BLOCK_TOKENS * s.head_stride
        keys = s.cache + block * s.block_bytes + layer * s.layer_bytes + head * head_bytes
        values = keys + s.n_kv_heads * head_bytes + size * slot * s.head_stride
        source = token * s.kv_stride + 4 * head * s.head_dim
        rotate(s.k + source, s.rope + 8 * position * s.head_stride, work, s.head_stride, ONE)
        for i in range(0, s.head_stride, 16):
            keep(work + size * i, load_f32x16(work + 4 * i))
            keep(values + size * i, load_f32x16(s.v + source + 4 * i))
        lane = keys + slot // 16 * 16 * size * s.head_stride + size * (slot % 16)
        for i in range(s.head_dim):
            copy(work + size * i, lane + 16 * size * i)

    @inline
    def scores_of_tiles(q: int, keys: int, head_dim: int, tile: int) -> tuple[Lanes, Lanes]:
        """Return the scores of 32 positions as two vectors."""
        even_0, odd_0 = splat_f32(0.0), splat_f32(0.0)
        even_1, odd_1 = splat_f32(0.0), splat_f32(0.0)
        for i in range(0, head_dim, 2):
            a, b = splat_f32(load_f32(q + 4 * i)), splat_f32(load_f32(q + 4 * i + 4))
            p = keys + 16 * size * i
            even_0 = fused_multiply_add(a, load(p), even_0)
            odd_0 = fused_multiply_add(b, load(p + 16 * size), odd_0)
            even_1 = fused_multiply_add(a, load(p + tile), even_1)
            odd_1 = fused_multiply_add(b, load(p + tile + 16 * size), odd_1)
        return even_0 + odd_0, even_1 + odd_1

    @inline
    def add_values(
        total: int, values: int, weights: int, count: int, correction: float, head_stride: int
    ) -> None:
        """Correct the running sum of values and add ``count`` positions' weighted ones.

        Four vectors of the head go together, which hides the latency of their sums.
        """
        whole = head_stride // 64 * 64
        for i in range(0, whole, 64):
            place, v = total + 4 * i, values + size * i
            t0 = load_f32x16(place) * correction
            t1 = load_f32x16(place + 64) * correction
            t2 = load_f32x16(place + 128) * correction
            t3 = load_f32x16(place + 192) * correction
            for j in range(count):
                w = splat_f32(load_f32(weights + 4 * j))
                t0 = fused_multiply_add(w, load(v), t0)
                t1 = fused_multiply_add(w, load(v + 16 * size), t1)
                t2 = fused_multiply_add(w, load(v + 32 * size), t2)
                t3 = fused_multiply_add(w, load(v + 48 * size), t3)
                v += size * head_stride
            store(place, t0)
            store(place + 64, t1)
            store(place + 128, t2)
            store(place + 192, t3)
        for i in range(whole, head_stride, 16):
            place, v = total + 4 * i, values + size * i
            t0 = load_f32x16(place) * correction
            for j in range(count):
                t0 = fused_multiply_add(splat_f32(load_f32(weights + 4 * j)), load(v), t0)
                v += size * head_stride
            store(place, t0)

    @kernel
    def attend(step: int, layer: int, token: int, head: int, work: int) -> None:
        """Write the attention of one query head of a token over all positions up to its own."""
        s = Step(step)
        position = load_i64(s.positions + 8 * token)
        table = load_i64(s.tables + 8 * token)
        head_bytes = size * BLOCK_TOKENS * s.head_stride
        offset = layer * s.layer_bytes + head // (s.n_heads // s.n_kv_heads) * head_bytes
        q, total, weights = work, work + 4 * s.head_stride, work + 8 * s.head_stride
        source = s.q + token * s.q_stride + 4 * head * s.head_dim
        scale = f32(1.0) / square_root(f32(s.head_dim))
        rotate(source, s.rope + 8 * position * s.head_stride, q, s.head_stride, scale)
        for i in range(0, 4 * s.head_stride, 64):
            store(total + i, splat_f32(0.0))
        greatest, denominator = LOWEST, f32(0.0)
        for b in range(position // BLOCK_TOKENS + 1):
            keys = s.cache + load_i64(table + 8 * b) * s.block_bytes + offset
            count = min(position + 1 - b * BLOCK_TOKENS, BLOCK_TOKENS)
            low, high = scores_of_tiles(q, keys, s.head_dim, 16 * size * s.head_stride)
            low, high = keep_first(low, count, LOWEST), keep_first(high, count - 16, LOWEST)
            peak = max(greatest, max_f32(maximum(low, high)))
            correction = first_lane(exponential(splat_f32(greatest - peak)))
            greatest = peak
            low, high = exponential(low - peak), exponential(high - peak)
            denominator = denominator * correction + sum_f32(low + high)
            store(weights, low)
            store(weights + 64, high)
            values = keys + s.n_kv_heads * head_bytes
            add_values(total, values, weights, count, correction, s.head_stride)
        a = Activations(s.attended)
        out = a.x + token * a.x_stride + 4 * head * s.head_dim
        for i in range(s.head_dim):
            store(out + 4 * i, load_f32(total + 4 * i) / denominator)

    return store_key_value, attend


@inline
def load_half(p: int) -> Lanes:
    """Read 16 float16 as float32."""
    return half_to_float(load_i16x16(p))


@inline
def keep_half(p: int, value: Lanes) -> None:
    """Store 16 float32 as float16."""
    store(p, float_to_half(value))


@inline
def copy_half(source: int, target: int) -> None:
    """Move one float16."""
    store(target, i16(load_u16(source)))


@inline
def load_single(p: int) -> Lanes:
    """Read 16 float32."""
    return load_f32x16(p)


@inline
def keep_single(p: int, value: Lanes) -> None:
    """Store 16 float32."""
    store(p, value)


@inline
def copy_single(source: int, target: int) -> None:
    """Move one float32."""
    store(target, load_f32(source))


store_f16, attend_f16 = cache_kernels(2, load_half, keep_half, copy_half)
store_f32, attend_f32 = cache_kernels(4, load_single, keep_single, copy_single)
