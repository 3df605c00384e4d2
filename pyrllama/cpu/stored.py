"""Blocks as files store them, taken apart: the heads and the levels of one row.

``take_<type>(p, head, levels)`` reads the stored block at ``p`` and writes its levels, a byte
each, in the order of the columns, and its head, number after number as ``Format.head_fields``
lists them.  What the bits mean is stated in ``quants``; this is the same with vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.cpu.formats import FORMATS
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.simd import load_i8x16, load_i8x64, load_i32, load_u8, load_u16, store
from pyrllama.quants import type_size
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.vectors import Lanes

    Take = Callable[[int, int, int], None]

u8, u16, i32 = np.uint8, np.uint16, np.int32


@inline
def copy_half(p: int, out: int) -> None:
    """Copy a float16."""
    store(out, load_u16(p))


@inline
def copy_16(p: int, out: int) -> None:
    """Copy 16 bytes."""
    store(out, load_i8x16(p))


@inline
def split_16(p: int, low: int, high: int) -> None:
    """Cut 16 bytes into their low and their high four bits."""
    w = load_i8x16(p)
    store(low, w & 15)
    store(high, w >> 4)


@inline
def bits_of_bytes(w: Lanes, place: int, count: int, target: int) -> Lanes:
    """Return some bits of every byte at another place."""
    return ((w >> place) & ((1 << count) - 1)) << target


@inline
def or_16(out: int, w: Lanes) -> None:
    """Add bits to 16 levels."""
    store(out, load_i8x16(out) | w)


# --- blocks of 32 -----------------------------------------------------------------------------


def take_32(head_halves: int, fifth_bits: bool) -> Take:
    """Return what takes apart Q4_0, Q4_1, Q5_0, Q5_1 and IQ4_NL."""
    high_bits = 2 * head_halves
    low_bits = high_bits + 4 * fifth_bits

    @inline
    def take(p: int, head: int, levels: int) -> None:
        for i in range(head_halves):
            copy_half(p + 2 * i, head + 2 * i)
        split_16(p + low_bits, levels, levels + 16)
        if fifth_bits:
            bits = np.int64(load_i32(p + high_bits))
            for i in range(32):
                store(levels + i, u8(load_u8(levels + i) | (((bits >> i) & 1) << 4)))

    return take


@inline
def take_q8_0(p: int, head: int, levels: int) -> None:
    """Take apart a block of Q8_0."""
    copy_half(p, head)
    copy_16(p + 2, levels)
    copy_16(p + 18, levels + 16)


@inline
def take_mxfp4(p: int, head: int, levels: int) -> None:
    """Take apart a block of MXFP4."""
    store(head, load_u8(p))
    split_16(p + 1, levels, levels + 16)


# --- super-blocks of 256 ----------------------------------------------------------------------


@inline
def take_2_bits(p: int, levels: int) -> None:
    """Take 256 levels of two bits: a run of 32 bytes holds 128 of them."""
    for run in range(2):
        for half in range(2):
            w = load_i8x16(p + 32 * run + 16 * half)
            for field in range(4):
                place = levels + 128 * run + 32 * field + 16 * half
                store(place, bits_of_bytes(w, 2 * field, 2, 0))


@inline
def take_4_bits(p: int, levels: int) -> None:
    """Take 256 levels of four bits: a run of 32 bytes holds 64 of them."""
    for run in range(4):
        for half in range(2):
            place = levels + 64 * run + 16 * half
            split_16(p + 32 * run + 16 * half, place, place + 32)


@inline
def add_high_bits(p: int, levels: int, target: int) -> None:
    """Add a bit to each of 256 levels: 32 bytes hold those of all."""
    for half in range(2):
        w = load_i8x16(p + 16 * half)
        for field in range(8):
            or_16(levels + 32 * field + 16 * half, bits_of_bytes(w, field, 1, target))


@inline
def take_q2_k(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of Q2_K."""
    copy_half(p + 80, head)
    copy_half(p + 82, head + 2)
    copy_16(p, head + 4)
    take_2_bits(p + 16, levels)


