"""Products of packed weight matrices with several rows of activations, one kernel a type.

Groups of 16 rows of weights are unpacked once into panels (``panels.py``), and all rows of
activations, six at a time, are multiplied with them.  The twelve 256-bit halves of six vectors of
sums are what sixteen registers hold beside their operands; wider registers need half of them.

For many rows, panels of several groups fill half of the core's second cache, so that six rows,
which the first one holds, meet all of them.  For few, a panel is a small part of one group that
stays in the first cache, and what is unpacked next has arrived meanwhile.  Of a group cut into
parts, the sums so far of all rows wait behind the panels.  Panels of types with float32
activations hold float32.

Results are summed in the order of ``matvec.py``: a token has the same bits alone, in a batch
and in a prompt.  ``out`` must have room for whole sixes of rows.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pyrllama.cpu import activations as forms
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.matvec import FLOAT_TYPES
from pyrllama.cpu.panels import (
    MultiplyPanel,
    multiply_packed,
    multiply_panel,
    panel_block,
    unpack_panel,
)
from pyrllama.cpu.records import (
    ACTIVATIONS,
    MATRIX,
    PANEL_BLOCKS,
    PANEL_COLUMNS,
    PANELS_BYTES,
    ROWS_AT_ONCE,
    WIDE_BYTES,
)
from pyrllama.cpu.row_vectors import (
    add_rows,
    fused_multiply_add_rows,
    load_rows,
    store_rows,
    zero_rows,
)
from pyrllama.cpu.simd import Lanes, load_f32x16, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.formats import Format

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

ROWS = ROWS_AT_ONCE
SUMS_BYTES = 64 * ROWS
"""Bytes of the sums of a group for six rows."""
FEW_SIXES = 4
"""Sixes of rows up to which a panel stays in the first cache."""
FEW_BLOCKS = 16
"""Blocks of columns of such a panel: some 10 KB."""


@inline
def finish_rows(rows: int, out: int, stride: int, totals: Any, accumulate: int) -> None:
    """Store the results of some rows, or add them to what is there."""
    if accumulate:
        totals = add_rows(load_rows(rows, out, stride), totals)
    store_rows(out, stride, totals)


# --- types with int8 activations --------------------------------------------------------------


@inline
def panel_blocks(n_blocks: int, n_sixes: int) -> int:
    """Return how many blocks of columns a panel has."""
    return FEW_BLOCKS if n_sixes <= FEW_SIXES else min(n_blocks, PANEL_BLOCKS)


@inline
def panels_at_once(panel_bytes: int, n_sixes: int) -> int:
    """Return how many groups have a panel at a time."""
    return 1 if n_sixes <= FEW_SIXES else PANELS_BYTES // panel_bytes


def add_part(rows: int, multiply: MultiplyPanel) -> Callable[..., None]:
    """Return what adds a part of a group's columns to the sums of some rows."""

    @inline
    def add(
        panel: int, x: int, n: int, ahead: int, step: int, sums: int, begins: bool, ends: bool,
        out: int, stride: int, accumulate: int,
    ) -> None:  # fmt: skip
        totals = zero_rows(rows) if begins else load_rows(rows, sums, 64)
        totals = multiply(totals, panel, x, n, ahead, step)
        if ends:
            finish_rows(rows, out, stride, totals, accumulate)
        else:
            store_rows(sums, 64, totals)

    return add


