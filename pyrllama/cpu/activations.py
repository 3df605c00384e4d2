"""Activations in the forms that products read.

A row is made once and read by every group of a matrix, so each product has it as it wants it:

``FLOATS``  float32; several rows are interleaved six by six, the six values of a column
            side by side, so that one instruction broadcasts each from a fixed distance.
``BYTES``   int8 with a scale for 32 columns, and their sums, which take off the offsets of
            unsigned weights and add what a block of weights has beside its scale; several rows
            are interleaved six by six, four columns of each at a time.
``TILES``   bfloat16 in tiles of 16 rows and 32 columns, for CPUs with matrix tiles.

One row alone stays as it is.  Rows that six or sixteen have too many hold what was there before:
the products of such rows are stored and never read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrllama.cpu.kernel import inline, kernel, part, view
from pyrllama.cpu.norm import absolute, round_to_even
from pyrllama.cpu.records import (
    ACTIVATIONS,
    BLOCK_WORDS,
    BYTES,
    FLOATS,
    ROWS_AT_ONCE,
    SUMS,
    TILES,
)
from pyrllama.cpu.simd import (
    Lanes,
    as_i32,
    load_f32x16,
    load_i32,
    max_f32,
    maximum,
    narrow_to_i8,
    narrow_to_i16,
    store,
    sum_i32,
    truncate_to_i32,
)

Activations = view(ACTIVATIONS)

f32, i32 = np.float32, np.int32
ZERO = f32(0.0)
SMALLEST_BLOCK_MAXIMUM = f32(2.0**-100)
"""A block of activations below it counts as zeros: 127 over it must not overflow."""

ROWS = ROWS_AT_ONCE
COLUMN_BYTES = 4 * ROWS
"""Bytes of a column of six rows as floats."""
SCALES, SUMS_OF_ROWS, SCALED_SUMS = (word * COLUMN_BYTES for word in (8, 9, 9 + SUMS))
BLOCK_BYTES = BLOCK_WORDS * COLUMN_BYTES
"""A block of six rows as bytes: eight words of each row, then scales and sums of all rows."""


@inline
def quantise_block(x: int, q: int, scale: int, sums: int, scaled_sums: int) -> None:
    """Quantise 32 float32 to int8 with one scale, the greatest magnitude over 127.

    ``sums`` and ``scaled_sums`` receive the block's sums, see ``ACTIVATIONS``.
    """
    low, high = load_f32x16(x), load_f32x16(x + 64)
    greatest = max_f32(maximum(absolute(low), absolute(high)))
    # Written so that a NaN, which compares with nothing, ends up in the scale and is seen.
    step = ZERO if greatest < SMALLEST_BLOCK_MAXIMUM else greatest / f32(127.0)
    factor = f32(127.0) / greatest if greatest >= SMALLEST_BLOCK_MAXIMUM else ZERO
    low_int = truncate_to_i32(round_to_even(low * factor))
    high_int = truncate_to_i32(round_to_even(high * factor))
    store(q, narrow_to_i8(low_int))
    store(q + 16, narrow_to_i8(high_int))
    store(scale, step)
    first, last = sum_i32(low_int), sum_i32(high_int)
    store_sum(i32(first + last), step, sums, scaled_sums)
    store_sum(first, step, sums + 4, scaled_sums + 4)
    store_sum(last, step, sums + 8, scaled_sums + 8)


@inline
def store_sum(total: Any, scale: Any, place: int, scaled: int) -> None:
    """Store a sum as it is and times the block's scale."""
    store(place, total)
    store(scaled, f32(total) * scale)


@part
def quantise_blocks(activations: int, source: int, row: int, first: int, last: int) -> None:
    """Quantise blocks ``first`` to ``last`` (excluded) of float row ``source`` into ``row``."""
    a = Activations(activations)
    x, q, starts = a.x + source * a.x_stride, a.q + row * a.q_stride, row * a.block_stride
    for b in range(first, last):
        i = starts + 4 * b
        quantise_block(
            x + 128 * b, q + 32 * b, a.scales + i, a.sums + SUMS * i, a.scaled_sums + SUMS * i
        )


@part
def interleave_bytes(activations: int, row: int, first: int, last: int) -> None:
    """Put blocks ``first`` to ``last`` of a quantised row into its place among six."""
    a = Activations(activations)
    starts = row * a.block_stride
    out = a.bytes + row // ROWS * a.bytes_stride + row % ROWS * 4
    for b in range(first, last):
        q, i, block = a.q + row * a.q_stride + 32 * b, starts + 4 * b, out + b * BLOCK_BYTES
        for word in range(8):
            store(block + word * COLUMN_BYTES, load_i32(q + 4 * word))
        store(block + SCALES, load_i32(a.scales + i))
        for part_ in range(SUMS):
            place, source = COLUMN_BYTES * part_, SUMS * i + 4 * part_
            store(block + SUMS_OF_ROWS + place, load_i32(a.sums + source))
            store(block + SCALED_SUMS + place, load_i32(a.scaled_sums + source))


@part
def interleave_floats(activations: int, row: int, first: int, last: int) -> None:
    """Put columns of blocks ``first`` to ``last`` of a row into its place among six."""
    a = Activations(activations)
    x = a.x + row * a.x_stride
    out = a.floats + row // ROWS * a.floats_stride + row % ROWS * 4
    for column in range(32 * first, 32 * last):
        store(out + column * COLUMN_BYTES, load_i32(x + 4 * column))


@inline
def to_bfloat16(x: Lanes) -> Lanes:
    """Round finite float32 to bfloat16, to nearest even; infinities and usual NaNs stay."""
    bits = as_i32(x)
    return narrow_to_i16((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16)


@part
def tile_floats(activations: int, row: int, first: int, last: int) -> None:
    """Round blocks ``first`` to ``last`` of a row to bfloat16 into its tiles of 1,024 bytes."""
    a = Activations(activations)
    x = a.x + row * a.x_stride
    out = a.tiles + row // 16 * (32 * a.n_cols) + row % 16 * 64
    for b in range(first, last):
        store(out + 1024 * b, to_bfloat16(load_f32x16(x + 128 * b)))
        store(out + 1024 * b + 32, to_bfloat16(load_f32x16(x + 128 * b + 64)))


@part
def prepare(activations: int, row: int, forms: int, first: int, last: int) -> None:
    """Bring blocks ``first`` to ``last`` of one of several rows into the forms asked for."""
    if forms & TILES:
        tile_floats(activations, row, first, last)
    if forms & FLOATS:
        interleave_floats(activations, row, first, last)
    if forms & BYTES:
        quantise_blocks(activations, row, row, first, last)
        interleave_bytes(activations, row, first, last)


@kernel
def quantise_kernel(activations: int, source: int, row: int, first: int, last: int) -> None:
    """Entry for tests of ``quantise_blocks``."""
    quantise_blocks(activations, source, row, first, last)


@kernel
def prepare_kernel(activations: int, row: int, forms: int, first: int, last: int) -> None:
    """Entry for tests of ``prepare``."""
    prepare(activations, row, forms, first, last)
