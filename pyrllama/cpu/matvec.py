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

from pyrllama.cpu.blocks import PAIRS, blocks_of
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, SUMS
from pyrllama.cpu.simd import (
    Lanes,
    as_f32,
    as_i8,
    fused_multiply_add,
    half_to_float,
    load_f32,
    load_f32x16,
    load_i16x16,
    load_i32,
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
    def step(total: Lanes, q: int, x: int, i: int) -> Lanes:
        """Add a pair of the levels at ``q``."""
        first, second = operands(q, i)
        return dot(total, first, broadcast_4(x + 8 * i), second, broadcast_4(x + 8 * i + 4))

    @inline
    def scaled(sums: Lanes, p: int, i: int, a: View, at: int, run: int, total: Lanes) -> Lanes:
        """Add a run's integer sums times both scales, and its addend times the activations."""
        both = scale(p, i) * load_f32(a.scales + at)
        total = fused_multiply_add(to_f32(sums), both, total)
        if has_addend:
            x_sum = splat_f32(load_f32(a.scaled_sums + SUMS * at + 4 * run))
            total = fused_multiply_add(addend(p, i), x_sum, total)
        return total

    @inline
    def step_four(
        n0: Lanes, n1: Lanes, n2: Lanes, n3: Lanes, q: int, size: int, x: int, i: int
    ) -> tuple[Lanes, Lanes, Lanes, Lanes]:
        """Add a pair of four groups."""
        n0 = step(n0, q, x, i)
        n1 = step(n1, q + size, x, i)
        n2 = step(n2, q + 2 * size, x, i)
        n3 = step(n3, q + 3 * size, x, i)
        return n0, n1, n2, n3

    @inline
    def add_four(
        p: int, q: int, size: int, b: int, run: int, a: View, x: int, at: int,
        t0: Lanes, t1: Lanes, t2: Lanes, t3: Lanes,
    ) -> tuple[Lanes, Lanes, Lanes, Lanes]:  # fmt: skip
        """Add run 0 or 1 of block ``b`` of four groups that are ``size`` bytes apart.

        They go on together, so that each broadcast of activations serves all four.
        """
        i, sum_of_run = runs * b + run, run + runs - 1
        n0 = n1 = n2 = n3 = start(a.sums + SUMS * at + 4 * sum_of_run)
        # No loop: LLVM would leave it one, and shifts by its counter are not in one instruction.
        pair = run * pairs
        n0, n1, n2, n3 = step_four(n0, n1, n2, n3, q, size, x, pair)
        n0, n1, n2, n3 = step_four(n0, n1, n2, n3, q, size, x, pair + 1)
        if pairs == 4:
            n0, n1, n2, n3 = step_four(n0, n1, n2, n3, q, size, x, 2)
            n0, n1, n2, n3 = step_four(n0, n1, n2, n3, q, size, x, 3)
        return (
            scaled(end(n0), p, i, a, at, sum_of_run, t0),
            scaled(end(n1), p + size, i, a, at, sum_of_run, t1),
            scaled(end(n2), p + 2 * size, i, a, at, sum_of_run, t2),
            scaled(end(n3), p + 3 * size, i, a, at, sum_of_run, t3),
        )

    @inline
    def add_one(p: int, q: int, b: int, run: int, a: View, x: int, at: int, total: Lanes) -> Lanes:
        """Add the same of one group."""
        sum_of_run = run + runs - 1
        n = start(a.sums + SUMS * at + 4 * sum_of_run)
        for j in range(pairs):
            n = step(n, q, x, run * pairs + j)
        return scaled(end(n), p, runs * b + run, a, at, sum_of_run, total)

    @inline
    def one_group(p: int, n_packed: int, a: View, x: int, at: int) -> Lanes:
        """Multiply one group."""
        total = splat_f32(0.0)
        for _ in range(n_packed):
            for b in range(blocks):
                q = p + head_bytes + b * level_bytes
                total = add_one(p, q, b, 0, a, x, at, total)
                if runs == 2:
                    total = add_one(p, q, b, 1, a, x, at, total)
                x += 32
                at += 4
            p += packed_bytes
        return total

    @inline
    def ask(p: int, size: int, in_tail: bool) -> None:
        """Ask for what follows in each of four groups, or for the next four groups."""
        if in_tail:
            prefetch_next_four(p + tail * packed_bytes, size, asked_bytes)
        else:
            prefetch_ahead(p, size, asked_bytes)

    @kernel
    def product(
        matrix: int, activations: int, row: int, out: int, first: int, last: int, accumulate: int
    ) -> None:
        """Multiply groups ``first`` to ``last`` of a matrix with a row of activations."""
        m, a = Matrix(matrix), Activations(activations)
        row_x, row_at = a.q + row * a.q_stride, row * a.block_stride
        size, n_packed = m.bytes_a_group, m.n_cols // columns
        for g in range(first, last - 3, 4):
            p, x, at = m.data + g * size, row_x, row_at
            t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
            for left in range(n_packed, 0, -1):
                for b in range(blocks):
                    ask(p + b * asked_bytes, size, left <= tail)
                    q = p + head_bytes + b * level_bytes
                    t0, t1, t2, t3 = add_four(p, q, size, b, 0, a, x, at, t0, t1, t2, t3)
                    if runs == 2:
                        t0, t1, t2, t3 = add_four(p, q, size, b, 1, a, x, at, t0, t1, t2, t3)
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
