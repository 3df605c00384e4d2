"""Six rows of activations at a time, from float32 to interleaved bytes.

They are what ``activations.py`` makes of each row by itself, bit by bit.  Six at once leave
registers as whole vectors, where one row alone is written word by word into the places that it has
between the others.
"""

from __future__ import annotations

from pyrllama.cpu.activations import (
    factor_of,
    greatest_magnitude,
    interleave_floats,
    quantise,
    scale_of,
    tile_floats,
)
from pyrllama.cpu.kernel import inline, kernel, part, view
from pyrllama.cpu.records import ACTIVATIONS, BYTES, FLOATS, ROWS_AT_ONCE, TILES, WIDE_BYTES
from pyrllama.cpu.simd import scratch, splat_i32, store
from pyrllama.cpu.six_layout import BLOCK_BYTES, GREATEST
from pyrllama.cpu.six_vectors import put_block, put_wide_blocks, store_six

Activations = view(ACTIVATIONS)

ROWS = ROWS_AT_ONCE


@inline
def put_scales(x: int, stride: int, n_bytes: int, scales: int, factors: int) -> None:
    """Write the scales of six rows' float32 and their inverses."""
    for row in range(ROWS):
        greatest = greatest_magnitude(x + row * stride, n_bytes)
        store(scales + 4 * row, scale_of(greatest))
        store(factors + 4 * row, factor_of(greatest))


@part
def quantise_six_blocks(activations: int, first_row: int, first: int, last: int) -> None:
    """Quantise blocks ``first`` to ``last`` of six rows."""
    a = Activations(activations)
    x, out = a.x + first_row * a.x_stride, a.bytes + first_row // ROWS * a.bytes_stride
    scales, factors = scratch(64), scratch(64)
    for b in range(first, last):
        put_scales(x + 128 * b, a.x_stride, 128, scales, factors)
        put_block(x + 128 * b, a.x_stride, factors, scales, out + b * BLOCK_BYTES)


@part
def quantise_six_super_blocks(activations: int, first_row: int, first: int, last: int) -> None:
    """Quantise the super-blocks of which blocks ``first`` to ``last`` of six rows are made."""
    a = Activations(activations)
    x, out = a.x + first_row * a.x_stride, a.bytes + first_row // ROWS * a.bytes_stride
    scales, factors = scratch(64), scratch(64)
    for start in range(first, last, 8):
        put_scales(x + 128 * start, a.x_stride, 1024, scales, factors)
        most = splat_i32(0)
        for b in range(start, start + 8, 2):
            block = out + b * BLOCK_BYTES
            most = put_wide_blocks(x + 128 * b, a.x_stride, factors, scales, block, most)
        store_six(out + start * BLOCK_BYTES + GREATEST, most)


@inline
def prepare_six(
    activations: int, first_row: int, n_rows: int, forms: int, first: int, last: int
) -> None:
    """Bring blocks ``first`` to ``last`` of six rows, or the last few, into the forms asked for.

    ``first_row`` is a multiple of six.  As bytes, rows stand interleaved and not by themselves, and
    what is there of rows that six have too many is quantised as well.
    """
    for row in range(first_row, min(first_row + ROWS, n_rows)):
        if forms & TILES:
            tile_floats(activations, row, first, last)
        if forms & FLOATS:
            interleave_floats(activations, row, first, last)
    if forms & BYTES:
        quantise_six_blocks(activations, first_row, first, last)
    if forms & WIDE_BYTES:
        quantise_six_super_blocks(Activations(activations).wide, first_row, first, last)


@inline
def prepare_rows(activations: int, n_rows: int, forms: int, first: int, last: int) -> None:
    """Bring blocks of all rows, or of the only one, into the forms that products read."""
    if n_rows == 1:
        quantise(activations, 0, 0, forms, first, last)
    else:
        for row in range(0, n_rows, ROWS):
            prepare_six(activations, row, n_rows, forms, first, last)


@kernel
def prepare_kernel(activations: int, n_rows: int, forms: int, first: int, last: int) -> None:
    """Entry for tests of ``prepare_rows``."""
    prepare_rows(activations, n_rows, forms, first, last)
