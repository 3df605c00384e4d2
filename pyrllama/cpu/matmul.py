"""Products of packed weight matrices with several rows of activations, one kernel a type.

Groups of 16 rows of weights are unpacked once into panels that stay in the core's second cache,
and all rows of activations, six at a time, are multiplied with them.  The twelve 256-bit halves
of six vectors of sums are what sixteen registers hold beside their operands; wider registers
need half of them.  Two or four rows alone are multiplied with the packed weights as they come
from memory, which is what then takes the time.

Only ``columns_*`` know a quantised type's bits: panels hold bytes, with a float32 scale for every
block and row.  Those of other types hold float32.

Results are summed in the order of ``matvec.py``: a token has the same bits alone, in a batch
and in a prompt.  ``out`` must have room for whole sixes of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyrllama.cpu import activations as forms
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.matvec import weights_bf16, weights_f16, weights_f32
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, PANEL_COLUMNS, PANELS_BYTES, ROWS_AT_ONCE
from pyrllama.cpu.simd import (
    Lanes,
    add_rows,
    as_i8,
    as_i32,
    broadcast_rows,
    fused_multiply_add_rows,
    half_to_float,
    load_f32x16,
    load_i8x64,
    load_i16x16,
    load_rows,
    nibble_dot_rows,
    nibble_sum_rows,
    scale_rows,
    signed_dot_rows,
    store,
    store_rows,
    zero_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

ROWS = ROWS_AT_ONCE
PANEL_SCALES, PANEL_BLOCK = 512, 576
"""A block of 16 rows in a panel: 32 columns of bytes, then a float32 scale a row."""


@inline
def finish_rows(rows: int, out: int, stride: int, totals: Any, accumulate: int) -> None:
    """Store the results of some rows, or add them to what is there."""
    if accumulate:
        totals = add_rows(load_rows(rows, out, stride), totals)
    store_rows(out, stride, totals)


# --- types with int8 activations --------------------------------------------------------------


@inline
def columns_q4_0(p: int, j: int) -> tuple[Lanes, Lanes]:
    """Return columns ``4j`` to ``4j + 3`` of a block, and those 16 further, as 0 to 15."""
    w = load_i8x64(p + 32 + 64 * j)
    return w & 15, as_i8(as_i32(w) >> 4) & 15


@inline
def columns_q8_0(p: int, j: int) -> tuple[Lanes, Lanes]:
    """Return columns ``4j`` to ``4j + 3`` of a block, and those 16 further."""
    return load_i8x64(p + 32 + 64 * j), load_i8x64(p + 288 + 64 * j)


@inline
def complete(sums: Any) -> Any:
    """Return integer sums that need no end."""
    return sums


class Quantised(NamedTuple):
    """What products need to know of a type with blocks of 32 columns and one float16 scale."""

    block_bytes: int
    columns: Callable[[int, int], tuple[Lanes, Lanes]]
    """Unpacks an eighth of a packed block's columns, and those 16 further."""
    starts: int
    """Where sums of products begin: the place in a block of six rows of activations."""
    dot: Callable[[Any, Lanes, int], Any]
    """Adds the products of columns with four activations of every row."""
    end: Callable[[Any], Any]
    """Completes the sums of a block."""


def multiply_packed(rows: int, kind: Quantised) -> Callable[[int, int, int], Any]:
    """Return what multiplies a packed group with a few rows."""
    block_bytes, columns, starts, dot, end = kind

    @inline
    def multiply(p: int, x: int, n_blocks: int) -> Any:
        totals = zero_rows(rows)
        for _ in range(n_blocks):
            sums = broadcast_rows(rows, x + starts)
            for j in range(4):
                first, second = columns(p, j)
                sums = dot(sums, first, x + forms.COLUMN_BYTES * j)
                sums = dot(sums, second, x + forms.COLUMN_BYTES * (j + 4))
            scale = half_to_float(load_i16x16(p))
            totals = scale_rows(totals, end(sums), scale, x + forms.SCALES)
            p += block_bytes
            x += forms.BLOCK_BYTES
        return totals

    return multiply


