"""The dot products of bytes, one definition an instruction set; ``isa.py`` says what they offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir

from pyrllama.cpu.lowering import (
    I8,
    I8X64,
    I16,
    I16X32,
    I32,
    I32X16,
    I64,
    Body,
    by_halves,
    call_function,
    same,
    splat,
    spread,
)
from pyrllama.cpu.pairs import pair_bodies
from pyrllama.cpu.records import START_OFFSET
from pyrllama.cpu.sections import section_bodies
from pyrllama.cpu.shorts import short_bodies

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.target import Isa


def dot_bodies(isa: Isa) -> dict[str, Body]:
    """Return the definitions of the dot products for an instruction set, by name."""
    vnni = isa.has("avx512vnni") or isa.has("avxvnni")
    wide, avx2 = isa.has("avx512vnni"), isa.has("avx2") and not vnni
    if avx2:
        unsigned, signed, symmetric = _unsigned_avx2, _signed_avx2, _symmetric_avx2
        start, end = _start_avx2, _end_avx2
        starts_of_rows: tuple[Body, Body] = start, _zero
    else:
        width = 64 if wide else 32
        unsigned = _vnni(width) if vnni else _dot_by_widening
        signed = symmetric = _flipped(unsigned) if vnni else unsigned
        start, end = _start, _end
        starts_of_rows = _start_of_row, _taken_off if vnni else _zero
    return {
        "rllama_unsigned_start": start,
        "rllama_unsigned_start_of_row": starts_of_rows[0],
        "rllama_unsigned_dot": unsigned,
        "rllama_unsigned_end": end,
        "rllama_has_assembly": lambda _builder: I64(int(avx2)),
        "rllama_has_pairs": lambda _builder: I64(int(wide)),
        **section_bodies(avx2=avx2),
        **short_bodies(avx2=avx2),
        **pair_bodies(wide=wide),
        "rllama_run_scale": _run_scale_avx2 if avx2 else same,
        "rllama_signed_start": _start_of_flipped if vnni else _zero,
        "rllama_signed_start_of_row": starts_of_rows[1],
        "rllama_signed_dot": signed,
        "rllama_symmetric_dot": symmetric,
    }


# --- any CPU ----------------------------------------------------------------------------------


def _dot_by_widening(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Multiply in 32-bit lanes, a byte of the four at a time; true for both kinds of weight."""
    words = [builder.bitcast(vector, I32X16) for vector in (weights, x)]
    for byte in range(4):
        raise_to_top, lower = splat(I32X16, 24 - 8 * byte), splat(I32X16, 24)
        a, b = (builder.ashr(builder.shl(word, raise_to_top), lower) for word in words)
        total = builder.add(total, builder.mul(a, b))
    return total


def _start(builder: Any, pairs: Any, offset: Any) -> Any:
    """Take the offset times both sums of a pair off."""
    high = splat(I32X16, 16)
    first, second = builder.ashr(builder.shl(pairs, high), high), builder.ashr(pairs, high)
    return builder.mul(builder.add(first, second), spread(builder, builder.neg(offset), I32X16))


def _start_of_row(builder: Any, taken_off: Any, offset: Any) -> Any:
    """Do so where ``START_OFFSET`` times the sum was taken off already."""
    sums = builder.ashr(taken_off, splat(I32X16, START_OFFSET.bit_length() - 1))
    return builder.mul(sums, spread(builder, offset, I32X16))


def _taken_off(_builder: Any, taken_off: Any, _offset: Any) -> Any:
    return taken_off


def _zero(_builder: Any, _pairs: Any, _offset: Any) -> Any:
    return splat(I32X16, 0)


def _end(builder: Any, total: Any, sums: Any, scale: Any) -> Any:
    return builder.add(total, builder.mul(sums, scale))


# --- AVX2 -------------------------------------------------------------------------------------


def _pairs_avx2(builder: Any, unsigned: Any, signed: Any) -> Any:
    """Return VPMADDUBSW: 16-bit sums of two products of unsigned and signed bytes."""
    name, kind = "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16)
    products = by_halves(
        builder, lambda u, s: call_function(builder, name, kind, u, s), unsigned, signed
    )
    return builder.bitcast(products, I16X32)


