"""Products of packed weight matrices with one row of activations, one kernel a storage type.

A matrix is cut into groups of 16 rows (see ``layout.py``), and a lane of a vector is a row.  A
kernel computes groups ``first`` to ``last``; four groups are read side by side, which is what
brings memory to its full rate.  ``matmul.py`` multiplies several rows and sums in the same
order, so that a token has the same bits alone and in a batch.

``accumulate`` adds to what ``out`` holds (the residual stream) instead of overwriting it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.records import ACTIVATIONS, MATRIX
from pyrllama.cpu.simd import (
    Lanes,
    as_f32,
    as_i8,
    as_i32,
    fused_multiply_add,
    half_to_float,
    load_f32,
    load_f32x16,
    load_i8x64,
    load_i16x16,
    load_i32,
    nibble_dot,
    nibble_sum,
    prefetch,
    prefetch_stream,
    signed_dot,
    splat_f32,
    splat_i32,
    store,
    to_f32,
    widen_u16,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

PREFETCH = 1024
"""Bytes ahead of the weights in use that are asked for, on CPUs that need to be asked."""
TAIL_BLOCKS, TAIL_COLUMNS = 4, 16
"""The end of a group, during which the beginning of the next ones is asked for."""


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
def step_q4_0(total: Lanes, p: int, x: int, j: int) -> Lanes:
    """Add columns ``4j`` to ``4j + 3``, the low nibbles, and those 16 further, the high ones."""
    w = load_i8x64(p + 32 + 64 * j)
    high = as_i8(as_i32(w) >> 4)
    total = nibble_dot(total, w & 15, broadcast_4(x + 4 * j))
    return nibble_dot(total, high & 15, broadcast_4(x + 16 + 4 * j))


@inline
def start_q4_0(a: View, block: int) -> Lanes:
    """Begin the integer sums of a block so that a nibble means itself less 8."""
    return splat_i32(load_i32(a.nibble_starts + block))


@inline
def end_q4_0(total: Lanes) -> Lanes:
    """Return the integer sums of a block."""
    return nibble_sum(total)


@inline
def step_q8_0(total: Lanes, p: int, x: int, j: int) -> Lanes:
    """Add columns ``4j`` to ``4j + 3`` and those 16 further."""
    total = signed_dot(total, load_i8x64(p + 32 + 64 * j), broadcast_4(x + 4 * j))
    return signed_dot(total, load_i8x64(p + 288 + 64 * j), broadcast_4(x + 16 + 4 * j))


@inline
def start_q8_0(a: View, block: int) -> Lanes:
    """Begin the integer sums of a block."""
    return splat_i32(load_i32(a.signed_starts + block))


@inline
def end_q8_0(total: Lanes) -> Lanes:
    """Return the integer sums of a block."""
    return total


def quantised_product(
    block_bytes: int,
    start: Callable[[View, int], Lanes],
    step: Callable[[Lanes, int, int, int], Lanes],
    end: Callable[[Lanes], Lanes],
) -> KernelFunction:
    """Return the product kernel of a type with blocks of 32 columns and one float16 scale.

    ``start`` begins the integer sums of 16 rows, ``step`` adds an eighth of a block's columns,
    and another eighth, and ``end`` makes the sums of four steps the block's.
    """

    @inline
    def scaled(products: Lanes, p: int, x_scale: float, total: Lanes) -> Lanes:
        """Add a block's integer sums times the rows' scales and the activations' scale."""
        scale = half_to_float(load_i16x16(p)) * x_scale
        return fused_multiply_add(to_f32(products), scale, total)

    @inline
    def add_four(
        p: int, size: int, a: View, q: int, block: int, t0: Lanes, t1: Lanes, t2: Lanes, t3: Lanes
    ) -> tuple[Lanes, Lanes, Lanes, Lanes]:
        """Add the products of a block of four groups that are ``size`` bytes apart.

        They go on together, so that each broadcast of activations serves all four.
        """
        n0 = n1 = n2 = n3 = start(a, block)
        for j in range(4):
            n0 = step(n0, p, q, j)
            n1 = step(n1, p + size, q, j)
            n2 = step(n2, p + 2 * size, q, j)
            n3 = step(n3, p + 3 * size, q, j)
        x_scale = load_f32(a.scales + block)
        return (
            scaled(end(n0), p, x_scale, t0),
            scaled(end(n1), p + size, x_scale, t1),
            scaled(end(n2), p + 2 * size, x_scale, t2),
            scaled(end(n3), p + 3 * size, x_scale, t3),
        )

    @inline
    def one_group(p: int, n_blocks: int, a: View, q: int, blocks: int) -> Lanes:
        """Multiply one group."""
        total = splat_f32(0.0)
        for b in range(n_blocks):
            products = start(a, blocks + 4 * b)
            for j in range(4):
                products = step(products, p, q + 32 * b, j)
            total = scaled(end(products), p, load_f32(a.scales + blocks + 4 * b), total)
            p += block_bytes
        return total

    @kernel
    def product(
        matrix: int, activations: int, row: int, out: int, first: int, last: int, accumulate: int
    ) -> None:
        """Multiply groups ``first`` to ``last`` of a matrix with a row of activations."""
        m, a = Matrix(matrix), Activations(activations)
        q, blocks = a.q + row * a.q_stride, row * a.block_stride
        size, n_blocks = m.bytes_a_group, m.n_cols // 32
        for g in range(first, last - 3, 4):
            p = m.data + g * size
            t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
            for b in range(n_blocks - TAIL_BLOCKS):
                prefetch_ahead(p, size, block_bytes)
                t0, t1, t2, t3 = add_four(p, size, a, q + 32 * b, blocks + 4 * b, t0, t1, t2, t3)
                p += block_bytes
            for b in range(max(n_blocks - TAIL_BLOCKS, 0), n_blocks):
                prefetch_next_four(p + TAIL_BLOCKS * block_bytes, size, block_bytes)
                t0, t1, t2, t3 = add_four(p, size, a, q + 32 * b, blocks + 4 * b, t0, t1, t2, t3)
                p += block_bytes
            finish_four(out + 64 * g, t0, t1, t2, t3, accumulate)
        for g in range(last - (last - first) % 4, last):
            finish(out + 64 * g, one_group(m.data + g * size, n_blocks, a, q, blocks), accumulate)

    return product


q4_0 = quantised_product(288, start_q4_0, step_q4_0, end_q4_0)
q8_0 = quantised_product(544, start_q8_0, step_q8_0, end_q8_0)


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
            for c in range(0, 4 * (m.n_cols - TAIL_COLUMNS), 8):
                prefetch_ahead(p, size, 2 * column_bytes)
                t0, t1, t2, t3 = add_two_columns(p, size, x + c, t0, t1, t2, t3)
                p += 2 * column_bytes
            for c in range(4 * (m.n_cols - TAIL_COLUMNS), 4 * m.n_cols, 8):
                prefetch_next_four(p + TAIL_COLUMNS * column_bytes, size, 2 * column_bytes)
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


f32 = float_product(64, weights_f32)
f16 = float_product(32, weights_f16)
bf16 = float_product(32, weights_bf16)
