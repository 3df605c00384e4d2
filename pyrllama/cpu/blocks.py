"""What kernels do with the packed blocks of a quantised type, made from its ``Format``.

What reads a block is put together while a kernel is made, so no kernel decides anything about
formats when it runs.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyrllama.cpu.formats import Dot, Format, Head
from pyrllama.cpu.instructions import (
    half_to_float,
    lookup_in,
    run_scale,
    signed_dot,
    signed_start,
    symmetric_dot,
    unsigned_dot,
    unsigned_end,
    unsigned_start,
)
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.levels import PAIRS, Read, read_levels
from pyrllama.cpu.row_vectors import (
    signed_dot_rows,
    signed_end_rows,
    signed_start_rows,
    unsigned_dot_rows,
    unsigned_end_rows,
    unsigned_start_rows,
)
from pyrllama.cpu.simd import (
    as_f32,
    load_i8x16,
    load_i16x16,
    splat_f32,
    splat_i32,
    to_f32,
    widen_i8,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.vectors import Lanes

f32 = np.float32


# --- heads ------------------------------------------------------------------------------------


@inline
def half_at_row(p: int) -> Lanes:
    """Read a float16 of every row."""
    return half_to_float(load_i16x16(p))


@inline
def no_addend(_p: int, _i: int) -> Lanes:
    """Return zeros: nothing is added."""
    return splat_f32(0.0)


@inline
def one_addend(p: int, _i: int) -> Lanes:
    """Return the addends of a head of one."""
    return half_at_row(p + 32)


@inline
def power_of_two(p: int) -> Lanes:
    """Return ``2^(e - 128)``, as a product of two powers that are no denormals."""
    e = widen_i8(load_i8x16(p)) & 255
    low = e >> 1
    return as_f32((low + 63) << 23) * as_f32((e - low + 63) << 23)


def scaled_half(factor: float) -> Callable[[int], Lanes]:
    """Return what reads the scales of blocks in units of a factor."""
    if factor == 1.0:
        return half_at_row
    unit = f32(factor)

    @inline
    def scale(p: int) -> Lanes:
        return half_at_row(p) * unit

    return scale


@inline
def no_run_scale(_p: int, _i: int) -> Lanes:
    """Return ones: the block's scale is that of its runs."""
    return splat_i32(1)


@inline
def byte_scale(p: int, i: int) -> Lanes:
    """Return the scales of a run, signed bytes."""
    return widen_i8(load_i8x16(p + 32 + 16 * i))


@inline
def paired_scale(p: int, i: int) -> Lanes:
    """Return the scales of a run, the low four bits of a byte."""
    return widen_i8(load_i8x16(p + 64 + 16 * i)) & 15


@inline
def paired_minimum(p: int, i: int) -> Lanes:
    """Return the minimums of a run, the high four bits of a byte."""
    return (widen_i8(load_i8x16(p + 64 + 16 * i)) >> 4) & 15


@inline
def byte_pair_scale(p: int, i: int) -> Lanes:
    """Return the scales of a run of Q4_K and Q5_K."""
    return widen_i8(load_i8x16(p + 64 + 32 * i))


@inline
def byte_pair_minimum(p: int, i: int) -> Lanes:
    """Return the minimums of a run of Q4_K and Q5_K."""
    return widen_i8(load_i8x16(p + 80 + 32 * i))


@inline
def no_minimum(_p: int, _i: int) -> Lanes:
    """Return zeros: nothing is taken off."""
    return splat_i32(0)


@inline
def minus_at_row(p: int) -> Lanes:
    """Return what a minimum of every row adds."""
    return half_at_row(p + 32) * f32(-1.0)


def addend_of(minimum: Callable[[int, int], Lanes]) -> Callable[[int, int], Lanes]:
    """Return what reads the addends that minimums are."""

    @inline
    def addend(p: int, i: int) -> Lanes:
        return minus_at_row(p) * to_f32(minimum(p, i))

    return addend


# --- all that a format needs ------------------------------------------------------------------


