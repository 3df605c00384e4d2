"""What kernels do with the packed blocks of a quantised type, made from its ``Format``.

What reads a block is put together while a kernel is made, so no kernel decides anything about
formats when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from pyrllama.cpu.formats import Dot, Format, Head
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.levels import PAIRS, Read, read_levels
from pyrllama.cpu.simd import (
    Lanes,
    as_f32,
    half_to_float,
    load_i8x16,
    load_i16x16,
    load_i32,
    lookup_in,
    nibble_dot,
    nibble_dot_rows,
    nibble_start,
    nibble_start_rows,
    nibble_sum,
    nibble_sum_rows,
    signed_dot,
    signed_dot_rows,
    signed_start,
    signed_start_rows,
    splat_f32,
    splat_i32,
    symmetric_dot,
    to_f32,
    wide_dot,
    wide_dot_rows,
    wide_start,
    wide_start_rows,
    widen_i8,
)

f32, i32 = np.float32, np.int32


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
def one_scale(p: int, _i: int) -> Lanes:
    """Return the scales of a head of one."""
    return half_at_row(p)


@inline
def one_addend(p: int, _i: int) -> Lanes:
    """Return the addends of a head of one."""
    return half_at_row(p + 32)


@inline
def power_of_two(p: int, _i: int) -> Lanes:
    """Return ``2^(e - 128)``, as a product of two powers that are no denormals."""
    e = widen_i8(load_i8x16(p)) & 255
    low = e >> 1
    return as_f32((low + 63) << 23) * as_f32((e - low + 63) << 23)


@inline
def paired_scale(p: int, i: int) -> Lanes:
    """Return the scales of a run, the low four bits of a byte."""
    return half_at_row(p) * to_f32(widen_i8(load_i8x16(p + 64 + 16 * i)) & 15)


@inline
def paired_addend(p: int, i: int) -> Lanes:
    """Return the addends of a run, the high four bits of a byte."""
    m = (widen_i8(load_i8x16(p + 64 + 16 * i)) >> 4) & 15
    return half_at_row(p + 32) * f32(-1.0) * to_f32(m)


@inline
def byte_pair_scale(p: int, i: int) -> Lanes:
    """Return the scales of a run of Q4_K and Q5_K."""
    return half_at_row(p) * to_f32(widen_i8(load_i8x16(p + 64 + 32 * i)))


@inline
def byte_pair_addend(p: int, i: int) -> Lanes:
    """Return the addends of a run of Q4_K and Q5_K."""
    minus = half_at_row(p + 32) * f32(-1.0)  # made once for all runs
    return minus * to_f32(widen_i8(load_i8x16(p + 80 + 32 * i)))


def byte_scale(factor: float) -> Callable[[int, int], Lanes]:
    """Return what reads scales of signed bytes, in units of a factor."""
    unit = f32(factor)

    @inline
    def scale(p: int, i: int) -> Lanes:
        return half_at_row(p) * unit * to_f32(widen_i8(load_i8x16(p + 32 + 16 * i)))

    return scale


# --- all that a format needs ------------------------------------------------------------------


class Products(NamedTuple):
    """How sums of products of a format's operands begin, go on and end."""

    start: Callable[[int], Lanes]
    """``start(sums)``: with the integer sum of the activations there."""
    dot: Callable[[Lanes, Lanes, Lanes, Lanes, Lanes], Lanes]
    """``dot(total, w0, x0, w1, x1)``."""
    end: Callable[[Lanes], Lanes]
    start_rows: Callable[[int, int, int], Any]
    """``start_rows(rows, sums, offset)``, for a tuple of rows."""
    dot_rows: Callable[[Any, Lanes, Lanes, int, int], Any]
    end_rows: Callable[[Any], Any]
    offset: int
    """What ``start_rows`` is to be given."""
    in_halves: bool
    """Whether every two pairs have a sum of their own, from zero to ``nibble_sum``."""


class Blocks(NamedTuple):
    """How the blocks of a format are read."""

    operands: tuple[Read, ...]
    """What products take of each pair of the levels."""
    scale: Callable[[int, int], Lanes]
    """``scale(p, i)``: of run ``i`` of the packed block at ``p``, 16 float32."""
    addend: Callable[[int, int], Lanes]
    products: Products


