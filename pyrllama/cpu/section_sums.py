"""The integer sums of a panel's block, section by section in memory, where CPUs want it so."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from numba import types

from pyrllama.cpu import sections
from pyrllama.cpu import six_layout as forms
from pyrllama.cpu.instructions import hide, machine_operation
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.levels import PAIRS
from pyrllama.cpu.simd import splat_i32, store

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format

OPERANDS_BYTES = 512
"""Bytes of the operands of 16 rows and 32 columns."""

_OPERATIONS = {
    section: machine_operation(section.name, (types.int64,) * len(sections.ARGUMENTS), types.void)
    for section in sections.SECTIONS
}

PutSums = Callable[[int, int, int], None]
"""``put(panel, x, sums)``: the integer sums of a panel's block with the rows at ``x``."""


@inline
def no_sums(_panel: int, _x: int, _sums: int) -> None:
    """Stand where a type has no sections."""


def sums_of_sections(rows: int, format_: Format, columns_bytes: int) -> PutSums:
    """Return what sums a panel's block, of so many bytes for 32 columns, with some rows."""
    blocks, n_sections = format_.blocks, format_.sections
    words = 2 * PAIRS // n_sections
    add = _OPERATIONS[sections.Section(rows, words, format_.offset != 0)]
    starts = forms.SUMS_OF_ROWS + forms.COLUMN_BYTES * (n_sections - 1)
    scale = OPERANDS_BYTES
    second_words, second_x = 64 * words, forms.COLUMN_BYTES * words
    second_starts, second_scale = starts + forms.COLUMN_BYTES, scale + 64 * (format_.runs - 1)

    @inline
    def put(panel: int, x: int, sums: int) -> None:
        for row in range(rows):
            store(sums + 64 * row, splat_i32(0))
        for b in range(hide(blocks)):
            q, y = panel + b * columns_bytes, x + b * forms.BLOCK_BYTES
            add(q, y, y + starts, q + scale, sums)
            if n_sections == 2:
                add(q + second_words, y + second_x, y + second_starts, q + second_scale, sums)

    return put
