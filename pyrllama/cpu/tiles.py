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

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.cpu.blocks import blocks_of
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.instructions import (
    fused_multiply_add,
    half_to_float,
    prefetch,
    tile_configure,
    tile_dot,
    tile_load,
    tile_release,
    tile_store,
    tile_zero,
)
from pyrllama.cpu.kernel import KernelFunction, inline, kernel, view
from pyrllama.cpu.levels import PAIRS, over_pairs
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, TILE_BLOCKS, TILE_ROWS
from pyrllama.cpu.simd import (
    as_f32,
    as_i32,
    load_f32x16,
    load_i16x16,
    splat_f32,
    splat_i32,
    store,
    widen_u16,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.formats import Format
    from pyrllama.cpu.vectors import Lanes

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


def tile_product(
    packed_bytes: int, blocks: int, unpack: Callable[[int, int, int], None]
) -> KernelFunction:
    """Return the product kernel of a type whose packed blocks have ``blocks`` times 32 columns.

    ``unpack(p, b, tile)`` makes a tile of block ``b`` of the packed one at ``p``.
    """

    @inline
    def make_tiles(p: int, panel: int, n_blocks: int) -> None:
        """Unpack blocks of a group to every other tile of a panel."""
        for block in range(0, n_blocks, blocks):
            for b in range(blocks):
                unpack(p, b, panel + 2 * TILE_BYTES * (block + b))
            p += packed_bytes

    @inline
    def make_panel(p: int, size: int, panel: int, n_blocks: int, both: bool) -> None:
        """Unpack blocks of two groups; a group that is not there counts as zeros."""
        make_tiles(p, panel, n_blocks)
        if both:
            make_tiles(p + size, panel + TILE_BYTES, n_blocks)
        else:
            for b in range(n_blocks):
                second = panel + 2 * TILE_BYTES * b + TILE_BYTES
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
                p = m.data + g * m.bytes_a_group + block // blocks * packed_bytes
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
def scaled_byte(w: Lanes, up: int, down: int, scale: Lanes, offset: Lanes) -> Lanes:
    """Return scaled bytes from bits that a shift brings to a mantissa's top.

    1 + n / 256 is a float32 whose highest mantissa bits are n; times 256 s, less 256 s in the
    offset, it is s n.
    """
    bits = ((w << up) >> down) & 0x7F8000 | 0x3F800000
    return fused_multiply_add(as_f32(bits), scale, offset)


@inline
def store_columns(w: Lanes, scale: Lanes, offset: Lanes, out: int) -> None:
    """Store four columns, given as bytes, as two rows of a tile."""
    w = as_i32(w)
    even, odd = scaled_byte(w, 15, 0, scale, offset), scaled_byte(w, 7, 0, scale, offset)
    store(out, pair(even, odd))
    even, odd = scaled_byte(w, 0, 1, scale, offset), scaled_byte(w, 0, 9, scale, offset)
    store(out + 64, pair(even, odd))


def unpack_quantised(format_: Format) -> Callable[[int, int, int], None]:
    """Return what makes a tile of a block of a quantised type."""
    blocks = blocks_of(format_)
    operands, run_scale, addend = blocks.operands, blocks.scale, blocks.addend
    runs, head_bytes, level_bytes = format_.runs, format_.head_bytes, format_.level_bytes
    signed = format_.is_signed
    flip = i32(-2139062144) if signed else i32(0)  # 0x80 in every byte adds 128
    offset_of_bytes = float32(-256 - (128 if signed else format_.offset))
    pairs = PAIRS // runs

    @inline
    def put(
        state: tuple[Lanes, Lanes], first: Lanes, second: Lanes, tile: int, i: int
    ) -> tuple[Lanes, Lanes]:
        """Store a pair's columns; the state is the run's scale and offset."""
        scale, offset = state
        store_columns(as_i32(first) ^ flip, scale, offset, tile + 256 * i)
        store_columns(as_i32(second) ^ flip, scale, offset, tile + 256 * i + 128)
        return state

    put_0, put_1 = (over_pairs(operands[i : i + pairs], i, put) for i in (0, PAIRS - pairs))

    @inline
    def scale_of(p: int, i: int) -> tuple[Lanes, Lanes]:
        """Return a run's scale of bytes as ``scaled_byte`` takes it, and the offset."""
        scale = run_scale(p, i)
        offset = fused_multiply_add(scale, splat_f32(offset_of_bytes), addend(p, i))
        return scale * float32(256.0), offset

    @inline
    def unpack(p: int, b: int, tile: int) -> None:
        q = p + head_bytes + b * level_bytes
        put_0(scale_of(p, runs * b), q, tile)
        if runs == 2:
            put_1(scale_of(p, runs * b + 1), q, tile)

    return unpack


@inline
def unpack_f16(p: int, _b: int, tile: int) -> None:
    """Round 32 columns of float16."""
    for j in range(0, 1024, 64):
        even, odd = half_to_float(load_i16x16(p + j)), half_to_float(load_i16x16(p + j + 32))
        store(tile + j, pair(even, odd))


@inline
def unpack_bf16(p: int, _b: int, tile: int) -> None:
    """Put 32 columns of bfloat16 side by side in pairs."""
    for j in range(0, 1024, 64):
        even, odd = widen_u16(load_i16x16(p + j)), widen_u16(load_i16x16(p + j + 32))
        store(tile + j, even | (odd << 16))


@inline
def unpack_f32(p: int, _b: int, tile: int) -> None:
    """Round 32 columns of float32."""
    for j in range(0, 1024, 64):
        store(tile + j, pair(load_f32x16(p + 2 * j), load_f32x16(p + 2 * j + 64)))


_FLOATS = {"f16": (1024, unpack_f16), "bf16": (1024, unpack_bf16), "f32": (2048, unpack_f32)}


@cache
def __getattr__(name: str) -> KernelFunction:
    """Make the kernel of a type when it is asked for."""
    if name in _FLOATS:
        block_bytes, unpack = _FLOATS[name]
        return tile_product(block_bytes, 1, unpack)
    format_ = format_named(name)
    return tile_product(format_.bytes, format_.blocks, unpack_quantised(format_))
