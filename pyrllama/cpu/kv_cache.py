"""The layout of the KV cache: storing keys and values, and unpacking a block of them.

The cache is blocks of 32 tokens.  In a block every layer has its keys and then its values,
head by head.  A head's keys are two tiles of ``(head_stride, 16 positions)``, so that a vector
is one number of 16 keys and the scores of 16 positions leave a product at once; its values are
``(32 positions, head_stride)``.  The stride is the head's size padded to whole vectors.

In Q8_0 the stride is padded to 32, and a block of 32 numbers of all 32 positions lies together
in 1,088 bytes: 32 float16 scales, then the int8 in the order above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.cpu.activations import factor_of, greatest_magnitude, quantise_values, scale_of
from pyrllama.cpu.instructions import float_to_half, fused_multiply_add, half_to_float, prefetch
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.norm import normalise_head
from pyrllama.cpu.records import LAYER, STEP
from pyrllama.cpu.simd import (
    first_lane,
    keep_first,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i16x16,
    load_i64,
    load_u8,
    load_u16,
    splat_f32,
    store,
    swap_pairs,
    to_f32,
    widen_i8,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.vectors import Lanes

Step = view(STEP)
Layer = view(LAYER)

LAYER_BYTES = LAYER.n_bytes

f32, i8, i16 = np.float32, np.int8, np.int16
ONE: Any = f32(1.0)
Q8_BLOCK_BYTES = 34 * BLOCK_TOKENS
"""Bytes of 32 numbers of 32 positions in Q8_0."""
Q8_SCALES_BYTES = 2 * BLOCK_TOKENS


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


@inline
def layer_of(s: View, index: int) -> View:
    """Return the record of a layer."""
    return Layer(s.layers + index * LAYER_BYTES)


@inline
def rotate_head(s: View, x: int, weight: int, position: int, out: int, scale: float) -> None:
    """Normalise a head, where it has weights for that, rotate it, and multiply by ``scale``."""
    angles = s.rope + 8 * position * s.head_stride
    if weight:
        normalise_head(x, weight, out, s.head_dim, s.head_stride, s.norm_eps)
        x = out
    rotate(x, angles, out, s.head_stride, scale)


@inline
def rotated_key(s: View, layer: int, token: int, head: int, work: int) -> None:
    """Write a token's rotated key of one head to ``work``, zeros behind it."""
    key = s.k + token * s.kv_stride + 4 * head * s.head_dim
    position = load_i64(s.positions + 8 * token)
    rotate_head(s, key, layer_of(s, layer).k_norm, position, work, ONE)


