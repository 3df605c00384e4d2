"""Products of packed weight matrices with several rows of activations, one kernel a type.

Groups of 16 rows of weights are unpacked once into panels (``panels.py``), and all rows of
activations, six at a time, are multiplied with them.  The twelve 256-bit halves of six vectors of
sums are what sixteen registers hold beside their operands; wider registers need half of them.

A panel is a part of a group's columns that stays in the core's first cache.  The same columns of
many rows stay in the second one while several groups pass, part by part, whatever whole rows would
take; the sums so far wait behind the panel.  A few rows fit there whole and meet group after
group.  While rows are multiplied, the weights that are unpacked next arrive.  Panels of types with
float32 activations hold float32.

Results are summed in the order of ``matvec.py``: a token has the same bits alone, in a batch
and in a prompt.  ``out`` must have room for whole sixes of rows.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pyrllama.cpu import activations as forms
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.instructions import has_assembly
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.matvec import FLOAT_TYPES
from pyrllama.cpu.panels import (
    MultiplyPanel,
    multiply_packed,
    multiply_panel,
    unpack_panel,
)
from pyrllama.cpu.records import (
    ACTIVATIONS,
    FEW_SIXES,
    GROUPS_AT_ONCE,
    MATRIX,
    PANEL_BLOCKS,
    PANEL_BYTES,
    PANEL_COLUMNS,
    ROWS_AT_ONCE,
    SIXES_AT_ONCE,
    WIDE_BYTES,
)
from pyrllama.cpu.row_vectors import (
    add_rows,
    fused_multiply_add_rows,
    load_rows,
    store_rows,
    zero_rows,
)
from pyrllama.cpu.short_panels import (
    ROWS_STRIDE,
    multiply_short_panel,
    suits_shorts,
    unpack_short_panel,
    widen_rows,
)
from pyrllama.cpu.simd import load_f32x16, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.formats import Format
    from pyrllama.cpu.vectors import Lanes

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

ROWS = ROWS_AT_ONCE
SUMS_BYTES = 64 * ROWS
"""Bytes of the sums of a group for six rows."""


@inline
def finish_rows(rows: int, out: int, stride: int, totals: Any, accumulate: int) -> None:
    """Store the results of some rows, or add them to what is there."""
    if accumulate:
        totals = add_rows(load_rows(rows, out, stride), totals)
    store_rows(out, stride, totals)


# --- types with int8 activations --------------------------------------------------------------


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


def rows_with_panel(format_: Format, multiply: Callable[..., MultiplyPanel]) -> Callable[..., None]:
    """Return what multiplies a panel of a part of a group with all rows, six by six."""
    add_2, add_4, add_6 = (add_part(rows, multiply(rows, format_)) for rows in (2, 4, ROWS))
    block_bytes = format_.bytes // format_.blocks

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

    @inline
    def all_sixes(
        panel: int, x: int, x_stride: int, n: int, ahead: int, sums: int, begins: bool,
        ends: bool, out: int, stride: int, accumulate: int, n_rows: int,
    ) -> None:  # fmt: skip
        """Multiply a panel with rows six by six, and ask for as much from ``ahead`` on."""
        n_sixes = (n_rows + ROWS - 1) // ROWS
        step = (block_bytes + n_sixes - 1) // n_sixes
        for six in range(n_sixes):
            six_rows(
                panel, x + six * x_stride, n, ahead + six * n * step, step,
                sums + six * SUMS_BYTES, begins, ends, out + ROWS * six * stride, stride,
                accumulate, n_rows - ROWS * six,
            )  # fmt: skip

    return all_sixes


def by_parts(format_: Format, *, short: bool) -> Callable[..., None]:
    """Return what multiplies no more groups and rows than meet at once, part by part.

    Where panels are short, so are the rows that they meet, behind the sums.
    """
    blocks, packed_bytes = format_.blocks, format_.bytes
    unpack = unpack_short_panel(format_) if short else unpack_panel(format_)
    all_sixes = rows_with_panel(format_, multiply_short_panel if short else multiply_panel)

    @inline
    def multiply(
        m: View, x: int, x_stride: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        n_blocks, sums = m.n_cols // 32, panel + PANEL_BYTES
        short_rows = sums + SUMS_BYTES * GROUPS_AT_ONCE * SIXES_AT_ONCE
        for block in range(0, n_blocks, PANEL_BLOCKS):
            n = min(PANEL_BLOCKS, n_blocks - block)
            part, rows, rows_stride = m.data + block // blocks * packed_bytes, x, x_stride
            if short:
                n_sixes = (n_rows + ROWS - 1) // ROWS
                widen_rows(x, x_stride, n, n_sixes, short_rows)
                rows, rows_stride = short_rows, ROWS_STRIDE
            for g in range(first, last):
                p = part + g * m.bytes_a_group
                unpack(p, panel, n // blocks)
                ahead = p + m.bytes_a_group
                if g + 1 == last and block + n < n_blocks:
                    ahead = part + first * m.bytes_a_group + n // blocks * packed_bytes
                all_sixes(
                    panel, rows, rows_stride, n, ahead,
                    sums + (g - first) * SIXES_AT_ONCE * SUMS_BYTES, block == 0,
                    block + n == n_blocks, out + 64 * g, stride, accumulate, n_rows,
                )  # fmt: skip
            x += n * forms.BLOCK_BYTES

    return multiply


def quantised_product(format_: Format) -> KernelFunction:
    """Return the product kernel of a quantised type."""
    columns, wide, as_shorts = format_.columns, format_.form == WIDE_BYTES, suits_shorts(format_)
    packed_by_2, packed_by_4 = (multiply_packed(rows, format_) for rows in (2, 4))
    with_bytes = by_parts(format_, short=False)
    with_shorts = by_parts(format_, short=True) if as_shorts else with_bytes

    @inline
    def few_rows(p: int, a: View, n_rows: int, out: int, stride: int, accumulate: int) -> None:
        """Multiply a packed group with up to four rows."""
        n_packed = a.n_cols // columns
        if n_rows <= 2:
            finish_rows(2, out, stride, packed_by_2(p, a.bytes, n_packed), accumulate)
        else:
            finish_rows(4, out, stride, packed_by_4(p, a.bytes, n_packed), accumulate)

    @kernel
    def product(
        matrix: int, activations: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last``; row ``i`` gives ``out + i * stride``."""
        m, a = Matrix(matrix), Activations(activations)
        if wide:
            a = Activations(a.wide)
        if n_rows <= 4:
            for g in range(first, last):
                p = m.data + g * m.bytes_a_group
                few_rows(p, a, n_rows, out + 64 * g, stride, accumulate)
            return
        few, at_most = n_rows <= ROWS * FEW_SIXES, ROWS * SIXES_AT_ONCE
        at_once = 1 if few else GROUPS_AT_ONCE
        for g in range(first, last, at_once):
            for row in range(0, n_rows, at_most):
                x, n = a.bytes + row // ROWS * a.bytes_stride, min(n_rows - row, at_most)
                place, end = out + row * stride, min(g + at_once, last)
                if as_shorts and has_assembly() and not few:
                    with_shorts(
                        m, x, a.bytes_stride, n, place, stride, g, end, accumulate, panel
                    )  # fmt: skip
                else:
                    with_bytes(m, x, a.bytes_stride, n, place, stride, g, end, accumulate, panel)

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
