"""Products of packed weight matrices with activations, one kernel a storage type.

A matrix is cut into groups of 16 rows (see ``layout.py``), and a lane of a vector is a row.  A
kernel computes groups ``first`` to ``last`` for any number of activation rows: with one, four
groups are read side by side, which is what brings memory to its full rate; with several, four
rows share every weight that is unpacked.  A result is summed in the same order either way, so
a token has the same bits alone and in a batch.

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
    signed_sum,
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
def finish_four(
    out: int, stride: int, t0: Lanes, t1: Lanes, t2: Lanes, t3: Lanes, accumulate: int
) -> None:
    """Finish four vectors of results that stand ``stride`` bytes apart."""
    finish(out, t0, accumulate)
    finish(out + stride, t1, accumulate)
    finish(out + 2 * stride, t2, accumulate)
    finish(out + 3 * stride, t3, accumulate)


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
def dot_q4_0(p: int, x: int, x_sum: int) -> Lanes:
    """Sum 32 columns: nibbles less 8, the low ones are columns 0-15, the high ones 16-31."""
    total = splat_i32(0)
    for j in range(4):
        w = load_i8x64(p + 32 + 64 * j)
        high = as_i8(as_i32(w) >> 4)
        total = nibble_dot(total, w & 15, broadcast_4(x + 4 * j))
        total = nibble_dot(total, high & 15, broadcast_4(x + 16 + 4 * j))
    return nibble_sum(total) - splat_i32(x_sum) * 8


@inline
def dot_q8_0(p: int, x: int, x_sum: int) -> Lanes:
    """Sum 32 columns of int8 weights."""
    total = splat_i32(0)
    for j in range(8):
        total = signed_dot(total, load_i8x64(p + 32 + 64 * j), broadcast_4(x + 4 * j))
    return signed_sum(total, splat_i32(x_sum))


def quantised_product(block_bytes: int, dot: Callable[[int, int, int], Lanes]) -> KernelFunction:
    """Return the product kernel of a type with blocks of 32 columns and one float16 scale."""

    @inline
    def add_block(p: int, q: int, scales: int, sums: int, b: int, total: Lanes) -> Lanes:
        """Add a block's products: the integer sum, times the row's and the column's scale."""
        products = to_f32(dot(p, q + 32 * b, load_i32(sums + 4 * b)))
        scale = half_to_float(load_i16x16(p)) * load_f32(scales + 4 * b)
        return fused_multiply_add(products, scale, total)

    @inline
    def add_four(
        p: int, size: int, q: int, scales: int, sums: int, b: int,
        t0: Lanes, t1: Lanes, t2: Lanes, t3: Lanes,
    ) -> tuple[Lanes, Lanes, Lanes, Lanes]:  # fmt: skip
        """Add the products of a block of four groups that are ``size`` bytes apart."""
        return (
            add_block(p, q, scales, sums, b, t0),
            add_block(p + size, q, scales, sums, b, t1),
            add_block(p + 2 * size, q, scales, sums, b, t2),
            add_block(p + 3 * size, q, scales, sums, b, t3),
        )

    @inline
    def one_row(m: View, a: View, row: int, out: int, first: int, last: int, add: int) -> None:
        """Multiply with one row of activations, four groups side by side."""
        q, size = a.q + row * a.q_stride, m.bytes_a_group
        scales, sums = a.scales + row * a.block_stride, a.sums + row * a.block_stride
        n_blocks = m.n_cols // 32
        for g in range(first, last - 3, 4):
            p = m.data + g * size
            t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
            for b in range(n_blocks - TAIL_BLOCKS):
                prefetch_ahead(p, size, block_bytes)
                t0, t1, t2, t3 = add_four(p, size, q, scales, sums, b, t0, t1, t2, t3)
                p += block_bytes
            for b in range(max(n_blocks - TAIL_BLOCKS, 0), n_blocks):
                prefetch_next_four(p + TAIL_BLOCKS * block_bytes, size, block_bytes)
                t0, t1, t2, t3 = add_four(p, size, q, scales, sums, b, t0, t1, t2, t3)
                p += block_bytes
            finish_four(out + 64 * g, 64, t0, t1, t2, t3, add)
        for g in range(last - (last - first) % 4, last):
            p = m.data + g * size
            t0 = splat_f32(0.0)
            for b in range(n_blocks):
                t0 = add_block(p, q, scales, sums, b, t0)
                p += block_bytes
            finish(out + 64 * g, t0, add)

    @inline
    def four_rows(m: View, a: View, row: int, out: int, stride: int, g: int, add: int) -> None:
        """Multiply one group with four rows of activations, which share the unpacked weights."""
        p, q = m.data + g * m.bytes_a_group, a.q + row * a.q_stride
        scales, sums = a.scales + row * a.block_stride, a.sums + row * a.block_stride
        q1, q2, q3 = q + a.q_stride, q + 2 * a.q_stride, q + 3 * a.q_stride
        c1, c2, c3 = (
            scales + a.block_stride, scales + 2 * a.block_stride, scales + 3 * a.block_stride
        )  # fmt: skip
        m1, m2, m3 = sums + a.block_stride, sums + 2 * a.block_stride, sums + 3 * a.block_stride
        t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
        for b in range(m.n_cols // 32):
            t0 = add_block(p, q, scales, sums, b, t0)
            t1 = add_block(p, q1, c1, m1, b, t1)
            t2 = add_block(p, q2, c2, m2, b, t2)
            t3 = add_block(p, q3, c3, m3, b, t3)
            p += block_bytes
        finish_four(out + 64 * g, stride, t0, t1, t2, t3, add)

    return product_kernel(4, four_rows, one_row)


def product_kernel(
    at_once: int, several_rows: Callable[..., None], one_row: Callable[..., None]
) -> KernelFunction:
    """Return the kernel that cuts a product into ``at_once`` rows, and single ones for the rest."""

    @kernel
    def product(
        matrix: int, activations: int, row: int, n_rows: int,
        out: int, stride: int, first: int, last: int, add: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last`` of a matrix with rows of activations.

        Row ``row + i`` gives the results at ``out + i * stride``.
        """
        m, a = Matrix(matrix), Activations(activations)
        whole = n_rows // at_once * at_once
        if whole:
            for g in range(first, last):
                for i in range(0, whole, at_once):
                    several_rows(m, a, row + i, out + i * stride, stride, g, add)
        for i in range(whole, n_rows):
            one_row(m, a, row + i, out + i * stride, first, last, add)

    return product


q4_0 = quantised_product(288, dot_q4_0)
q8_0 = quantised_product(544, dot_q8_0)


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

    @inline
    def one_row(m: View, a: View, row: int, out: int, first: int, last: int, add: int) -> None:
        """Multiply with one row of activations, four groups side by side."""
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
            finish_four(out + 64 * g, 64, t0, t1, t2, t3, add)
        for g in range(last - (last - first) % 4, last):
            p = m.data + g * size
            t0 = splat_f32(0.0)
            for c in range(0, 4 * m.n_cols, 4):
                t0 = add_column(p, x + c, t0)
                p += column_bytes
            finish(out + 64 * g, t0, add)

    @inline
    def four_rows(m: View, a: View, row: int, out: int, stride: int, g: int, add: int) -> None:
        """Multiply one group with four rows of activations, which share the unpacked weights."""
        p, x = m.data + g * m.bytes_a_group, a.x + row * a.x_stride
        x1, x2, x3 = x + a.x_stride, x + 2 * a.x_stride, x + 3 * a.x_stride
        t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
        for c in range(0, 4 * m.n_cols, 4):
            t0 = add_column(p, x + c, t0)
            t1 = add_column(p, x1 + c, t1)
            t2 = add_column(p, x2 + c, t2)
            t3 = add_column(p, x3 + c, t3)
            p += column_bytes
        finish_four(out + 64 * g, stride, t0, t1, t2, t3, add)

    return product_kernel(4, four_rows, one_row)


f32 = float_product(64, weights_f32)
f16 = float_product(32, weights_f16)
bf16 = float_product(32, weights_bf16)
