"""Panels of two groups, line by line one of each, for CPUs that have ``pairs.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numba import types

from pyrllama.cpu import pairs
from pyrllama.cpu import six_layout as forms
from pyrllama.cpu.instructions import machine_operation, prefetch
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.panels import raised_by, unpack_panel
from pyrllama.cpu.parts import ASKING_BLOCKS, AddPart, Panels, finish_rows
from pyrllama.cpu.records import PANEL_BLOCKS
from pyrllama.cpu.row_vectors import load_rows, store_rows, zero_rows

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format

_OPERATIONS = {
    each: machine_operation(each.name, (types.int64,) * len(pairs.ARGUMENTS), types.void)
    for each in pairs.PAIRS
}


def operation_for(format_: Format, rows: int) -> pairs.Pairs:
    """Return what multiplies a type's panels."""
    minimums = format_.n_addends // 2 if format_.has_minimums else 0
    addends = 0 if minimums else format_.n_addends
    return pairs.Pairs(
        rows,
        format_.blocks,
        format_.runs,
        raised_by(format_) > 0,
        format_.has_run_scales,
        format_.shared_limit > 0,
        addends,
        minimums,
    )


def add_pair_part(rows: int, format_: Format) -> AddPart:
    """Return what adds a part of two groups' columns to the sums of some rows.

    Sums are those of the rows with the first group, then with the second.
    """
    operation, blocks, n_sums = operation_for(format_, rows), format_.blocks, pairs.GROUPS * rows
    multiply, packed_bytes, limit = (
        _OPERATIONS[operation], operation.packed_bytes, format_.shared_limit
    )  # fmt: skip

    @inline
    def add(
        panel: int, x: int, _own: int, n: int, ahead: int, apart: int, step: int, sums: int,
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
                (last - first) // blocks, sums, limit,
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
        groups=pairs.GROUPS,
    )