def multiply_panel(rows: int, kind: Quantised) -> Callable[[int, int, int], Any]:
    """Return what multiplies a panel with up to six rows."""
    _, _, starts, dot, end = kind

    @inline
    def multiply(panel: int, x: int, n_blocks: int) -> Any:
        totals = zero_rows(rows)
        for _ in range(n_blocks):
            sums = broadcast_rows(rows, x + starts)
            for j in range(8):
                sums = dot(sums, load_i8x64(panel + 64 * j), x + forms.COLUMN_BYTES * j)
            scale = load_f32x16(panel + PANEL_SCALES)
            totals = scale_rows(totals, end(sums), scale, x + forms.SCALES)
            panel += PANEL_BLOCK
            x += forms.BLOCK_BYTES
        return totals

    return multiply


def quantised_product(kind: Quantised) -> KernelFunction:
    """Return the product kernel of a quantised type."""
    block_bytes, columns, _, _, _ = kind
    packed_by_2, packed_by_4 = (multiply_packed(rows, kind) for rows in (2, 4))
    by_2, by_4, by_6 = (multiply_panel(rows, kind) for rows in (2, 4, ROWS))

    @inline
    def unpack(p: int, panel: int, n_blocks: int) -> None:
        """Make a panel of a group."""
        for _ in range(n_blocks):
            for j in range(4):
                first, second = columns(p, j)
                store(panel + 64 * j, first)
                store(panel + 64 * (j + 4), second)
            store(panel + PANEL_SCALES, half_to_float(load_i16x16(p)))
            p += block_bytes
            panel += PANEL_BLOCK

    @inline
    def few_rows(p: int, a: View, n_rows: int, out: int, stride: int, accumulate: int) -> None:
        """Multiply a packed group with up to four rows."""
        n_blocks = a.n_cols // 32
        if n_rows <= 2:
            finish_rows(2, out, stride, packed_by_2(p, a.bytes, n_blocks), accumulate)
        else:
            finish_rows(4, out, stride, packed_by_4(p, a.bytes, n_blocks), accumulate)

    @inline
    def six_rows(
        panel: int, x: int, n_blocks: int, n_rows: int, out: int, stride: int, accumulate: int
    ) -> None:
        """Multiply a panel with six rows, or as many as there are."""
        if n_rows <= 2:
            finish_rows(2, out, stride, by_2(panel, x, n_blocks), accumulate)
        elif n_rows <= 4:
            finish_rows(4, out, stride, by_4(panel, x, n_blocks), accumulate)
        else:
            finish_rows(ROWS, out, stride, by_6(panel, x, n_blocks), accumulate)

    @kernel
    def product(
        matrix: int, activations: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panels: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last``; row ``i`` gives ``out + i * stride``."""
        m, a = Matrix(matrix), Activations(activations)
        if n_rows <= 4:
            for g in range(first, last):
                p = m.data + g * m.bytes_a_group
                few_rows(p, a, n_rows, out + 64 * g, stride, accumulate)
            return
        n_blocks = m.n_cols // 32
        size = n_blocks * PANEL_BLOCK
        at_once = max(PANELS_BYTES // size, 1)
        for g in range(first, last, at_once):
            n_panels = min(at_once, last - g)
            for i in range(n_panels):
                unpack(m.data + (g + i) * m.bytes_a_group, panels + i * size, n_blocks)
            for row in range(0, n_rows, ROWS):
                x, place = a.bytes + row // ROWS * a.bytes_stride, out + row * stride + 64 * g
                for i in range(n_panels):
                    panel, left = panels + i * size, n_rows - row
                    six_rows(panel, x, n_blocks, left, place + 64 * i, stride, accumulate)

    return product


q4_0 = quantised_product(
    Quantised(288, columns_q4_0, forms.NIBBLE_STARTS, nibble_dot_rows, nibble_sum_rows)
)
q8_0 = quantised_product(
    Quantised(544, columns_q8_0, forms.SIGNED_STARTS, signed_dot_rows, complete)
)


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


f32 = float_product(64, weights_f32)
f16 = float_product(32, weights_f16)
bf16 = float_product(32, weights_bf16)
