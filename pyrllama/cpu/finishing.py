"""What ends a packed block of weights: its integer sums become float32 totals.

Sums count times the block's scale and that of the activations.  Addends that are float32 count
times sums of activations that are float32 too; minimums of runs are whole numbers as these sums
are, so their products are summed as such first.  One row and several take the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.cpu import six_layout as forms
from pyrllama.cpu.blocks import blocks_of, minus_at_row
from pyrllama.cpu.instructions import fused_multiply_add
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.records import SUMS
from pyrllama.cpu.row_vectors import (
    fused_multiply_add_rows,
    scale_rows,
    scale_rows_with_minimums,
    zero_sums,
)
from pyrllama.cpu.simd import load_f32, load_i32, splat_f32, splat_i32, to_f32
from pyrllama.cpu.vectors import Lanes

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format

MINUS_ONE = -1
"""The offset with which what takes it off gives sums of activations themselves."""

# --- one row ------------------------------------------------------------------------------------

Finish = Callable[[Lanes, Lanes, int, int, int], Lanes]
"""``finish(total, n, p, scale_x, sums_x)``: the total with the sums ``n`` of the packed block at
``p``.  Sums of activations are pairs for minimums and float32 for addends."""


def finisher(format_: Format) -> Finish:
    """Return what ends a packed block of a type for one row."""
    if format_.has_minimums:
        return _finisher_with_minimums(format_)
    blocks, has_addend = blocks_of(format_), format_.has_addend
    unit, addend = blocks.unit, blocks.addend

    @inline
    def finish(total: Lanes, n: Lanes, p: int, scale_x: int, sums_x: int) -> Lanes:
        total = fused_multiply_add(to_f32(n), unit(p) * load_f32(scale_x), total)
        if has_addend:
            total = fused_multiply_add(addend(p, 0), splat_f32(load_f32(sums_x)), total)
        return total

    return finish


def _finisher_with_minimums(format_: Format) -> Finish:
    blocks, n_addends, runs = blocks_of(format_), format_.n_addends, format_.runs
    one = np.int32(MINUS_ONE)
    start, end, scale_of = blocks.products.start, blocks.products.end, blocks.products.scale
    unit, minimum = blocks.unit, blocks.minimum

    @inline
    def finish(total: Lanes, n: Lanes, p: int, scale_x: int, sums_x: int) -> Lanes:
        minimums = splat_i32(0)
        for i in range(n_addends):
            place = sums_x + 4 * (SUMS * (i // runs) + i % runs + runs - 1)
            sums = start(splat_i32(load_i32(place)), one)
            minimums = end(minimums, sums, scale_of(minimum(p, i)))
        whole = fused_multiply_add(to_f32(minimums), minus_at_row(p), to_f32(n) * unit(p))
        return fused_multiply_add(whole, splat_f32(load_f32(scale_x)), total)

    return finish


# --- several rows -------------------------------------------------------------------------------

FinishRows = Callable[[Any, Any, int, int], Any]
"""``finish(totals, sums, p, x)``: float32 totals with the integer ones of a packed block."""


def rows_finisher(
    rows: int,
    format_: Format,
    unit: Callable[[int], Lanes],
    addend: Callable[[int, int], Lanes],
    minus: Callable[[int], Lanes],
) -> FinishRows:
    """Return what ends a block of a type for some rows.

    Where the type has minimums, ``addend(p, i)`` are these as scales of runs are, and
    ``minus(p)`` is their unit.
    """
    if format_.has_minimums:
        return _rows_finisher_with_minimums(rows, format_, unit, addend, minus)
    has_addend = format_.has_addend

    @inline
    def finish(totals: Any, sums: Any, p: int, x: int) -> Any:
        totals = scale_rows(totals, sums, unit(p), x + forms.SCALES)
        if has_addend:
            totals = fused_multiply_add_rows(totals, addend(p, 0), x + forms.SCALED_SUMS)
        return totals

    return finish


def _rows_finisher_with_minimums(
    rows: int,
    format_: Format,
    unit: Callable[[int], Lanes],
    minimum: Callable[[int, int], Lanes],
    minus: Callable[[int], Lanes],
) -> FinishRows:
    products, n_addends, runs = blocks_of(format_).products, format_.n_addends, format_.runs
    start, end = products.start_rows, products.end_rows

    @inline
    def finish(totals: Any, sums: Any, p: int, x: int) -> Any:
        minimums = zero_sums(rows)
        for i in range(n_addends):
            place = x + i // runs * forms.BLOCK_BYTES + forms.SUMS_OF_ROWS
            place += forms.COLUMN_BYTES * (i % runs + runs - 1)
            minimums = end(minimums, start(rows, place, MINUS_ONE), minimum(p, i))
        return scale_rows_with_minimums(totals, sums, unit(p), minimums, minus(p), x + forms.SCALES)

    return finish