@cache
def blocks_of(format_: Format) -> Blocks:
    """Return how a format's blocks are read."""
    operands = tuple(_operands(format_, i) for i in range(PAIRS))
    return Blocks(operands, _scale(format_), _addend(format_), _products(format_.dot, format_))


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


def _scale(format_: Format) -> Callable[[int, int], Lanes]:
    match format_.head:
        case Head.SCALE | Head.SCALE_AND_ADDEND:
            return one_scale
        case Head.EXPONENT:
            return power_of_two
        case Head.BYTES:
            return byte_scale(format_.factor)
        case Head.NIBBLE_PAIRS:
            return paired_scale
        case Head.BYTE_PAIRS:
            return byte_pair_scale


def _addend(format_: Format) -> Callable[[int, int], Lanes]:
    match format_.head:
        case Head.SCALE_AND_ADDEND:
            return one_addend
        case Head.NIBBLE_PAIRS:
            return paired_addend
        case Head.BYTE_PAIRS:
            return byte_pair_addend
        case _:
            return no_addend


@inline
def complete(sums: Any) -> Any:
    """Return integer sums that need no end."""
    return sums


@inline
def signed_dot_of_two(total: Lanes, w0: Lanes, x0: Lanes, w1: Lanes, x1: Lanes) -> Lanes:
    """Add the products of two vectors of signed bytes."""
    return signed_dot(signed_dot(total, w0, x0), w1, x1)


@inline
def symmetric_dot_of_two(total: Lanes, w0: Lanes, x0: Lanes, w1: Lanes, x1: Lanes) -> Lanes:
    """Add the products of two vectors of signed bytes, none of which is -128."""
    return symmetric_dot(symmetric_dot(total, w0, x0), w1, x1)


@inline
def nibble_dot_of_two(total: Lanes, w0: Lanes, x0: Lanes, w1: Lanes, x1: Lanes) -> Lanes:
    """Add the products of two vectors of small levels."""
    return nibble_dot(nibble_dot(total, w0, x0), w1, x1)


def _products(dot: Dot, format_: Format) -> Products:
    start, start_rows, add, add_rows, end, end_rows = {
        Dot.NIBBLE: (
            nibble_start, nibble_start_rows, nibble_dot_of_two, nibble_dot_rows,
            nibble_sum, nibble_sum_rows,
        ),
        Dot.HALVES: (
            wide_start, wide_start_rows, nibble_dot_of_two, nibble_dot_rows, complete, complete,
        ),
        Dot.WIDE: (wide_start, wide_start_rows, wide_dot, wide_dot_rows, complete, complete),
        Dot.SIGNED: (
            signed_start, signed_start_rows, signed_dot_of_two, signed_dot_rows,
            complete, complete,
        ),
        Dot.SYMMETRIC: (
            signed_start, signed_start_rows, symmetric_dot_of_two, signed_dot_rows,
            complete, complete,
        ),
    }[dot]  # fmt: skip
    offset = 1 if format_.is_signed else format_.offset

    @inline
    def begin(sums: int) -> Lanes:
        return splat_i32(start(i32(load_i32(sums) * offset)))

    in_halves = dot is Dot.HALVES
    return Products(begin, add, end, start_rows, add_rows, end_rows, offset, in_halves)


Sums = Callable[[Any, int, int], Any]
"""``sums(totals, q, x)``: integer totals with the products of some pairs."""


def sums_of_halves(
    halves: list[Sums], zero: Callable[[], Any], join: Callable[[Any, Any], Any]
) -> Sums:
    """Return what joins the sums of halves, each from zero on, to totals."""
    first, *others = halves

    @inline
    def one(totals: Any, q: int, x: int) -> Any:
        return join(totals, first(zero(), q, x))

    if not others:
        return one
    rest = sums_of_halves(others, zero, join)

    @inline
    def all_of_them(totals: Any, q: int, x: int) -> Any:
        return rest(one(totals, q, x), q, x)

    return all_of_them
