"""Six rows of activations at a time, from float32 to interleaved bytes.

They are what ``activations.py`` makes of each row by itself, bit by bit.  Six at once leave
registers as whole vectors, where one row alone is written word by word into the places that it has
between the others.
"""

from __future__ import annotations

from collections.abc import Callable

from pyrllama.cpu.activations import (
    BLOCK_BYTES,
    factor_of,
    greatest_magnitude,
    interleave_floats,
    quantise,
    scale_of,
    tile_floats,
)
from pyrllama.cpu.kernel import inline, kernel, part, view
from pyrllama.cpu.records import ACTIVATIONS, BYTES, FLOATS, ROWS_AT_ONCE, TILES, WIDE_BYTES
from pyrllama.cpu.simd import scratch, store
from pyrllama.cpu.six_vectors import put_block

Activations = view(ACTIVATIONS)

ROWS = ROWS_AT_ONCE
Quantise = Callable[[int, int, int, int], None]
"""``quantise(activations, first_row, first, last)``: blocks of six rows."""


def quantise_six(blocks: int) -> Quantise:
    """Return what quantises six rows, so many blocks with one scale."""

    @part
    def quantise_rows(activations: int, first_row: int, first: int, last: int) -> None:
        a = Activations(activations)
        x, stride = a.x + first_row * a.x_stride, a.x_stride
        out = a.bytes + first_row // ROWS * a.bytes_stride
        scales, factors = scratch(64), scratch(64)
        for start in range(first, last, blocks):
            for row in range(ROWS):
                greatest = greatest_magnitude(x + row * stride + 128 * start, 128 * blocks)
                store(scales + 4 * row, scale_of(greatest))
                store(factors + 4 * row, factor_of(greatest))
            for b in range(start, start + blocks):
                put_block(x + 128 * b, stride, factors, scales, out + b * BLOCK_BYTES)

    return quantise_rows


quantise_blocks_of_six, quantise_super_blocks_of_six = quantise_six(1), quantise_six(8)


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
        quantise_blocks_of_six(activations, first_row, first, last)
    if forms & WIDE_BYTES:
        quantise_super_blocks_of_six(Activations(activations).wide, first_row, first, last)


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
