"""Products of packed weight matrices with one row of activations, one kernel a storage type.

A matrix is cut into groups of 16 rows (see ``layout.py``), and a lane of a vector is a row.  A
kernel computes groups ``first`` to ``last``.  Four groups are read side by side, which brought
memory to its full rate on a Zen 3; with AVX-512, quantised ones are read one by one: on a Zen 5
that gave 92 % of the rate and four side by side 81 %.  ``matmul.py`` multiplies several rows and
sums in the same order, so that a token has the same bits alone and in a batch.

``accumulate`` adds to what ``out`` holds (the residual stream) instead of overwriting it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.cpu.blocks import blocks_of
from pyrllama.cpu.finishing import finisher
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.instructions import (
    fused_multiply_add,
    half_to_float,
    has_pairs,
    hide,
    keep_order,
    prefetch_once,
)
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.levels import PAIRS, over_pairs
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, SUMS, WIDE_BYTES
from pyrllama.cpu.simd import (
    as_f32,
    as_i8,
    load_f32,
    load_f32x16,
    load_i16x16,
    load_i32,
    splat_f32,
    splat_i32,
    store,
    widen_u16,
)
from pyrllama.cpu.vectors import Lanes

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)

PREFETCH = 1024
"""Bytes ahead of the weights in use that are asked for, in each of four groups.