class Products(NamedTuple):
    """How the runs of products of a format's operands begin, go on and end; see ``isa.py``."""

    start: Callable[[Lanes, Any], Lanes]
    """``start(pair_sums, offset)``."""
    dot: Callable[[Lanes, Lanes, Lanes], Lanes]
    """``dot(sums, w, x)``."""
    end: Callable[[Lanes, Lanes, Lanes], Lanes]
    """``end(total, sums, scale)``."""
    start_rows: Callable[[int, int, int], Any]
    """``start_rows(rows, sums, offset)``, for a tuple of rows, with sums as six rows have them."""
    dot_rows: Callable[[Any, Lanes, Lanes, int, int], Any]
    end_rows: Callable[[Any, Any, Lanes], Any]
    scale: Callable[[Lanes], Lanes]
    """Makes of whole numbers what ``end`` takes as scales."""


class Blocks(NamedTuple):
    """How the blocks of a format are read; ``p`` is a packed one, ``i`` the number of a run."""

    operands: tuple[Read, ...]
    """What products take of each pair of the levels."""
    unit: Callable[[int], Lanes]
    """``unit(p)``: the scales that its runs share, 16 float32."""
    run_scale: Callable[[int, int], Lanes]
    """``run_scale(p, i)``: those of a run in such units, 16 int32."""
    addend: Callable[[int, int], Lanes]
    """``addend(p, i)``: 16 float32."""
    minimum: Callable[[int, int], Lanes]
    """``minimum(p, i)``: the addends of a run, where they are whole numbers, in units of
    ``minus_at_row``."""
    products: Products

    @property
    def scale(self) -> Callable[[int, int], Lanes]:
        """``scale(p, i)``: the scales of a run, 16 float32."""
        unit, run_scale = self.unit, self.run_scale

        @inline
        def scale(p: int, i: int) -> Lanes:
            return unit(p) * to_f32(run_scale(p, i))

        return scale


@cache
def blocks_of(format_: Format) -> Blocks:
    """Return how a format's blocks are read."""
    operands = tuple(_operands(format_, i) for i in range(PAIRS))
    unit = power_of_two if format_.head is Head.EXPONENT else scaled_half(format_.factor)
    minimum = _minimum(format_)
    addend = addend_of(minimum) if format_.has_minimums else _addend(format_)
    return Blocks(operands, unit, _run_scale(format_), addend, minimum, _PRODUCTS[format_.dot])


def _operands(format_: Format, i: int) -> Read:
    one, other = (read_levels(format_.bits, columns) for columns in (2 * i, 2 * i + 1))

    @inline
    def levels(q: int) -> tuple[Lanes, Lanes]:
        return one(q), other(q)

    if not format_.table:
        return levels
    lookup = lookup_in(format_.table)

    @inline
    def operands(q: int) -> tuple[Lanes, Lanes]:
        return lookup(one(q)), lookup(other(q))

    return operands


def _run_scale(format_: Format) -> Callable[[int, int], Lanes]:
    match format_.head:
        case Head.BYTES:
            return byte_scale
        case Head.NIBBLE_PAIRS:
            return paired_scale
        case Head.BYTE_PAIRS:
            return byte_pair_scale
        case _:
            return no_run_scale


def _addend(format_: Format) -> Callable[[int, int], Lanes]:
    match format_.head:
        case Head.SCALE_AND_ADDEND:
            return one_addend
        case _:
            return no_addend


def _minimum(format_: Format) -> Callable[[int, int], Lanes]:
    match format_.head:
        case Head.NIBBLE_PAIRS:
            return paired_minimum
        case Head.BYTE_PAIRS:
            return byte_pair_minimum
        case _:
            return no_minimum


@inline
def signed_end(total: Lanes, sums: Lanes, scale: Lanes) -> Lanes:
    """Add sums of 32 bits times their scale."""
    return total + sums * scale


@inline
def whole_number(scale: Lanes) -> Lanes:
    """Return the scale of a signed run, which is taken as it is."""
    return scale


_PRODUCTS = {
    Dot.UNSIGNED: Products(
        unsigned_start, unsigned_dot, unsigned_end,
        unsigned_start_rows, unsigned_dot_rows, unsigned_end_rows, run_scale,
    ),
    Dot.SIGNED: Products(
        signed_start, signed_dot, signed_end,
        signed_start_rows, signed_dot_rows, signed_end_rows, whole_number,
    ),
    Dot.SYMMETRIC: Products(
        signed_start, symmetric_dot, signed_end,
        signed_start_rows, signed_dot_rows, signed_end_rows, whole_number,
    ),
}  # fmt: skip
