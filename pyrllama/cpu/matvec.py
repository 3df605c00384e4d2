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
def step_q4_0(total: Lanes, p: int, x: int, j: int) -> Lanes:
    """Add columns ``4j`` to ``4j + 3``, the low nibbles, and those 16 further, the high ones."""
    w = load_i8x64(p + 32 + 64 * j)
    high = as_i8(as_i32(w) >> 4)
    total = nibble_dot(total, w & 15, broadcast_4(x + 4 * j))
    return nibble_dot(total, high & 15, broadcast_4(x + 16 + 4 * j))


@inline
def end_q4_0(total: Lanes, x_sum: int) -> Lanes:
    """Return the integer sums of a block: a nibble means itself less 8."""
    return nibble_sum(total) - splat_i32(x_sum) * 8


@inline
def step_q8_0(total: Lanes, p: int, x: int, j: int) -> Lanes:
    """Add columns ``4j`` to ``4j + 3`` and those 16 further."""
    total = signed_dot(total, load_i8x64(p + 32 + 64 * j), broadcast_4(x + 4 * j))
    return signed_dot(total, load_i8x64(p + 288 + 64 * j), broadcast_4(x + 16 + 4 * j))


@inline
def end_q8_0(total: Lanes, x_sum: int) -> Lanes:
    """Return the integer sums of a block."""
    return signed_sum(total, splat_i32(x_sum))


def quantised_product(
    block_bytes: int,
    step: Callable[[Lanes, int, int, int], Lanes],
    end: Callable[[Lanes, int], Lanes],
) -> KernelFunction:
    """Return the product kernel of a type with blocks of 32 columns and one float16 scale.

    ``step`` adds an eighth of a block's columns, and another eighth, to integer sums of 16
    rows; ``end`` makes the sums of four steps the block's.
    """

    @inline
    def scaled(products: Lanes, p: int, x_scale: float, total: Lanes) -> Lanes:
        """Add a block's integer sums times the rows' scales and the activations' scale."""
        scale = half_to_float(load_i16x16(p)) * x_scale
        return fused_multiply_add(to_f32(products), scale, total)

    @inline
    def add_four(
        p: int, p_step: int, q: int, q_step: int, scales: int, sums: int, s_step: int,
        t0: Lanes, t1: Lanes, t2: Lanes, t3: Lanes,
    ) -> tuple[Lanes, Lanes, Lanes, Lanes]:  # fmt: skip
        """Add four products of a block: of four groups (``p_step``), or four rows (the others).

        What the four have in common, broadcast activations or unpacked weights, is made once;
        they go on together, so that no more of it is held at a time than registers take.
        """
        n0, n1, n2, n3 = splat_i32(0), splat_i32(0), splat_i32(0), splat_i32(0)
        for j in range(4):
            n0 = step(n0, p, q, j)
            n1 = step(n1, p + p_step, q + q_step, j)
            n2 = step(n2, p + 2 * p_step, q + 2 * q_step, j)
            n3 = step(n3, p + 3 * p_step, q + 3 * q_step, j)
        n0, n1 = end(n0, load_i32(sums)), end(n1, load_i32(sums + s_step))
        n2, n3 = end(n2, load_i32(sums + 2 * s_step)), end(n3, load_i32(sums + 3 * s_step))
        return (
            scaled(n0, p, load_f32(scales), t0),
            scaled(n1, p + p_step, load_f32(scales + s_step), t1),
            scaled(n2, p + 2 * p_step, load_f32(scales + 2 * s_step), t2),
            scaled(n3, p + 3 * p_step, load_f32(scales + 3 * s_step), t3),
        )

    @inline
    def one_group(p: int, n_blocks: int, q: int, scales: int, sums: int) -> Lanes:
        """Multiply one group with one row of activations."""
        total = splat_f32(0.0)
        for b in range(n_blocks):
            products = splat_i32(0)
            for j in range(4):
                products = step(products, p, q + 32 * b, j)
            products = end(products, load_i32(sums + 4 * b))
            total = scaled(products, p, load_f32(scales + 4 * b), total)
            p += block_bytes
        return total

    @inline
    def one_row(m: View, a: View, row: int, out: int, first: int, last: int, add: int) -> None:
        """Multiply with one row of activations, four groups side by side."""
        q, size, n_blocks = a.q + row * a.q_stride, m.bytes_a_group, m.n_cols // 32
        scales, sums = a.scales + row * a.block_stride, a.sums + row * a.block_stride
        for g in range(first, last - 3, 4):
            p = m.data + g * size
            t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
            for b in range(n_blocks - TAIL_BLOCKS):
                prefetch_ahead(p, size, block_bytes)
                c, s = scales + 4 * b, sums + 4 * b
                t0, t1, t2, t3 = add_four(p, size, q + 32 * b, 0, c, s, 0, t0, t1, t2, t3)
                p += block_bytes
            for b in range(max(n_blocks - TAIL_BLOCKS, 0), n_blocks):
                prefetch_next_four(p + TAIL_BLOCKS * block_bytes, size, block_bytes)
                c, s = scales + 4 * b, sums + 4 * b
                t0, t1, t2, t3 = add_four(p, size, q + 32 * b, 0, c, s, 0, t0, t1, t2, t3)
                p += block_bytes
            finish_four(out + 64 * g, 64, t0, t1, t2, t3, add)
        for g in range(last - (last - first) % 4, last):
            finish(out + 64 * g, one_group(m.data + g * size, n_blocks, q, scales, sums), add)

    @inline
    def four_rows(m: View, a: View, row: int, out: int, stride: int, g: int, add: int) -> None:
        """Multiply one group with four rows of activations, which share the unpacked weights."""
        p, q, q_step = m.data + g * m.bytes_a_group, a.q + row * a.q_stride, a.q_stride
        scales, sums = a.scales + row * a.block_stride, a.sums + row * a.block_stride
        s_step = a.block_stride
        t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
        for b in range(m.n_cols // 32):
            c, s = scales + 4 * b, sums + 4 * b
            t0, t1, t2, t3 = add_four(p, 0, q + 32 * b, q_step, c, s, s_step, t0, t1, t2, t3)
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


q4_0 = quantised_product(288, step_q4_0, end_q4_0)
q8_0 = quantised_product(544, step_q8_0, end_q8_0)


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