@inline
def take_q3_k(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of Q3_K."""
    copy_half(p + 108, head)
    for i in range(16):
        low = (np.int64(load_u8(p + 96 + i % 8)) >> (4 * (i // 8))) & 15
        high = (np.int64(load_u8(p + 104 + i % 4)) >> (2 * (i // 4))) & 3
        store(head + 2 + i, u8((low | (high << 4)) - 32))
    take_2_bits(p + 32, levels)
    add_high_bits(p, levels, 2)


@inline
def take_six_bit_pairs(p: int, head: int) -> None:
    """Take the head of Q4_K and Q5_K: eight scales and minimums of six bits in twelve bytes."""
    copy_half(p, head)
    copy_half(p + 2, head + 2)
    for i in range(4):
        s, m = np.int64(load_u8(p + 4 + i)), np.int64(load_u8(p + 8 + i))
        late = np.int64(load_u8(p + 12 + i))
        place = head + 4 + 2 * i
        store(place, u8(s & 63))
        store(place + 1, u8(m & 63))
        store(place + 8, u8((late & 15) | ((s >> 6) << 4)))
        store(place + 9, u8((late >> 4) | ((m >> 6) << 4)))


@inline
def take_q4_k(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of Q4_K."""
    take_six_bit_pairs(p, head)
    take_4_bits(p + 16, levels)


@inline
def take_q5_k(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of Q5_K."""
    take_six_bit_pairs(p, head)
    take_4_bits(p + 48, levels)
    add_high_bits(p + 16, levels, 4)


@inline
def take_q6_k(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of Q6_K."""
    copy_half(p + 208, head)
    copy_16(p + 192, head + 2)
    for run in range(2):
        for part in range(4):
            place = levels + 128 * run + 16 * part
            split_16(p + 64 * run + 16 * part, place, place + 64)
        for half in range(2):
            w = load_i8x16(p + 128 + 32 * run + 16 * half)
            for field in range(4):
                place = levels + 128 * run + 32 * field + 16 * half
                or_16(place, bits_of_bytes(w, 2 * field, 2, 4))


@inline
def take_iq4_xs(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of IQ4_XS."""
    copy_half(p, head)
    high = np.int64(load_u16(p + 2))
    for run in range(8):
        low = (np.int64(load_u8(p + 4 + run // 2)) >> (4 * (run % 2))) & 15
        store(head + 2 + run, u8((low | (((high >> (2 * run)) & 3) << 4)) - 32))
        place = levels + 32 * run
        split_16(p + 8 + 16 * run, place, place + 16)


@inline
def take_tq2_0(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of TQ2_0."""
    copy_half(p + 64, head)
    take_2_bits(p, levels)


@inline
def take_digits(p: int, count: int, digits: int, levels: int) -> None:
    """Take ternary digits: multiplying a byte by 3 moves the next one before the point."""
    for i in range(count):
        fraction = np.int64(load_u8(p + i))
        for digit in range(digits):
            fraction *= 3
            store(levels + count * digit + i, u8(fraction >> 8))
            fraction &= 255


@inline
def take_tq1_0(p: int, head: int, levels: int) -> None:
    """Take apart a super-block of TQ1_0, whose 240 first digits are five a byte."""
    copy_half(p + 52, head)
    take_digits(p, 32, 5, levels)
    take_digits(p + 32, 16, 5, levels + 160)
    take_digits(p + 48, 4, 4, levels + 240)


def take_levels(n_scales: int) -> Take:
    """Return what takes apart a codebook's blocks, which ``codebook.as_levels`` has made plain."""
    head_bytes = 2 + n_scales

    @inline
    def take(p: int, head: int, levels: int) -> None:
        copy_half(p, head)
        for i in range(0, n_scales, 4):
            store(head + 2 + i, load_i32(p + 2 + i))
        for i in range(0, 256, 64):
            store(levels + i, load_i8x64(p + head_bytes + i))

    return take


_TAKE: dict[TensorType, Any] = {
    TensorType.Q4_0: take_32(1, fifth_bits=False),
    TensorType.Q4_1: take_32(2, fifth_bits=False),
    TensorType.Q5_0: take_32(1, fifth_bits=True),
    TensorType.Q5_1: take_32(2, fifth_bits=True),
    TensorType.IQ4_NL: take_32(1, fifth_bits=False),
    TensorType.Q8_0: take_q8_0,
    TensorType.MXFP4: take_mxfp4,
    TensorType.Q2_K: take_q2_k,
    TensorType.Q3_K: take_q3_k,
    TensorType.Q4_K: take_q4_k,
    TensorType.Q5_K: take_q5_k,
    TensorType.Q6_K: take_q6_k,
    TensorType.IQ4_XS: take_iq4_xs,
    TensorType.TQ1_0: take_tq1_0,
    TensorType.TQ2_0: take_tq2_0,
}


def taker(type_: TensorType) -> tuple[Take, int]:
    """Return what takes apart a type's stored blocks, and the bytes of one."""
    if type_ in _TAKE:
        return _TAKE[type_], type_size(type_)
    n_scales = FORMATS[type_].n_runs
    return take_levels(n_scales), 2 + n_scales + 256