def _join_pairs_avx2(builder: Any, sums: Any, factors: Any) -> Any:
    """Return VPMADDWD: 32-bit sums of two neighbouring 16-bit lanes, times a factor each."""
    name, kind = "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8)
    return by_halves(builder, lambda a, b: call_function(builder, name, kind, a, b), sums, factors)


def _unsigned_avx2(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Keep sums of 16 bits, which wrap round and are right in the end."""
    products = _pairs_avx2(builder, weights, x)
    return builder.bitcast(builder.add(builder.bitcast(total, I16X32), products), I32X16)


def _start_avx2(builder: Any, pairs: Any, offset: Any) -> Any:
    """Begin each 16-bit lane with its own sum of the pair."""
    factor = spread(builder, builder.trunc(builder.neg(offset), I16), I16X32)
    return builder.bitcast(builder.mul(builder.bitcast(pairs, I16X32), factor), I32X16)


def _end_avx2(builder: Any, total: Any, sums: Any, scale: Any) -> Any:
    sums, scale = (builder.bitcast(vector, I16X32) for vector in (sums, scale))
    return builder.add(total, _join_pairs_avx2(builder, sums, scale))


def _run_scale_avx2(builder: Any, scale: Any) -> Any:
    """Put a scale into both 16-bit lanes of its row."""
    low = builder.and_(scale, splat(I32X16, 0xFFFF))
    return builder.or_(low, builder.shl(scale, splat(I32X16, 16)))


def _signed_avx2(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Move the weight's sign to the activation; |w| <= 128 keeps a pair under 2^15."""
    return _add_products_avx2(builder, total, _size(builder, weights), x, weights)


def _symmetric_avx2(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Move the activation's sign to the weight: the size of broadcast ones is taken once."""
    return _add_products_avx2(builder, total, _size(builder, x), weights, x)


def _size(builder: Any, vector: Any) -> Any:
    negative = builder.icmp_signed("<", vector, splat(I8X64, 0))
    return builder.select(negative, builder.neg(vector), vector)


def _add_products_avx2(builder: Any, total: Any, size: Any, other: Any, signs: Any) -> Any:
    """Add the products of ``size`` with the other factor, which takes the signs over."""
    name, kind = "llvm.x86.avx2.psign.b", ir.VectorType(I8, 32)
    signed = by_halves(builder, lambda a, b: call_function(builder, name, kind, a, b), other, signs)
    products = _pairs_avx2(builder, size, signed)
    return builder.add(total, _join_pairs_avx2(builder, products, splat(I16X32, 1)))


# --- VNNI -------------------------------------------------------------------------------------


def _vnni(width: int) -> Callable[..., Any]:
    """Return VPDPBUSD on vectors of ``width`` bytes."""

    def dot(builder: Any, total: Any, weights: Any, x: Any) -> Any:
        name = f"llvm.x86.avx512.vpdpbusd.{8 * width}"
        words = ir.VectorType(I32, width // 4)
        # LLVM 22 gave the bytes their own type; before, they travelled as 32-bit lanes.
        operand = ir.VectorType(I8, width) if llvm.llvm_version_info >= (22,) else words

        def one(c: Any, a: Any, b: Any) -> Any:
            a, b = (builder.bitcast(vector, operand) for vector in (a, b))
            return call_function(builder, name, words, c, a, b)

        if width == 64:
            return one(total, weights, x)
        return by_halves(builder, one, total, weights, x)

    return dot


def _flipped(dot: Body) -> Body:
    """Make signed weights unsigned by adding an offset, which the start takes off again."""

    def signed(builder: Any, total: Any, weights: Any, x: Any) -> Any:
        return dot(builder, total, builder.xor(weights, splat(I8X64, START_OFFSET)), x)

    return signed


def _start_of_flipped(builder: Any, pairs: Any, _offset: Any) -> Any:
    return _start(builder, pairs, I32(START_OFFSET))
