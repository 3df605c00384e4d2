"""Panels of two groups, line by line one of each, for CPUs that have ``pairs.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import types

from pyrllama.cpu import pairs
from pyrllama.cpu import six_layout as forms
from pyrllama.cpu.instructions import machine_operation, prefetch, unsigned_start
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.panels import unpack_panel
from pyrllama.cpu.parts import ASKING_BLOCKS, AddPart, OwnRows, Panels, finish_rows
from pyrllama.cpu.records import PANEL_BLOCKS, ROWS_AT_ONCE
from pyrllama.cpu.row_vectors import load_rows, store_rows, zero_rows
from pyrllama.cpu.simd import as_f32, as_i32, keep_first, load_i32x16, splat_i32, store

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
    minimums = format_.n_addends // 2 if format_.has_minimums else 0
    addends = 0 if minimums else format_.n_addends
    starts, runs = pair_offset(format_) != 0, format_.runs
    return pairs.Pairs(
        rows,
        format_.blocks,
        runs,
        starts,
        format_.has_run_scales,
        format_.shared_limit > 0,
        addends,
        minimums,
    )


@inline
def sign_of_first(b: int, runs: int) -> Lanes:
    """Return the sign bit of 16 in the lanes of six rows that belong to the first of two runs."""
    bit = splat_i32(0x8000)
    if runs == 1:
        return bit * (1 - b % 2)
    return as_i32(keep_first(as_f32(bit), ROWS_AT_ONCE, np.float32(0.0)))


def starts_of(format_: Format) -> OwnRows:
    """Return what writes what the sums of runs begin with: the offset times the activations'.

    The first of two runs whose sums may share words has the sign bit of 16 beside.
    """
    runs, offset, shared = format_.runs, np.int32(pair_offset(format_)), format_.shared_limit > 0
    block_bytes = forms.COLUMN_BYTES * runs
    stride = block_bytes * PANEL_BLOCKS
    first = forms.SUMS_OF_ROWS + forms.COLUMN_BYTES * (runs - 1)

    @inline
    def put(x: int, x_stride: int, n_blocks: int, n_sixes: int, out: int) -> None:
        for six in range(n_sixes):
            source, target = x + six * x_stride + first, out + six * stride
            for b in range(n_blocks):
                start = unsigned_start(load_i32x16(source), offset)
                if shared:
                    start = start + sign_of_first(b, runs)
                # Lines go beyond a block's sums, into what is still to be written.
                store(target, start)
                source += forms.BLOCK_BYTES
                target += block_bytes

    return OwnRows(put, stride)


def add_pair_part(rows: int, format_: Format) -> AddPart:
    """Return what adds a part of two groups' columns to the sums of some rows.

    Sums are those of the rows with the first group, then with the second.
    """
    operation, blocks, n_sums = operation_for(format_, rows), format_.blocks, pairs.GROUPS * rows
    multiply, starts_bytes, packed_bytes, limit = (
        _OPERATIONS[operation], operation.starts_bytes, operation.packed_bytes,
        format_.shared_limit,
    )  # fmt: skip

    @inline
    def add(
        panel: int, x: int, own: int, n: int, ahead: int, apart: int, step: int, sums: int,
        begins: bool, ends: bool, out: int, stride: int, accumulate: int,
    ) -> None:  # fmt: skip
        if begins:
            store_rows(sums, 64, zero_rows(n_sums))
        if ends:
            # Results of many rows have left the caches since the groups before.
            for row in range(rows):
                prefetch(out + row * stride)
                prefetch(out + row * stride + 64)
        for first in range(0, n, ASKING_BLOCKS):
            last = min(first + ASKING_BLOCKS, n)
            for place in range(ahead + first * step, ahead + last * step, 64):
                prefetch(place)
                prefetch(place + apart)
            multiply(
                panel + first // blocks * packed_bytes, x + first * forms.BLOCK_BYTES,
                own + first * starts_bytes, (last - first) // blocks, sums, limit,
            )  # fmt: skip
        if ends:
            finish_rows(rows, out, stride, load_rows(rows, sums, 64), accumulate)
            second = load_rows(rows, sums + 64 * rows, 64)
            finish_rows(rows, out + 64, stride, second, accumulate)

    return add


def pair_panels(format_: Format) -> Panels:
    """Return the panels of two groups of a quantised type."""
    return Panels(
        unpack_panel(format_, pairs.GROUPS),
        lambda rows: add_pair_part(rows, format_),
        format_.bytes,
        format_.blocks,
        PANEL_BLOCKS,
        forms.BLOCK_BYTES,
        starts_of(format_) if pair_offset(format_) else None,
        pairs.GROUPS,
    )
