"""Panels of float weights: float32, whatever they are stored as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrllama.cpu import six_layout as forms
from pyrllama.cpu.formats import BLOCK
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.parts import AddPart, Panels, add_part, over_panel
from pyrllama.cpu.row_vectors import fused_multiply_add_rows
from pyrllama.cpu.simd import load_f32x16, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.vectors import Lanes

COLUMN_BYTES = 64
"""Bytes of 16 rows of a column in a panel."""
PANEL_BLOCKS = 8
"""Blocks of columns of a panel: 16 KB."""


def unpack_float_panel(
    column_bytes: int, weights: Callable[[int], Lanes]
) -> Callable[[int, int, int, int], None]:
    """Return what makes a panel of some blocks; ``weights`` reads a column of 16 rows."""

    @inline
    def unpack(p: int, panel: int, n_blocks: int, _apart: int) -> None:
        for c in range(BLOCK * n_blocks):
            store(panel + COLUMN_BYTES * c, weights(p + column_bytes * c))

    return unpack


@inline
def add_columns(totals: Any, panel: int, x: int, _memory: int) -> Any:
    """Add the products of a block of columns with some rows."""
    for c in range(BLOCK):
        w = load_f32x16(panel + COLUMN_BYTES * c)
        totals = fused_multiply_add_rows(totals, w, x + forms.COLUMN_BYTES * c)
    return totals


def float_panels(column_bytes: int, weights: Callable[[int], Lanes]) -> Panels:
    """Return the panels of a float type, whose column of 16 rows has so many bytes."""
    x_bytes = BLOCK * forms.COLUMN_BYTES

    def add(rows: int) -> AddPart:
        return add_part(rows, over_panel(add_columns, 1, BLOCK * COLUMN_BYTES, x_bytes))

    unpack = unpack_float_panel(column_bytes, weights)
    return Panels(unpack, add, BLOCK * column_bytes, 1, PANEL_BLOCKS, x_bytes)