@inline
def block_of(s: View, layer: int, token: int) -> int:
    """Return where the layer's part of the block is that holds a token's position."""
    position = load_i64(s.positions + 8 * token)
    block = load_i64(load_i64(s.tables + 8 * token) + 8 * (position // BLOCK_TOKENS))
    place: int = s.cache + block * s.block_bytes + layer * s.layer_bytes
    return place


# --- floats -----------------------------------------------------------------------------------


def float_store(
    size: int, keep: Callable[[int, Lanes], None], copy: Callable[[int, int], None]
) -> KernelFunction:
    """Return the kernel that fills a cache whose numbers have ``size`` bytes.

    ``keep`` stores 16 float32 in the cache's type, and ``copy`` moves one such number.
    """

    @kernel
    def store_key_value(step: int, layer: int, token: int, head: int, work: int) -> None:
        """Rotate a token's key of one KV head and put key and value into the cache."""
        s = Step(step)
        slot = load_i64(s.positions + 8 * token) % BLOCK_TOKENS
        head_bytes = size * BLOCK_TOKENS * s.head_stride
        keys = block_of(s, layer, token) + head * head_bytes
        values = keys + s.n_kv_heads * head_bytes + size * slot * s.head_stride
        value = s.v + token * s.kv_stride + 4 * head * s.head_dim
        rotated_key(s, layer, token, head, work)
        for i in range(0, s.head_stride, 16):
            keep(work + size * i, load_f32x16(work + 4 * i))
            keep(values + size * i, load_f32x16(value + 4 * i))
        lane = keys + slot // 16 * 16 * size * s.head_stride + size * (slot % 16)
        for i in range(s.head_dim):
            copy(work + size * i, lane + 16 * size * i)

    return store_key_value


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
def unpack_half(source: int, target: int, stride: int, following: int) -> int:
    """Convert a head's keys or values of a block, asking for as much at ``following``."""
    for i in range(0, BLOCK_TOKENS * stride, 32):
        prefetch(following + 2 * i)
        store(target + 4 * i, load_half(source + 2 * i))
        store(target + 4 * i + 64, load_half(source + 2 * i + 32))
    return target


@inline
def keep_single(p: int, value: Lanes) -> None:
    """Store 16 float32."""
    store(p, value)


@inline
def copy_single(source: int, target: int) -> None:
    """Move one float32."""
    store(target, load_f32(source))


@inline
def as_it_is(source: int, _target: int, _stride: int, _following: int) -> int:
    """Convert nothing: float32 is read in its place."""
    return source


store_f16 = float_store(2, keep_half, copy_half)
store_f32 = float_store(4, keep_single, copy_single)


# --- Q8_0 -------------------------------------------------------------------------------------


@inline
def quantise_into(x: int, quants: int, scale: int) -> None:
    """Quantise 32 float32 to int8 and a float16 scale."""
    greatest = greatest_magnitude(x, 128)
    quantise_values(x, quants, factor_of(greatest))
    store(scale, first_lane(float_to_half(splat_f32(scale_of(greatest)))))


@kernel
def store_q8_0(step: int, layer: int, token: int, head: int, work: int) -> None:
    """Rotate a token's key of one KV head and put key and value into the cache."""
    s = Step(step)
    slot = load_i64(s.positions + 8 * token) % BLOCK_TOKENS
    n_blocks = s.head_stride // 32
    keys = block_of(s, layer, token) + head * n_blocks * Q8_BLOCK_BYTES
    values = keys + s.n_kv_heads * n_blocks * Q8_BLOCK_BYTES
    x, quants = work, work + 4 * s.head_stride
    rotated_key(s, layer, token, head, x)
    for b in range(n_blocks):
        place = keys + b * Q8_BLOCK_BYTES
        quantise_into(x + 128 * b, quants, place + 2 * slot)
        lane = place + Q8_SCALES_BYTES + slot // 16 * 512 + slot % 16
        for i in range(32):
            store(lane + 16 * i, i8(load_u8(quants + i)))
    value = s.v + token * s.kv_stride + 4 * head * s.head_dim
    for i in range(0, s.head_stride, 16):
        # What lies behind the head is the next head's and must not raise the scale.
        store(x + 4 * i, keep_first(load_f32x16(value + 4 * i), s.head_dim - i, f32(0.0)))
    for b in range(n_blocks):
        place = values + b * Q8_BLOCK_BYTES
        numbers = place + Q8_SCALES_BYTES + 32 * slot
        quantise_into(x + 128 * b, numbers, place + 2 * slot)


@inline
def load_quants(p: int) -> Lanes:
    """Read 16 int8 as float32."""
    return to_f32(widen_i8(load_i8x16(p)))


@inline
def unpack_q8_0_keys(source: int, target: int, stride: int, following: int) -> int:
    """Convert a head's keys of a block to float32 tiles, asking for as much at ``following``."""
    for b in range(stride // 32):
        p, out = source + b * Q8_BLOCK_BYTES, target + b * 32 * 64
        wanted, tile = following + b * Q8_BLOCK_BYTES, 64 * stride
        low, high = load_half(p), load_half(p + 32)
        prefetch(wanted)
        for i in range(0, 512, 32):
            prefetch(wanted + Q8_SCALES_BYTES + 2 * i)
            for j in range(i, i + 32, 16):
                numbers = p + Q8_SCALES_BYTES + j
                store(out + 4 * j, load_quants(numbers) * low)
                store(out + tile + 4 * j, load_quants(numbers + 512) * high)
    return target


@inline
def unpack_q8_0_values(source: int, target: int, stride: int, following: int) -> int:
    """Convert a head's values of a block to float32, asking for as much at ``following``.

    The 128 bytes behind the target are scratch.
    """
    scales = target + 4 * BLOCK_TOKENS * stride
    for b in range(stride // 32):
        p, out, wanted = (
            source + b * Q8_BLOCK_BYTES,
            target + 128 * b,
            following + b * Q8_BLOCK_BYTES,
        )
        store(scales, load_half(p))
        store(scales + 64, load_half(p + 32))
        prefetch(wanted)
        for slot in range(BLOCK_TOKENS):
            numbers, scale = p + Q8_SCALES_BYTES + 32 * slot, load_f32(scales + 4 * slot)
            prefetch(wanted + Q8_SCALES_BYTES + 32 * slot)
            store(out, load_quants(numbers) * scale)
            store(out + 64, load_quants(numbers + 16) * scale)
            out += 4 * stride
    return target
