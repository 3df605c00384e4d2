"""What kernels do with the packed blocks of a quantised type, made from its ``Format``.

The levels of 16 rows and 32 columns are taken as four pairs of vectors: pair ``i`` holds columns
``8i`` to ``8i + 3`` of every row, and the four after them.  They lie in planes, one behind the
other, with four bytes a row:

======  =======  ========================================================================
plane   vectors  pair ``i``
======  =======  ========================================================================
8 bits  8        vectors ``2i`` and ``2i + 1``
4 bits  4        the low and the high four bits of vector ``i``
2 bits  2        bits 0 and 2 (``i`` even), or 4 and 6 and those above, of vector ``i // 2``
1 bit   1        bits ``2i`` and ``2i + 1``
======  =======  ========================================================================

Levels of 5, 6 and 3 bits are a plane of four, four and two with one of the bits above.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyrllama.cpu.formats import Dot, Format, Head
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.simd import (
    Lanes,
    as_f32,
    as_i8,
    as_i32,
    half_to_float,
    load_i8x16,
    load_i8x64,
    load_i16x16,
    load_i32,
    load_i32x16,
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
    store,
    to_f32,
    wide_dot,
    wide_dot_rows,
    wide_start,
    wide_start_rows,
    widen_i8,
)

if TYPE_CHECKING:
    from collections.abc import Callable

f32, i32 = np.float32, np.int32
PAIRS = 4
"""Pairs of vectors in the levels of 32 columns."""


# --- planes -----------------------------------------------------------------------------------


@inline
def moved(w: Lanes, source: int, target: int) -> Lanes:
    """Move bits of every byte from one place to another; others come along."""
    if source <= target:
        return as_i8(w << (target - source))
    return as_i8(w >> (source - target))


@inline
def pair_of_8(q: int, i: int) -> tuple[Lanes, Lanes]:
    """Return a pair of bytes."""
    return load_i8x64(q + 128 * i), load_i8x64(q + 128 * i + 64)


@inline
def pair_of_4(q: int, i: int) -> tuple[Lanes, Lanes]:
    """Return a pair from a plane of four bits."""
    w = load_i32x16(q + 64 * i)
    return as_i8(w) & 15, as_i8(w >> 4) & 15


@inline
def pair_of_2(q: int, i: int, target: int) -> tuple[Lanes, Lanes]:
    """Return a pair from a plane of two bits, moved up to a place."""
    w, place, mask = load_i32x16(q + 64 * (i >> 1)), 4 * (i & 1), 3 << target
    return moved(w, place, target) & mask, moved(w, place + 2, target) & mask


@inline
def pair_of_1(q: int, i: int, target: int) -> tuple[Lanes, Lanes]:
    """Return a pair from a plane of one bit, moved up to a place."""
    w, mask = load_i32x16(q), 1 << target
    return moved(w, 2 * i, target) & mask, moved(w, 2 * i + 1, target) & mask


@inline
def pair_of_2_alone(q: int, i: int) -> tuple[Lanes, Lanes]:
    """Return a pair of levels of two bits."""
    return pair_of_2(q, i, 0)


@inline
def pair_of_3(q: int, i: int) -> tuple[Lanes, Lanes]:
    """Return a pair of levels of three bits."""
    first, second = pair_of_2(q, i, 0)
    high, higher = pair_of_1(q + 128, i, 2)
    return first | high, second | higher


@inline
def pair_of_5(q: int, i: int) -> tuple[Lanes, Lanes]:
    """Return a pair of levels of five bits."""
    first, second = pair_of_4(q, i)
    high, higher = pair_of_1(q + 256, i, 4)
    return first | high, second | higher


@inline
def pair_of_6(q: int, i: int) -> tuple[Lanes, Lanes]:
    """Return a pair of levels of six bits."""
    first, second = pair_of_4(q, i)
    high, higher = pair_of_2(q + 256, i, 4)
    return first | high, second | higher


_PAIRS: dict[int, Callable[[int, int], tuple[Lanes, Lanes]]] = {
    2: pair_of_2_alone,
    3: pair_of_3,
    4: pair_of_4,
    5: pair_of_5,
    6: pair_of_6,
    8: pair_of_8,
}


# --- planes from bytes, the inverse -----------------------------------------------------------


@inline
def field(levels: int, group: int, source: int, bits: int, target: int) -> Lanes:
    """Return some bits of four columns' levels, given as bytes, at another place."""
    w = load_i32x16(levels + 64 * group)
    return as_i32(moved(w, source, target) & (((1 << bits) - 1) << target))