def quantised_product(format_: Format) -> KernelFunction:
    """Return the product kernel of a quantised type."""
    columns, blocks, packed_bytes = format_.columns, format_.blocks, format_.bytes
    block_bytes, wide = panel_block(format_).size, format_.form == WIDE_BYTES
    packed_by_2, packed_by_4 = (multiply_packed(rows, format_) for rows in (2, 4))
    add_2, add_4, add_6 = (add_part(rows, multiply_panel(rows, format_)) for rows in (2, 4, ROWS))
    unpack = unpack_panel(format_)

    @inline
    def few_rows(p: int, a: View, n_rows: int, out: int, stride: int, accumulate: int) -> None:
        """Multiply a packed group with up to four rows."""
        n_packed = a.n_cols // columns
        if n_rows <= 2:
            finish_rows(2, out, stride, packed_by_2(p, a.bytes, n_packed), accumulate)
        else:
            finish_rows(4, out, stride, packed_by_4(p, a.bytes, n_packed), accumulate)

    @inline
    def six_rows(
        panel: int, x: int, n: int, ahead: int, step: int, sums: int, begins: bool, ends: bool,
        out: int, stride: int, accumulate: int, n_rows: int,
    ) -> None:  # fmt: skip
        """Multiply a panel with six rows, or as many as there are."""
        if n_rows <= 2:
            add_2(panel, x, n, ahead, step, sums, begins, ends, out, stride, accumulate)
        elif n_rows <= 4:
            add_4(panel, x, n, ahead, step, sums, begins, ends, out, stride, accumulate)
        else:
            add_6(panel, x, n, ahead, step, sums, begins, ends, out, stride, accumulate)

    @kernel
    def product(
        matrix: int, activations: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panels: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last``; row ``i`` gives ``out + i * stride``."""
        m, a = Matrix(matrix), Activations(activations)
        if wide:
            a = Activations(a.wide)
        group_bytes = m.bytes_a_group
        if n_rows <= 4:
            for g in range(first, last):
                few_rows(m.data + g * group_bytes, a, n_rows, out + 64 * g, stride, accumulate)
            return
        n_blocks, n_sixes = m.n_cols // 32, (n_rows + ROWS - 1) // ROWS
        part = panel_blocks(n_blocks, n_sixes)
        size = part // blocks * block_bytes
        at_once = panels_at_once(size, n_sixes)
        step = (packed_bytes // blocks + n_sixes - 1) // n_sixes
        for g in range(first, last, at_once):
            n_panels = min(at_once, last - g)
            after = (at_once if g + at_once < last else 0) * group_bytes
            for block in range(0, n_blocks, part):
                n = min(part, n_blocks - block)
                begins, ends = block == 0, block + n == n_blocks
                before = block // blocks * packed_bytes
                p = m.data + g * group_bytes + before
                ahead = p - before + after if ends else p + n // blocks * packed_bytes
                for i in range(n_panels):
                    unpack(p + i * group_bytes, panels + i * size, n // blocks)
                for six in range(n_sixes):
                    x = a.bytes + six * a.bytes_stride + block * forms.BLOCK_BYTES
                    place = out + ROWS * six * stride + 64 * g
                    sums = panels + PANELS_BYTES + six * at_once * SUMS_BYTES
                    asked = ahead + six * n * step
                    for i in range(n_panels):
                        six_rows(
                            panels + i * size, x, n, asked + i * group_bytes, step,
                            sums + i * SUMS_BYTES, begins, ends, place + 64 * i, stride,
                            accumulate, n_rows - ROWS * six,
                        )  # fmt: skip

    return product


# --- types with float32 activations -----------------------------------------------------------


def float_product(column_bytes: int, weights: Callable[[int], Lanes]) -> KernelFunction:
    """Return the product kernel of a float type."""

    @inline
    def multiply_panel(panel: int, x: int, n: int, totals: Any) -> Any:
        """Add the products of ``n`` columns with six rows."""
        for c in range(n):
            w = load_f32x16(panel + 64 * c)
            totals = fused_multiply_add_rows(totals, w, x + forms.COLUMN_BYTES * c)
        return totals

    @kernel
    def product(
        matrix: int, activations: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last``; row ``i`` gives ``out + i * stride``.

        A panel of floats is a part of the columns, so that it fits into the first cache; the
        sums so far of all rows wait behind it.
        """
        m, a = Matrix(matrix), Activations(activations)
        sums, n_sixes = panel + 64 * PANEL_COLUMNS, (n_rows + ROWS - 1) // ROWS
        for g in range(first, last):
            for six in range(n_sixes):
                store_rows(sums + 64 * ROWS * six, 64, zero_rows(ROWS))
            for column in range(0, m.n_cols, PANEL_COLUMNS):
                n = min(PANEL_COLUMNS, m.n_cols - column)
                p = m.data + g * m.bytes_a_group + column * column_bytes
                for c in range(n):
                    store(panel + 64 * c, weights(p + c * column_bytes))
                x = a.floats + column * forms.COLUMN_BYTES
                for six in range(n_sixes):
                    place = sums + 64 * ROWS * six
                    totals = load_rows(ROWS, place, 64)
                    totals = multiply_panel(panel, x + six * a.floats_stride, n, totals)
                    store_rows(place, 64, totals)
            for six in range(n_sixes):
                totals = load_rows(ROWS, sums + 64 * ROWS * six, 64)
                finish_rows(ROWS, out + ROWS * six * stride + 64 * g, stride, totals, accumulate)

    return product


@cache
def __getattr__(name: str) -> KernelFunction:
    """Make the kernel of a type when it is asked for."""
    if name in FLOAT_TYPES:
        return float_product(*FLOAT_TYPES[name])
    return quantised_product(format_named(name))
