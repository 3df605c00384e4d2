"""Products of packed weight matrices with one row of activations, one kernel a storage type.

A matrix is cut into groups of 16 rows (see ``layout.py``), and a lane of a vector is a row.  A
kernel computes groups ``first`` to ``last``; four groups are read side by side, which is what
brings memory to its full rate.  ``matmul.py`` multiplies several rows and sums in the same
order, so that a token has the same bits alone and in a batch.

``accumulate`` adds to what ``out`` holds (the residual stream) instead of overwriting it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pyrllama.cpu.blocks import Sums, blocks_of, sums_of_halves
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.levels import PAIRS, over_pairs
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, SUMS
from pyrllama.cpu.simd import (
    Lanes,
    as_f32,
    as_i8,
    fused_multiply_add,
    half_to_float,
    hide,
    keep_order,
    load_f32,
    load_f32x16,
    load_i16x16,
    load_i32,
    nibble_sum,
    prefetch,
    prefetch_stream,
    splat_f32,
    splat_i32,
    store,
    to_f32,
    widen_u16,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.formats import Format

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

PREFETCH = 1024
"""Bytes ahead of the weights in use that are asked for, on CPUs that need to be asked."""
TAIL_COLUMNS, TAIL_FLOATS = 128, 16
"""Columns at the end of a group during which the beginning of the next ones is asked for, of
quantised types and of floats."""


@inline
def finish(out: int, total: Lanes, accumulate: int) -> None:
    """Store 16 results, or add them to what is there."""
    if accumulate:
        total = load_f32x16(out) + total
    store(out, total)


@inline
def finish_four(out: int, t0: Lanes, t1: Lanes, t2: Lanes, t3: Lanes, accumulate: int) -> None:
    """Finish the results of four neighbouring groups."""
    finish(out, t0, accumulate)
    finish(out + 64, t1, accumulate)
    finish(out + 128, t2, accumulate)
    finish(out + 192, t3, accumulate)


@inline
def prefetch_ahead(p: int, size: int, n_bytes: int) -> None:
    """Ask for what lies ``PREFETCH`` bytes ahead in each of four groups of ``size`` bytes."""
    for group in range(4):
        for line in range(0, n_bytes, 64):
            prefetch_stream(p + group * size + PREFETCH + line)


@inline
def prefetch_next_four(p: int, size: int, n_bytes: int) -> None:
    """Ask for the beginnings of the next four groups, which no prefetcher foresees.

    ``p`` is as far behind the end of the first of the present four as the place asked for is
    behind the beginning of the first of the next.
    """
    for group in range(3, 7):
        for line in range(0, n_bytes, 64):
            prefetch(p + group * size + line)


# --- types with int8 activations --------------------------------------------------------------


@inline
def broadcast_4(x: int) -> Lanes:
    """Copy four int8 activations to all 16 rows."""
    return as_i8(splat_i32(load_i32(x)))


@inline
def no_sum() -> Lanes:
    """Return where the sum of a half begins."""
    return splat_i32(0)


@inline
def add_nibble_sum(total: Lanes, half: Lanes) -> Lanes:
    """Add what ``nibble_sum`` makes of the sum of a half."""
    return total + nibble_sum(half)


def quantised_product(format_: Format) -> KernelFunction:
    """Return the product kernel of a quantised type."""
    operands, scale, addend, products = blocks_of(format_)
    start, dot, end = products.start, products.dot, products.end
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    blocks, columns, runs, has_addend = (
        format_.blocks, format_.columns, format_.runs, format_.has_addend
    )  # fmt: skip
    pairs, tail = PAIRS // runs, max(TAIL_COLUMNS // columns, 1)
    asked_bytes = packed_bytes // blocks

    @inline
    def step(sums: Lanes, w0: Lanes, w1: Lanes, x: int, i: int) -> Lanes:
        """Add the products of a pair."""
        return dot(sums, w0, broadcast_4(x + 8 * i), w1, broadcast_4(x + 8 * i + 4))

    def products_of(first: int) -> Sums:
        if not products.in_halves:
            return over_pairs(operands[first : first + pairs], first, step)
        halves = [over_pairs(operands[i : i + 2], i, step) for i in range(first, first + pairs, 2)]
        return sums_of_halves(halves, no_sum, add_nibble_sum)

    products_0, products_1 = products_of(0), products_of(PAIRS - pairs)

    @inline
    def add(n: Lanes, p: int, i: int, scale_x: int, sum_x: int, total: Lanes) -> Lanes:
        """Add a run's integer sums times both scales, and its addend times the activations."""
        both = scale(p, i) * load_f32(scale_x)
        total = fused_multiply_add(to_f32(end(n)), both, total)
        if has_addend:
            total = fused_multiply_add(addend(p, i), splat_f32(load_f32(sum_x)), total)
        return total

    @inline
    def add_block(
        p: int, q: int, i: int, begin: Lanes, begin_1: Lanes, x: int, scale_x: int, sums_x: int,
        total: Lanes,
    ) -> Lanes:  # fmt: skip
        """Add 32 columns, which are run ``i`` or begin with it."""
        if runs == 1:
            return add(products_0(begin, q, x), p, i, scale_x, sums_x, total)
        total = add(products_0(begin, q, x), p, i, scale_x, sums_x + 4, total)
        return add(products_1(begin_1, q, x), p, i + 1, scale_x, sums_x + 8, total)

    @inline
    def begins(sums: int) -> tuple[Lanes, Lanes]:
        """Return how the sums of one or two runs begin."""
        if runs == 1:
            return start(sums), splat_i32(0)
        return start(sums + 4), start(sums + 8)

    @inline
    def one_group(p: int, n_packed: int, a: View, x: int, at: int) -> Lanes:
        """Multiply one group."""
        total = splat_f32(0.0)
        for _ in range(n_packed):
            for b in range(blocks):
                q, scale_x, sums_x = (
                    p + head_bytes + b * level_bytes, a.scales + at, a.scaled_sums + SUMS * at
                )  # fmt: skip
                begin, begin_1 = begins(a.sums + SUMS * at)
                total = add_block(p, q, runs * b, begin, begin_1, x, scale_x, sums_x, total)
                x += 32
                at += 4
            p += packed_bytes
        return total

    @inline
    def ask(p: int, to_next: int, left: int) -> None:
        """Ask for what follows in a group, or for the beginning of the one four further."""
        if hide(left) <= tail:
            for line in range(0, asked_bytes, 64):
                prefetch(p + to_next + line)
        else:
            for line in range(0, asked_bytes, 64):
                prefetch_stream(p + PREFETCH + line)

    @kernel
    def product(
        matrix: int, activations: int, row: int, out: int, first: int, last: int, accumulate: int
    ) -> None:
        """Multiply groups ``first`` to ``last`` of a matrix with a row of activations."""
        m, a = Matrix(matrix), Activations(activations)
        row_x, row_at = a.q + row * a.q_stride, row * a.block_stride
        scales, sums, scaled_sums = a.scales, a.sums, a.scaled_sums
        size, n_packed = m.bytes_a_group, m.n_cols // columns
        to_next = 3 * size + tail * packed_bytes
        for g in range(first, last - 3, 4):
            p, x, at = m.data + g * size, row_x, row_at
            t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
            for left in range(n_packed, 0, -1):
                p0, p1, p2, p3 = hide(p), hide(p + size), hide(p + 2 * size), hide(p + 3 * size)
                for b in range(blocks):
                    q, i, y = (
                        hide(head_bytes + b * level_bytes),
                        hide(runs * b),
                        hide(b * asked_bytes),
                    )
                    scale_x, sums_x = hide(scales + at), hide(scaled_sums + SUMS * at)
                    begin, begin_1 = begins(sums + SUMS * at)
                    ask(p0 + y, to_next, left)
                    t0 = add_block(p0, p0 + q, i, begin, begin_1, x, scale_x, sums_x, t0)
                    ask(p1 + y, to_next, left)
                    t1 = add_block(p1, p1 + q, i, begin, begin_1, x, scale_x, sums_x, t1)
                    ask(p2 + y, to_next, left)
                    t2 = add_block(p2, p2 + q, i, begin, begin_1, x, scale_x, sums_x, t2)
                    ask(p3 + y, to_next, left)
                    t3 = add_block(p3, p3 + q, i, begin, begin_1, x, scale_x, sums_x, t3)
                    keep_order()
                    x += 32
                    at += 4
                p += packed_bytes
            finish_four(out + 64 * g, t0, t1, t2, t3, accumulate)
        for g in range(last - (last - first) % 4, last):
            total = one_group(m.data + g * size, n_packed, a, row_x, row_at)
            finish(out + 64 * g, total, accumulate)

    return product


