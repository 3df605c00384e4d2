"""Products of packed weight matrices with many rows of activations on matrix tiles (AMX).

A tile register holds 16 rows of 64 bytes.  ``tdpbf16ps`` adds to a tile of 16 x 16 float32 the
product of a tile of activations (16 rows, 32 columns of bfloat16) and one of weights (the 32
columns of 16 rows, two columns side by side).  Four such sums, two tiles of activations by two
of weights, need one load for each product, the least that eight registers allow.

The weights of two groups are unpacked to bfloat16, a part of the columns at a time, into a
panel that stays in the first cache, while the activations come from the second: with both
from the second, loads would take longer than the products.  The sums wait in ``out`` between
two parts of the columns.

bfloat16 keeps 8 bits of every factor, so these products differ from those of other kernels by
about 0.3 % of a result's magnitude; they serve prompts, and rows beyond ``n_rows`` up to whole
32 are written too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.cpu.kernel import KernelFunction, inline, kernel, view
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, TILE_BLOCKS, TILE_ROWS
from pyrllama.cpu.simd import (
    Lanes,
    as_f32,
    as_i32,
    fused_multiply_add,
    half_to_float,
    load_f32x16,
    load_i16x16,
    load_i32x16,
    prefetch,
    splat_i32,
    store,
    tile_configure,
    tile_dot,
    tile_load,
    tile_release,
    tile_store,
    tile_zero,
    widen_u16,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

float32, i32, i64 = np.float32, np.int32, np.int64
TILE_BYTES = 1024
CONFIGURATION_BYTES = 64
PREFETCH = 3 * TILE_BYTES
"""How far ahead activations are asked for: three blocks of columns."""

zero_0, zero_1, zero_2, zero_3 = tile_zero
load_0, load_1, load_2, load_3, load_a0, load_a1, load_b0, load_b1 = tile_load
store_0, store_1, store_2, store_3 = tile_store
dot_00, dot_01, dot_10, dot_11 = tile_dot


@inline
def configure(place: int) -> None:
    """Make all eight tiles 16 rows of 64 bytes; ``place`` is memory for the description."""
    for i in range(0, CONFIGURATION_BYTES, 8):
        store(place + i, i64(0))
    store(place, i32(1))  # the palette
    store(place + 16, i64(0x0040_0040_0040_0040))  # bytes of a row, 16 bits a tile
    store(place + 24, i64(0x0040_0040_0040_0040))
    store(place + 48, i64(0x1010_1010_1010_1010))  # rows, 8 bits a tile
    tile_configure(place)


@inline
def begin_sums(out: int, stride: int, fresh: bool) -> None:
    """Clear the four tiles of sums, or load what was stored of them."""
    if fresh:
        zero_0()
        zero_1()
        zero_2()
        zero_3()
    else:
        load_0(out, stride)
        load_1(out + 64, stride)
        load_2(out + 16 * stride, stride)
        load_3(out + 16 * stride + 64, stride)


@inline
def end_sums(out: int, stride: int) -> None:
    """Store the four tiles of sums."""
    store_0(out, stride)
    store_1(out + 64, stride)
    store_2(out + 16 * stride, stride)
    store_3(out + 16 * stride + 64, stride)


@inline
def prefetch_quarter(p: int, quarter: int) -> None:
    """Ask for a quarter of a tile of activations."""
    for line in range(256 * quarter, 256 * quarter + 256, 64):
        prefetch(p + line)


@inline
def add_products(x: int, rows_bytes: int, panel: int, n_blocks: int) -> None:
    """Add the products of 32 rows of activations and 32 of weights over blocks of columns.

    Loads and requests for the tiles of activations some blocks ahead stand between the
    products, which take longer than either.
    """
    for b in range(n_blocks):
        a, w = x + TILE_BYTES * b, panel + 2 * TILE_BYTES * b
        ahead, below = a + PREFETCH, a + rows_bytes + PREFETCH
        load_a0(a, 64)
        prefetch_quarter(ahead, 0)
        prefetch_quarter(below, 0)
        load_b0(w, 64)
        dot_00()
        prefetch_quarter(ahead, 1)
        prefetch_quarter(below, 1)
        load_b1(w + TILE_BYTES, 64)
        dot_01()
        prefetch_quarter(ahead, 2)
        prefetch_quarter(below, 2)
        load_a1(a + rows_bytes, 64)
        dot_10()
        prefetch_quarter(ahead, 3)
        prefetch_quarter(below, 3)
        dot_11()


def tile_product(block_bytes: int, unpack: Callable[[int, int], None]) -> KernelFunction:
    """Return the product kernel of a type; ``unpack`` makes a tile of a block of 16 rows."""

    @inline
    def make_panel(p: int, size: int, panel: int, n_blocks: int, both: bool) -> None:
        """Unpack blocks of two groups; a group that is not there counts as zeros."""
        for b in range(n_blocks):
            unpack(p + b * block_bytes, panel + 2 * TILE_BYTES * b)
            second = panel + 2 * TILE_BYTES * b + TILE_BYTES
            if both:
                unpack(p + size + b * block_bytes, second)
            else:
                for i in range(0, TILE_BYTES, 64):
                    store(second + i, splat_i32(0))

    @kernel
    def product(
        matrix: int, activations: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last``; row ``i`` gives ``out + i * stride``.

        The last of an odd number of groups writes zeros, or nothing new, where one more would.
        """
        m, a = Matrix(matrix), Activations(activations)
        configure(panel)
        panel += CONFIGURATION_BYTES
        n_blocks, rows_bytes = m.n_cols // 32, 32 * m.n_cols
        for block in range(0, n_blocks, TILE_BLOCKS):
            n = min(TILE_BLOCKS, n_blocks - block)
            fresh = block == 0 and accumulate == 0
            for g in range(first, last, 2):
                p = m.data + g * m.bytes_a_group + block * block_bytes
                make_panel(p, m.bytes_a_group, panel, n, g + 1 < last)
                x = a.tiles + TILE_BYTES * block
                for row in range(0, n_rows, TILE_ROWS):
                    place = out + row * stride + 64 * g
                    begin_sums(place, stride, fresh)
                    add_products(x + row // 16 * rows_bytes, rows_bytes, panel, n)
                    end_sums(place, stride)
        tile_release()

    return product


# --- blocks to tiles --------------------------------------------------------------------------


@inline
def pair(even: Lanes, odd: Lanes) -> Lanes:
    """Round two columns to bfloat16, halves away from zero, and put them side by side."""
    low = (as_i32(even) + 0x8000) >> 16
    return low | ((as_i32(odd) + 0x8000) & i32(-65536))


@inline
def nibble(w: Lanes, up: int, down: int, scale: Lanes, offset: Lanes) -> Lanes:
    """Return scaled nibbles less 8, from bits that a shift brings to a mantissa's top.

    1 + n / 16 is a float32 whose highest mantissa bits are n; times 16 s, less 24 s, it is
    s (n - 8), and exactly so.
    """
    bits = ((w << up) >> down) & 0x780000 | 0x3F800000
    return fused_multiply_add(as_f32(bits), scale, offset)


@inline
def unpack_q4_0(p: int, tile: int) -> None:
    """Unpack a block of Q4_0."""
    scale = half_to_float(load_i16x16(p)) * float32(16.0)
    offset = scale * float32(-1.5)
    for j in range(4):
        w = load_i32x16(p + 32 + 64 * j)
        low, high = tile + 128 * j, tile + 128 * j + 512
        store(low, pair(nibble(w, 19, 0, scale, offset), nibble(w, 11, 0, scale, offset)))
        store(low + 64, pair(nibble(w, 3, 0, scale, offset), nibble(w, 0, 5, scale, offset)))
        store(high, pair(nibble(w, 15, 0, scale, offset), nibble(w, 7, 0, scale, offset)))
        store(high + 64, pair(nibble(w, 0, 1, scale, offset), nibble(w, 0, 9, scale, offset)))


@inline
def signed_byte(w: Lanes, up: int, down: int, scale: Lanes, offset: Lanes) -> Lanes:
    """Return scaled bytes, given with 128 added: 256 s (1 + n / 256) - 384 s is s (n - 128)."""
    bits = ((w << up) >> down) & 0x7F8000 | 0x3F800000
    return fused_multiply_add(as_f32(bits), scale, offset)


@inline
def unpack_q8_0(p: int, tile: int) -> None:
    """Unpack a block of Q8_0."""
    scale = half_to_float(load_i16x16(p)) * float32(256.0)
    offset = scale * float32(-1.5)
    for j in range(8):
        w = load_i32x16(p + 32 + 64 * j) ^ i32(-2139062144)  # 0x80 in every byte
        out = tile + 128 * j
        even, odd = signed_byte(w, 15, 0, scale, offset), signed_byte(w, 7, 0, scale, offset)
        store(out, pair(even, odd))
        even, odd = signed_byte(w, 0, 1, scale, offset), signed_byte(w, 0, 9, scale, offset)
        store(out + 64, pair(even, odd))


@inline
def unpack_f16(p: int, tile: int) -> None:
    """Round 32 columns of float16."""
    for j in range(0, 1024, 64):
        even, odd = half_to_float(load_i16x16(p + j)), half_to_float(load_i16x16(p + j + 32))
        store(tile + j, pair(even, odd))


@inline
def unpack_bf16(p: int, tile: int) -> None:
    """Put 32 columns of bfloat16 side by side in pairs."""
    for j in range(0, 1024, 64):
        even, odd = widen_u16(load_i16x16(p + j)), widen_u16(load_i16x16(p + j + 32))
        store(tile + j, even | (odd << 16))


@inline
def unpack_f32(p: int, tile: int) -> None:
    """Round 32 columns of float32."""
    for j in range(0, 1024, 64):
        store(tile + j, pair(load_f32x16(p + 2 * j), load_f32x16(p + 2 * j + 64)))


q4_0 = tile_product(288, unpack_q4_0)
q8_0 = tile_product(544, unpack_q8_0)
f16 = tile_product(1024, unpack_f16)
bf16 = tile_product(1024, unpack_bf16)
f32 = tile_product(2048, unpack_f32)
