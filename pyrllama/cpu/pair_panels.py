"""Panels of two groups, line by line one of each, for CPUs that have ``pairs.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types

from pyrllama.cpu import activations as forms
from pyrllama.cpu import pairs
from pyrllama.cpu.instructions import machine_operation, unsigned_start
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.panels import block_finisher, panel_block, unpack_panel
from pyrllama.cpu.parts import ASKING_BLOCKS, MEMORY, MultiplyPanel, OwnRows, Panels, ask
from pyrllama.cpu.records import PANEL_BLOCKS
from pyrllama.cpu.row_vectors import load_rows, load_sums, store_rows
from pyrllama.cpu.simd import load_f32x16, load_i32x16, store

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format
    from pyrllama.cpu.vectors import Lanes

_OPERATIONS = {
    each: machine_operation(each.name, (types.int64,) * len(pairs.ARGUMENTS), types.void)
    for each in pairs.PAIRS
}
FLIPPED = 128
"""What unsigned products of signed levels have too much."""


def pair_offset(format_: Format) -> int:
    """Return what the operands of a type in a panel are more than its values."""
    return FLIPPED if format_.is_signed else format_.offset


def operation_for(format_: Format, rows: int) -> pairs.Pairs:
    """Return what multiplies a type's panels."""
    end = pairs.End.WHOLE if format_.has_run_scales else pairs.End.NOWHERE
    if format_.blocks == 1:
        end = pairs.End.ADDEND if format_.has_addend else pairs.End.FLOAT
    return pairs.Pairs(rows, format_.runs, pair_offset(format_) != 0, end)


def starts_of(format_: Format) -> OwnRows:
    """Return what writes what the sums of runs begin with: the offset times the activations'."""
    runs, offset = format_.runs, np.int32(pair_offset(format_))
    block_bytes = forms.COLUMN_BYTES * runs
    stride = block_bytes * PANEL_BLOCKS
    first = forms.SUMS_OF_ROWS + forms.COLUMN_BYTES * (runs - 1)

    @inline
    def put(x: int, x_stride: int, n_blocks: int, n_sixes: int, out: int) -> None:
        for six in range(n_sixes):
            source, target = x + six * x_stride + first, out + six * stride
            for _ in range(n_blocks):
                # Lines go beyond a block's sums, into what is still to be written.
                store(target, unsigned_start(load_i32x16(source), offset))
                source += forms.BLOCK_BYTES
                target += block_bytes

    return OwnRows(put, stride)


def multiply_pair_panel(rows: int, format_: Format) -> MultiplyPanel:
    """Return what adds the products of a panel to the totals of up to six rows."""
    if format_.blocks == 1:
        return multiply_blocks(rows, format_)
    return multiply_super_blocks(rows, format_)


def multiply_blocks(rows: int, format_: Format) -> MultiplyPanel:
    """Return the same for a type whose blocks of 32 columns have float scales."""
    operation, n_totals = operation_for(format_, rows), pairs.GROUPS * rows
    multiply, block_bytes, starts_bytes = (
        _OPERATIONS[operation], operation.block_bytes, operation.starts_bytes
    )  # fmt: skip

    @inline
    def multiply_panel(
        totals: Any, panel: int, x: int, own: int, n: int, ahead: int, apart: int, step: int
    ) -> Any:
        memory = panel + MEMORY
        store_rows(memory, 64, totals)
        for first in range(0, n, ASKING_BLOCKS):
            last = min(first + ASKING_BLOCKS, n)
            ask(ahead + first * step, ahead + last * step, apart, pairs.GROUPS)
            multiply(
                panel + first * block_bytes, x + first * forms.BLOCK_BYTES,
                own + first * starts_bytes, last - first, memory,
            )  # fmt: skip
        return load_rows(n_totals, memory, 64)

    return multiply_panel


def multiply_super_blocks(rows: int, format_: Format) -> MultiplyPanel:
    """Return the same for a type of super-blocks."""
    operation, blocks = operation_for(format_, rows), format_.blocks
    multiply, starts_bytes = _OPERATIONS[operation], blocks * operation.starts_bytes
    _, scales, addends, block_bytes = panel_block(format_, pairs.GROUPS)

    @inline
    def unit(panel: int) -> Lanes:
        return load_f32x16(panel + scales)

    @inline
    def addend(panel: int, i: int) -> Lanes:
        return load_f32x16(panel + addends + pairs.LINE * i)

    finish = block_finisher(format_, unit, addend)

    @inline
    def multiply_panel(
        totals: Any, panel: int, x: int, own: int, n: int, ahead: int, apart: int, step: int
    ) -> Any:
        memory = panel + MEMORY
        for first in range(0, n, blocks):
            ask(ahead + first * step, ahead + (first + blocks) * step, apart, pairs.GROUPS)
            multiply(panel, x, own, blocks, memory)
            one = finish(totals[:rows], load_sums(rows, memory), panel, x)
            other = finish(totals[rows:], load_sums(rows, memory + 64 * rows), panel + 64, x)
            totals = one + other
            panel += block_bytes
            x += blocks * forms.BLOCK_BYTES
            own += starts_bytes
        return totals

    return multiply_panel


def pair_panels(format_: Format) -> Panels:
    """Return the panels of two groups of a quantised type."""
    return Panels(
        unpack_panel(format_, pairs.GROUPS),
        lambda rows: multiply_pair_panel(rows, format_),
        format_.bytes,
        format_.blocks,
        PANEL_BLOCKS,
        forms.BLOCK_BYTES,
        starts_of(format_) if pair_offset(format_) else None,
        pairs.GROUPS,
    )
