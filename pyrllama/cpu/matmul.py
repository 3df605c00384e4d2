"""Products of packed weight matrices with several rows of activations, one kernel a type.

Groups of 16 rows of weights are unpacked once into panels that stay in the core's second cache,
and all rows of activations, six at a time, are multiplied with them.  The twelve 256-bit halves
of six vectors of sums are what sixteen registers hold beside their operands; wider registers
need half of them.  Two or four rows alone are multiplied with the packed weights as they come
from memory, which is what then takes the time.

Panels of quantised types hold bytes, with float32 scales and addends for every run of columns and
row, whatever the type was.  Those of other types hold float32.

Results are summed in the order of ``matvec.py``: a token has the same bits alone, in a batch
and in a prompt.  ``out`` must have room for whole sixes of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from pyrllama.cpu import activations as forms
from pyrllama.cpu.blocks import blocks_of
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.levels import PAIRS, Step, over_pairs
from pyrllama.cpu.matvec import FLOAT_TYPES
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, PANEL_COLUMNS, PANELS_BYTES, ROWS_AT_ONCE
from pyrllama.cpu.simd import (
    Lanes,
    add_rows,
    fused_multiply_add_rows,
    load_f32x16,
    load_i8x64,
    load_rows,
    scale_rows,
    splat_f32,
    store,
    store_rows,
    zero_rows,
)

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

ROWS = ROWS_AT_ONCE
PANEL_SCALES = 512
"""Where scales stand in a block of 16 rows of a panel: behind 32 columns of bytes."""


@inline
def finish_rows(rows: int, out: int, stride: int, totals: Any, accumulate: int) -> None:
    """Store the results of some rows, or add them to what is there."""
    if accumulate:
        totals = add_rows(load_rows(rows, out, stride), totals)
    store_rows(out, stride, totals)


# --- types with int8 activations --------------------------------------------------------------

Multiply = Callable[[int, int, int], Any]
"""``multiply(p, x, n)``: the products of ``n`` blocks with the rows of activations at ``x``."""
Adder = Callable[[Any, int, int, Lanes, Lanes], Any]
"""``add(totals, q, x, scale, addend)``: the totals with a run of the levels at ``q``."""
Steps = Callable[[int, int, Step], Callable[[Any, int, int], Any]]
"""``steps(first, count, step)`` is what takes a step for some pairs."""


def panel_block_bytes(format_: Format) -> int:
    """Return the bytes of 16 rows and 32 columns in a panel: operands, scales, addends."""
    return PANEL_SCALES + 64 * format_.runs * (1 + format_.has_addend)


def steps_of_packed(format_: Format) -> Steps:
    """Return what goes over the pairs of a packed block."""
    operands = blocks_of(format_).operands
    return lambda first, count, step: over_pairs(operands[first : first + count], first, step)


def steps_of_panel(first: int, count: int, step: Step) -> Callable[[Any, int, int], Any]:
    """Return what goes over the pairs of a panel; written out, LLVM would mix them up."""

    @inline
    def steps(sums: Any, q: int, x: int) -> Any:
        for i in range(first, first + count):
            pair = q + 128 * i
            sums = step(sums, load_i8x64(pair), load_i8x64(pair + 64), x, i)
        return sums

    return steps


def adders(rows: int, format_: Format, steps: Steps) -> tuple[Adder, Adder]:
    """Return what adds the first and the last run of 32 columns to the totals of some rows."""
    last = format_.runs - 1
    return run_adder(rows, format_, steps, 0), run_adder(rows, format_, steps, last)


def run_adder(rows: int, format_: Format, steps: Steps, run: int) -> Adder:
    """Return what adds a run to the totals of some rows."""
    products, has_addend = blocks_of(format_).products, format_.has_addend
    start, dot, end, offset = (
        products.start_rows, products.dot_rows, products.end_rows, products.offset
    )  # fmt: skip
    sum_of_run = forms.COLUMN_BYTES * (run + format_.runs - 1)
    pairs = PAIRS // format_.runs

    @inline
    def step(sums: Any, w0: Lanes, w1: Lanes, x: int, i: int) -> Any:
        """Add the products of a pair."""
        word = x + 2 * forms.COLUMN_BYTES * i
        return dot(sums, w0, w1, word, word + forms.COLUMN_BYTES)

    all_products = steps(run * pairs, pairs, step)

    @inline
    def add(totals: Any, q: int, x: int, scale: Lanes, addend: Lanes) -> Any:
        sums = all_products(start(rows, x + forms.SUMS_OF_ROWS + sum_of_run, offset), q, x)
        totals = scale_rows(totals, end(sums), scale, x + forms.SCALES)
        if has_addend:
            place = x + forms.SCALED_SUMS + sum_of_run
            totals = fused_multiply_add_rows(totals, addend, place)
        return totals

    return add


def multiply_packed(rows: int, format_: Format) -> Multiply:
    """Return what multiplies a packed group with a few rows."""
    scale, addend = blocks_of(format_).scale, blocks_of(format_).addend
    runs, blocks = format_.runs, format_.blocks
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    add, add_1 = adders(rows, format_, steps_of_packed(format_))

    @inline
    def multiply(p: int, x: int, n_packed: int) -> Any:
        totals = zero_rows(rows)
        for _ in range(n_packed):
            for b in range(blocks):
                q, i = p + head_bytes + b * level_bytes, runs * b
                totals = add(totals, q, x, scale(p, i), addend(p, i))
                if runs == 2:
                    totals = add_1(totals, q, x, scale(p, i + 1), addend(p, i + 1))
                x += forms.BLOCK_BYTES
            p += packed_bytes
        return totals

    return multiply


def multiply_panel(rows: int, format_: Format) -> Multiply:
    """Return what multiplies a panel with up to six rows."""
    runs, block_bytes = format_.runs, panel_block_bytes(format_)
    addends = PANEL_SCALES + 64 * runs
    add, add_1 = adders(rows, format_, steps_of_panel)
    has_addend = format_.has_addend

    @inline
    def addend_at(place: int) -> Lanes:
        return load_f32x16(place) if has_addend else splat_f32(0.0)

    @inline
    def multiply(panel: int, x: int, n_blocks: int) -> Any:
        totals = zero_rows(rows)
        for _ in range(n_blocks):
            scale = load_f32x16(panel + PANEL_SCALES)
            totals = add(totals, panel, x, scale, addend_at(panel + addends))
            if runs == 2:
                scale = load_f32x16(panel + PANEL_SCALES + 64)
                totals = add_1(totals, panel, x, scale, addend_at(panel + addends + 64))
            panel += block_bytes
            x += forms.BLOCK_BYTES
        return totals

    return multiply


def unpack_panel(format_: Format) -> Callable[[int, int, int], None]:
    """Return what makes a panel of a packed group."""
    operands, scale, addend, _ = blocks_of(format_)
    runs, blocks, has_addend = format_.runs, format_.blocks, format_.has_addend
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    block_bytes = panel_block_bytes(format_)

    @inline
    def put(state: int, first: Lanes, second: Lanes, place: int, i: int) -> int:
        """Store a pair as bytes."""
        store(place + 128 * i, first)
        store(place + 128 * i + 64, second)
        return state

    put_all = over_pairs(operands, 0, put)

    @inline
    def unpack(p: int, panel: int, n_packed: int) -> None:
        for _ in range(n_packed):
            for b in range(blocks):
                put_all(0, p + head_bytes + b * level_bytes, panel)
                for run in range(runs):
                    place, i = panel + PANEL_SCALES + 64 * run, runs * b + run
                    store(place, scale(p, i))
                    if has_addend:
                        store(place + 64 * runs, addend(p, i))
                panel += block_bytes
            p += packed_bytes

    return unpack


def quantised_product(format_: Format) -> KernelFunction:
    """Return the product kernel of a quantised type."""
    columns, block_bytes = format_.columns, panel_block_bytes(format_)
    packed_by_2, packed_by_4 = (multiply_packed(rows, format_) for rows in (2, 4))
    by_2, by_4, by_6 = (multiply_panel(rows, format_) for rows in (2, 4, ROWS))
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
        size = n_blocks * block_bytes
        at_once = max(PANELS_BYTES // size, 1)
        for g in range(first, last, at_once):
            n_panels = min(at_once, last - g)
            for i in range(n_panels):
                p = m.data + (g + i) * m.bytes_a_group
                unpack(p, panels + i * size, m.n_cols // columns)
            for row in range(0, n_rows, ROWS):
                x, place = a.bytes + row // ROWS * a.bytes_stride, out + row * stride + 64 * g
                for i in range(n_panels):
                    panel, left = panels + i * size, n_rows - row
                    six_rows(panel, x, n_blocks, left, place + 64 * i, stride, accumulate)

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