# --- types with float32 activations -----------------------------------------------------------


@inline
def weights_f32(p: int) -> Lanes:
    """Read a column of 16 rows of float32."""
    return load_f32x16(p)


@inline
def weights_f16(p: int) -> Lanes:
    """Read a column of 16 rows of float16."""
    return half_to_float(load_i16x16(p))


@inline
def weights_bf16(p: int) -> Lanes:
    """Read a column of 16 rows of bfloat16, the upper half of a float32."""
    return as_f32(widen_u16(load_i16x16(p)) << 16)


def float_product(column_bytes: int, weights: Callable[[int], Lanes]) -> KernelFunction:
    """Return the product kernel of a float type."""

    @inline
    def add_column(p: int, x: int, total: Lanes) -> Lanes:
        return fused_multiply_add(weights(p), splat_f32(load_f32(x)), total)

    @inline
    def add_two_columns(
        p: int, size: int, x: int, t0: Lanes, t1: Lanes, t2: Lanes, t3: Lanes
    ) -> tuple[Lanes, Lanes, Lanes, Lanes]:
        """Add two columns of four groups that are ``size`` bytes apart."""
        for place in range(2):
            t0 = add_column(p, x + 4 * place, t0)
            t1 = add_column(p + size, x + 4 * place, t1)
            t2 = add_column(p + 2 * size, x + 4 * place, t2)
            t3 = add_column(p + 3 * size, x + 4 * place, t3)
            p += column_bytes
        return t0, t1, t2, t3

    @kernel
    def product(
        matrix: int, activations: int, row: int, out: int, first: int, last: int, accumulate: int
    ) -> None:
        """Multiply groups ``first`` to ``last`` of a matrix with a row of activations."""
        m, a = Matrix(matrix), Activations(activations)
        x, size = a.x + row * a.x_stride, m.bytes_a_group
        for g in range(first, last - 3, 4):
            p = m.data + g * size
            t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
            for c in range(0, 4 * (m.n_cols - TAIL_FLOATS), 8):
                prefetch_ahead(p, size, 2 * column_bytes)
                t0, t1, t2, t3 = add_two_columns(p, size, x + c, t0, t1, t2, t3)
                p += 2 * column_bytes
            for c in range(4 * (m.n_cols - TAIL_FLOATS), 4 * m.n_cols, 8):
                prefetch_next_four(p + TAIL_FLOATS * column_bytes, size, 2 * column_bytes)
                t0, t1, t2, t3 = add_two_columns(p, size, x + c, t0, t1, t2, t3)
                p += 2 * column_bytes
            finish_four(out + 64 * g, t0, t1, t2, t3, accumulate)
        for g in range(last - (last - first) % 4, last):
            p = m.data + g * size
            t0 = splat_f32(0.0)
            for c in range(0, 4 * m.n_cols, 4):
                t0 = add_column(p, x + c, t0)
                p += column_bytes
            finish(out + 64 * g, t0, accumulate)

    return product


FLOAT_TYPES = {"f32": (64, weights_f32), "f16": (32, weights_f16), "bf16": (32, weights_bf16)}
"""Bytes of 16 rows of a column, and what reads it."""


@cache
def __getattr__(name: str) -> KernelFunction:
    """Make the kernel of a type when it is asked for."""
    if name in FLOAT_TYPES:
        return float_product(*FLOAT_TYPES[name])
    return quantised_product(format_named(name))
