"""Activations in the forms that products read.

A row is made once and read by every group of a matrix, so each product has it as it wants it:

``FLOATS``  float32; several rows are interleaved six by six, the six values of a column
            side by side, so that one instruction broadcasts each from a fixed distance.
``BYTES``   int8 with a scale for 32 columns, and their sums, which take off the offsets of
            unsigned weights and add what a block of weights has beside its scale; several rows
            are interleaved six by six, four columns of each at a time.
``WIDE_BYTES``  the same in a record of its own, ``wide``, with one scale for 256 columns, so that
            the whole numbers of a super-block's products can be summed as such.
``TILES``   bfloat16 in tiles of 16 rows and 32 columns, for CPUs with matrix tiles.

One row alone stays as it is.  Rows that six or sixteen have too many hold what was there before:
the products of such rows are stored and never read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.cpu.instructions import has_assembly
from pyrllama.cpu.kernel import View, inline, kernel, part, view
from pyrllama.cpu.norm import round_to_even
from pyrllama.cpu.records import (
    ACTIVATIONS,
    BYTES,
    FLOATS,
    ROWS_AT_ONCE,
    START_OFFSET,
    SUMS,
    TILES,
    WIDE_BYTES,
)
from pyrllama.cpu.simd import (
    absolute,
    as_i32,
    load_f32x16,
    load_i8x16,
    load_i32,
    magnitudes,
    max_f32,
    maximum,
    narrow_to_i8,
    narrow_to_i16,
    pair_sums,
    store,
    sum_i32,
    truncate_to_i32,
    widen_i8,
)
from pyrllama.cpu.six_layout import (
    BLOCK_BYTES,
    COLUMN_BYTES,
    GREATEST,
    SCALED_SUMS,
    SCALES,
    SUMS_OF_BLOCKS,
    SUMS_OF_HALVES,
    SUMS_OF_ROWS,
)

if TYPE_CHECKING:
    from pyrllama.cpu.vectors import Lanes

Activations = view(ACTIVATIONS)

f32, i32 = np.float32, np.int32
ZERO = f32(0.0)
HIGH = i32(-65536)
"""The upper 16 bits."""
SMALLEST_BLOCK_MAXIMUM = f32(2.0**-100)
"""A block of activations below it counts as zeros: 127 over it must not overflow."""

ROWS = ROWS_AT_ONCE


@inline
def greatest_magnitude(x: int, n_bytes: int) -> Any:
    """Return the greatest magnitude of float32, whole blocks of 32; NaNs may count or not."""
    greatest = absolute(load_f32x16(x))
    for i in range(64, n_bytes, 64):
        greatest = maximum(greatest, absolute(load_f32x16(x + i)))
    return max_f32(greatest)


@inline
def scale_of(greatest: Any) -> Any:
    """Return the scale that takes the greatest magnitude to 127.

    Written so that a NaN, which compares with nothing, ends up in the scale and is seen.
    """
    return ZERO if greatest < SMALLEST_BLOCK_MAXIMUM else greatest / f32(127.0)


@inline
def factor_of(greatest: Any) -> Any:
    """Return the inverse of the scale."""
    return f32(127.0) / greatest if greatest >= SMALLEST_BLOCK_MAXIMUM else ZERO


@inline
def quantise_values(x: int, q: int, factor: float) -> tuple[Lanes, Lanes]:
    """Store 32 float32, times a factor, as int8; return them as two ``i32x16``."""
    low = truncate_to_i32(round_to_even(load_f32x16(x) * factor))
    high = truncate_to_i32(round_to_even(load_f32x16(x + 64) * factor))
    store(q, narrow_to_i8(low))
    store(q + 16, narrow_to_i8(high))
    return low, high


@inline
def quantise_block(a: View, x: int, row: int, b: int, step: float, factor: float) -> None:
    """Quantise 32 float32 at ``x`` to int8 as block ``b`` of a row, with its sums."""
    low, high = quantise_values(x, a.q + row * a.q_stride + 32 * b, factor)
    i = row * a.block_stride + 4 * b
    store(a.scales + i, step)
    sums, scaled_sums = a.sums + SUMS * i, a.scaled_sums + SUMS * i
    first, last = pair_sums(low), pair_sums(high)
    store_sums(add_pairs(first, last), step, sums, scaled_sums)
    store_sums(first, step, sums + 4, scaled_sums + 4)
    store_sums(last, step, sums + 8, scaled_sums + 8)


@inline
def add_pairs(one: int, other: int) -> Any:
    """Add two pairs of 16 bits; what the lower halves carry stays out of the upper ones."""
    upper = (one & HIGH) + (other & HIGH)
    return i32(upper) | (i32(one + other) & i32(0xFFFF))


@inline
def store_sums(pair: Any, scale: float, place: int, scaled: int) -> None:
    """Store a pair of sums of columns, and both together times the scale."""
    low = i32(pair << 16)
    store(place, i32(pair))
    store(scaled, f32(i32(low >> 16) + i32(pair >> 16)) * scale)


@part
def quantise_blocks(activations: int, source: int, row: int, first: int, last: int) -> None:
    """Quantise blocks ``first`` to ``last`` (excluded) of float row ``source`` into ``row``."""
    a = Activations(activations)
    for b in range(first, last):
        x = a.x + source * a.x_stride + 128 * b
        greatest = greatest_magnitude(x, 128)
        quantise_block(a, x, row, b, scale_of(greatest), factor_of(greatest))


@part
def quantise_super_blocks(activations: int, source: int, row: int, first: int, last: int) -> None:
    """Quantise the super-blocks of which blocks ``first`` to ``last`` (excluded) are made."""
    a = Activations(activations)
    for start in range(first, last, 8):
        x = a.x + source * a.x_stride + 128 * start
        greatest = greatest_magnitude(x, 1024)
        step, factor = scale_of(greatest), factor_of(greatest)
        for b in range(8):
            quantise_block(a, x + 128 * b, row, start + b, step, factor)


@inline
def quantise(activations: int, source: int, row: int, forms: int, first: int, last: int) -> None:
    """Quantise blocks of float row ``source`` into ``row`` of those forms of bytes asked for."""
    if forms & BYTES:
        quantise_blocks(activations, source, row, first, last)
    if forms & WIDE_BYTES:
        quantise_super_blocks(Activations(activations).wide, source, row, first, last)


@inline
def interleave_block(a: View, row: int, b: int) -> int:
    """Put block ``b`` of a quantised row, up to its sums, among six; return where it begins."""
    block: int = a.bytes + row // ROWS * a.bytes_stride + row % ROWS * 4 + b * BLOCK_BYTES
    q, i = a.q + row * a.q_stride + 32 * b, row * a.block_stride + 4 * b
    for word in range(8):
        store(block + word * COLUMN_BYTES, load_i32(q + 4 * word))
    store(block + SCALES, load_i32(a.scales + i))
    for part_ in range(SUMS):
        place = block + SUMS_OF_ROWS + COLUMN_BYTES * part_
        store(place, sum_among_six(a.sums + SUMS * i + 4 * part_))
    return block


@part
def interleave_bytes(activations: int, row: int, first: int, last: int) -> None:
    """Put blocks ``first`` to ``last`` of a quantised row into its place among six."""
    a = Activations(activations)
    for b in range(first, last):
        block, i = interleave_block(a, row, b), row * a.block_stride + 4 * b
        for part_ in range(SUMS):
            place = block + SCALED_SUMS + COLUMN_BYTES * part_
            store(place, load_i32(a.scaled_sums + SUMS * i + 4 * part_))


@inline
def sum_among_six(pair: int) -> Any:
    """Return a pair of sums as products of several rows begin with it; see ``six_layout.py``."""
    return load_i32(pair) if has_assembly() else i32(whole_sum(pair) * -START_OFFSET)


@inline
def whole_sum(pair: int) -> Any:
    """Return both sums of a pair together."""
    words = load_i32(pair)
    return i32(i32(words << 16) >> 16) + i32(words >> 16)


@inline
def in_a_word(first: Any, second: Any) -> Any:
    """Return two numbers as 16 bits each."""
    return i32(i32(first & i32(0xFFFF)) | i32(second << 16))


@part
def interleave_wide_bytes(activations: int, row: int, first: int, last: int) -> None:
    """Do the same for the wide form and super-blocks, with what that has behind the sums."""
    a = Activations(activations)
    for start in range(first, last, 8):
        most = i32(0)
        for b in range(start, start + 8):
            block = interleave_block(a, row, b)
            q, sums = (
                a.q + row * a.q_stride + 32 * b,
                a.sums + SUMS * (row * a.block_stride + 4 * b),
            )
            for half in range(2):
                size = sum_i32(magnitudes(widen_i8(load_i8x16(q + 16 * half))))
                most = max(most, size)
            store(block + SUMS_OF_HALVES, in_a_word(whole_sum(sums + 4), whole_sum(sums + 8)))
            if b % 2 == 0:
                following = whole_sum(sums + 4 * SUMS)
                store(block + SUMS_OF_BLOCKS, in_a_word(whole_sum(sums), following))
        place = a.bytes + row // ROWS * a.bytes_stride + row % ROWS * 4 + start * BLOCK_BYTES
        store(place + GREATEST, i32(most))


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
    quantise(activations, row, row, forms, first, last)
    if forms & BYTES:
        interleave_bytes(activations, row, first, last)
    if forms & WIDE_BYTES:
        interleave_wide_bytes(Activations(activations).wide, row, first, last)


@kernel
def quantise_kernel(
    activations: int, source: int, row: int, forms: int, first: int, last: int
) -> None:
    """Entry for tests of ``quantise``."""
    quantise(activations, source, row, forms, first, last)


@kernel
def prepare_kernel(activations: int, row: int, forms: int, first: int, last: int) -> None:
    """Entry for tests of ``prepare``."""
    prepare(activations, row, forms, first, last)