@inline
def put_8(levels: int, q: int) -> None:
    """Copy levels of eight bits."""
    for group in range(8):
        store(q + 64 * group, load_i32x16(levels + 64 * group))


@inline
def put_4(levels: int, q: int) -> None:
    """Store the low four bits of eight vectors of levels as a plane."""
    for i in range(PAIRS):
        store(q + 64 * i, field(levels, 2 * i, 0, 4, 0) | field(levels, 2 * i + 1, 0, 4, 4))


@inline
def put_2(levels: int, q: int, source: int) -> None:
    """Store two bits of eight vectors of levels as a plane."""
    for half in range(2):
        w = splat_i32(0)
        for group in range(4):
            w = w | field(levels, 4 * half + group, source, 2, 2 * group)
        store(q + 64 * half, w)


@inline
def put_1(levels: int, q: int, source: int) -> None:
    """Store one bit of eight vectors of levels as a plane."""
    w = splat_i32(0)
    for group in range(8):
        w = w | field(levels, group, source, 1, group)
    store(q, w)


def put_levels(bits: int) -> Callable[[int, int], None]:
    """Return what stores eight vectors of levels, as bytes, in planes at ``q``."""

    @inline
    def put(levels: int, q: int) -> None:
        if bits == 8:
            put_8(levels, q)
        elif bits in (2, 3):
            put_2(levels, q, 0)
        else:
            put_4(levels, q)
        if bits in (3, 5):
            put_1(levels, q + 64 * (bits - 1), bits - 1)
        elif bits == 6:
            put_2(levels, q + 256, 4)

    return put


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


class Blocks(NamedTuple):
    """How the blocks of a format are read."""

    operands: Callable[[int, int], tuple[Lanes, Lanes]]
    """``operands(q, i)``: what products take of pair ``i`` of the levels at ``q``."""
    scale: Callable[[int, int], Lanes]
    """``scale(p, i)``: of run ``i`` of the packed block at ``p``, 16 float32."""
    addend: Callable[[int, int], Lanes]
    products: Products


@cache
def blocks_of(format_: Format) -> Blocks:
    """Return how a format's blocks are read."""
    return Blocks(
        _operands(format_), _scale(format_), _addend(format_), _products(format_.dot, format_)
    )


def _operands(format_: Format) -> Callable[[int, int], tuple[Lanes, Lanes]]:
    pair = _PAIRS[format_.bits]
    if not format_.table:
        return pair
    lookup = lookup_in(format_.table)

    @inline
    def operands(q: int, i: int) -> tuple[Lanes, Lanes]:
        first, second = pair(q, i)
        return lookup(first), lookup(second)

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
def nibble_dot_of_two(total: Lanes, w0: Lanes, x0: Lanes, w1: Lanes, x1: Lanes) -> Lanes:
    """Add the products of two vectors of small levels."""
    return nibble_dot(nibble_dot(total, w0, x0), w1, x1)


def _products(dot: Dot, format_: Format) -> Products:
    start, start_rows, add, add_rows, end, end_rows = {
        Dot.NIBBLE: (
            nibble_start, nibble_start_rows, nibble_dot_of_two, nibble_dot_rows,
            nibble_sum, nibble_sum_rows,
        ),
        Dot.WIDE: (wide_start, wide_start_rows, wide_dot, wide_dot_rows, complete, complete),
        Dot.SIGNED: (
            signed_start, signed_start_rows, signed_dot_of_two, signed_dot_rows,
            complete, complete,
        ),
    }[dot]  # fmt: skip
    offset = 1 if dot is Dot.SIGNED else format_.offset

    @inline
    def begin(sums: int) -> Lanes:
        return splat_i32(start(i32(load_i32(sums) * offset)))

    return Products(begin, add, end, start_rows, add_rows, end_rows, offset)