They are read once a token, and so brought past the larger caches."""
STREAM_PREFETCH = 5120
"""The same where groups are read one by one."""
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
            prefetch_once(p + group * size + PREFETCH + line)


@inline
def prefetch_next_four(p: int, size: int, n_bytes: int) -> None:
    """Ask for the beginnings of the next four groups, which no prefetcher foresees.

    ``p`` is as far behind the end of the first of the present four as the place asked for is
    behind the beginning of the first of the next.
    """
    for group in range(3, 7):
        for line in range(0, n_bytes, 64):
            prefetch_once(p + group * size + line)


# --- types with int8 activations --------------------------------------------------------------


@inline
def broadcast_4(x: int) -> Lanes:
    """Copy four int8 activations to all 16 rows."""
    return as_i8(splat_i32(load_i32(x)))


Section = Callable[[Lanes, int, int, int, int, Lanes], Lanes]
"""``add(total, p, q, i, x, begin)``: the total with a section of the 32 columns at ``q``."""


def section_adder(format_: Format, section: int) -> Section:
    """Return what adds the products of a section, times their run's scale, to a total.

    Run ``i`` of the packed block at ``p`` is the first of the 32 columns.
    """
    blocks, sections = blocks_of(format_), format_.sections
    dot, end, scale_of, run_scale = (
        blocks.products.dot, blocks.products.end, blocks.products.scale, blocks.run_scale
    )  # fmt: skip
    pairs, run = PAIRS // sections, section * format_.runs // sections
    first = section * pairs

    @inline
    def step(sums: Lanes, w0: Lanes, w1: Lanes, x: int, i: int) -> Lanes:
        """Add the products of a pair."""
        return dot(dot(sums, w0, broadcast_4(x + 8 * i)), w1, broadcast_4(x + 8 * i + 4))

    steps = over_pairs(blocks.operands[first : first + pairs], first, step)

    @inline
    def add(total: Lanes, p: int, q: int, i: int, x: int, begin: Lanes) -> Lanes:
        """Add the section, whose sums begin at ``begin``."""
        return end(total, steps(begin, q, x), scale_of(run_scale(p, i + run)))

    return add


def quantised_product(format_: Format) -> KernelFunction:
    """Return the product kernel of a quantised type."""
    start, offset = blocks_of(format_).products.start, np.int32(format_.offset)
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    blocks, columns, runs, sections = (
        format_.blocks, format_.columns, format_.runs, format_.sections
    )  # fmt: skip
    tail = max(TAIL_COLUMNS // columns, 1)
    asked_bytes = packed_bytes // blocks
    wide = format_.form == WIDE_BYTES
    add_first, add_last = (section_adder(format_, section) for section in (0, sections - 1))
    finish_block, has_minimums = finisher(format_), format_.has_minimums

    @inline
    def add_block(n: Lanes, p: int, q: int, i: int, x: int, begin: Lanes, begin_1: Lanes) -> Lanes:
        """Add 32 columns, which are run ``i`` or begin with it."""
        n = add_first(n, p, q, i, x, begin)
        if sections == 2:
            n = add_last(n, p, q, i, x, begin_1)
        return n

    @inline
    def begins(sums: int) -> tuple[Lanes, Lanes]:
        """Return how the sums of one or two sections begin."""
        if sections == 1:
            return start(splat_i32(load_i32(sums)), offset), splat_i32(0)
        first, last = splat_i32(load_i32(sums + 4)), splat_i32(load_i32(sums + 8))
        return start(first, offset), start(last, offset)

    @inline
    def one_group(p: int, n_packed: int, a: View, x: int, at: int) -> Lanes:
        """Multiply one group."""
        total = splat_f32(0.0)
        for _ in range(n_packed):
            n, scale_x = splat_i32(0), a.scales + at
            sums_x = (a.sums if has_minimums else a.scaled_sums) + SUMS * at
            for b in range(blocks):
                for line in range(0, asked_bytes, 64):
                    prefetch_once(p + b * asked_bytes + STREAM_PREFETCH + line)
                begin, begin_1 = begins(a.sums + SUMS * at)
                n = add_block(n, p, p + head_bytes + b * level_bytes, runs * b, x, begin, begin_1)
                x += 32
                at += 4
            total = finish_block(total, n, p, scale_x, sums_x)
            p += packed_bytes
        return total

    @inline
    def ask(p: int, to_next: int, left: int) -> None:
        """Ask for what follows in a group, or for the beginning of the one four further."""
        if hide(left) <= tail:
            for line in range(0, asked_bytes, 64):
                prefetch_once(p + to_next + line)
        else:
            for line in range(0, asked_bytes, 64):
                prefetch_once(p + PREFETCH + line)

    @kernel
    def product(
        matrix: int, activations: int, row: int, out: int, first: int, last: int, accumulate: int
    ) -> None:
        """Multiply groups ``first`` to ``last`` of a matrix with a row of activations."""
        m, a = Matrix(matrix), Activations(activations)
        if wide:
            a = Activations(a.wide)
        row_x, row_at = a.q + row * a.q_stride, row * a.block_stride
        scales, sums = a.scales, a.sums
        sums_of_addends = sums if has_minimums else a.scaled_sums
        size, n_packed = m.bytes_a_group, m.n_cols // columns
        to_next = 3 * size + tail * packed_bytes
        behind_fours = first if has_pairs() else last - (last - first) % 4
        for g in range(first, behind_fours, 4):
            p, x, at = m.data + g * size, row_x, row_at
            t0, t1, t2, t3 = splat_f32(0.0), splat_f32(0.0), splat_f32(0.0), splat_f32(0.0)
            for left in range(n_packed, 0, -1):
                p0, p1, p2, p3 = hide(p), hide(p + size), hide(p + 2 * size), hide(p + 3 * size)
                scale_x, sums_x = hide(scales + at), hide(sums_of_addends + SUMS * at)
                n0, n1, n2, n3 = splat_i32(0), splat_i32(0), splat_i32(0), splat_i32(0)
                for b in range(blocks):
                    q, i, y = (
                        hide(head_bytes + b * level_bytes),
                        hide(runs * b),
                        hide(b * asked_bytes),
                    )
                    begin, begin_1 = begins(sums + SUMS * at)
                    ask(p0 + y, to_next, left)
                    n0 = add_block(n0, p0, p0 + q, i, x, begin, begin_1)
                    if blocks == 1:
                        t0 = finish_block(t0, n0, p0, scale_x, sums_x)
                    ask(p1 + y, to_next, left)
                    n1 = add_block(n1, p1, p1 + q, i, x, begin, begin_1)
                    if blocks == 1:
                        t1 = finish_block(t1, n1, p1, scale_x, sums_x)
                    ask(p2 + y, to_next, left)
                    n2 = add_block(n2, p2, p2 + q, i, x, begin, begin_1)
                    if blocks == 1:
                        t2 = finish_block(t2, n2, p2, scale_x, sums_x)
                    ask(p3 + y, to_next, left)
                    n3 = add_block(n3, p3, p3 + q, i, x, begin, begin_1)
                    if blocks == 1:
                        t3 = finish_block(t3, n3, p3, scale_x, sums_x)
                    keep_order()
                    x += 32
                    at += 4
                if blocks > 1:
                    t0 = finish_block(t0, n0, p0, scale_x, sums_x)
                    t1 = finish_block(t1, n1, p1, scale_x, sums_x)
                    t2 = finish_block(t2, n2, p2, scale_x, sums_x)
                    t3 = finish_block(t3, n3, p3, scale_x, sums_x)
                p += packed_bytes
            finish_four(out + 64 * g, t0, t1, t2, t3, accumulate)
        for g in range(behind_fours, last):
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
