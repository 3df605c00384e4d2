"""The machine-specific operations of the kernels, one definition an instruction set.

Kernels call these by name and leave them undefined; the compiler links in the definitions for
the instruction set that it makes code for, and LLVM inlines them.  The intermediate code of a
kernel is thus the same for every CPU, and any instruction set can be compiled on any machine.

Four dot products of bytes are offered.  Each adds, into the 32-bit lane of a row, the products
of the row's weights, four or twice four, with as many activations (``-127 <= x <= 127``):

``nibble_dot``  weights from 0 to 15: at most eight products, which begin at ``nibble_start`` and
                end with ``nibble_sum``; or from 0 to 31, at most four, which begin at zero;
``wide_dot``    weights from 0 to 63, twice four of them, which begin at ``wide_start``;
``signed_dot``  weights from -128 to 127, which begin at ``signed_start``;
``symmetric_dot``  the same without -128, quicker where one row of activations meets many weights.

A start takes off what the unsigned products will have too much: that of nibbles and of wide
weights is given it, the weights' offset times the sum of the activations of all the products
that follow; that of signed ones is given the sum alone, and takes off 128 times of it where VNNI
wants weights unsigned.  Between start and end the value of a nibble's sums is opaque, because
AVX2 keeps sums of 16 bits in it.

``lookup`` takes each of 64 bytes, from 0 to 15, to the byte of a table of 16.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (VPDPBUSD,
VPMADDUBSW, VPMADDWD, VPSIGNB, VPSHUFB, VCVTPH2PS, VCVTPS2PH, LDTILECFG, TILELOADD, TDPBF16PS);
LLVM's ``IntrinsicsX86.td``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.target import Isa

    _Body = Callable[..., Any]

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32X16 = ir.VectorType(ir.FloatType(), 16)
I32X16, I16X16, I8X64 = ir.VectorType(I32, 16), ir.VectorType(I16, 16), ir.VectorType(I8, 64)
I8X16 = ir.VectorType(I8, 16)

VOID = ir.VoidType()

SUM_TILES = range(4)
"""Tile registers that hold float32 sums: two by two tiles of results."""
TILE_DOTS = ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))
"""Which sums the products of the tiles of activations (4, 5) and of weights (6, 7) go to."""

SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rllama_fma": (F32X16, (F32X16, F32X16, F32X16)),
    "rllama_half_to_float": (F32X16, (I16X16,)),
    "rllama_float_to_half": (I16X16, (F32X16,)),
    "rllama_nibble_dot": (I32X16, (I32X16, I8X64, I8X64)),
    "rllama_nibble_sum": (I32X16, (I32X16,)),
    "rllama_wide_dot": (I32X16, (I32X16, I8X64, I8X64, I8X64, I8X64)),
    "rllama_signed_dot": (I32X16, (I32X16, I8X64, I8X64)),
    "rllama_symmetric_dot": (I32X16, (I32X16, I8X64, I8X64)),
    "rllama_lookup": (I8X64, (I8X16, I8X64)),
    "rllama_nibble_start": (I32, (I32,)),
    "rllama_wide_start": (I32, (I32,)),
    "rllama_signed_start": (I32, (I32,)),
    "rllama_prefetch": (VOID, (I64,)),
    "rllama_prefetch_stream": (VOID, (I64,)),
    "rllama_pause": (VOID, ()),
    "rllama_hide": (I64, (I64,)),
    "rllama_keep_order": (VOID, ()),
    "rllama_tile_configure": (VOID, (I64,)),
    "rllama_tile_release": (VOID, ()),
    **{f"rllama_tile_zero_{tile}": (VOID, ()) for tile in SUM_TILES},
    **{f"rllama_tile_load_{tile}": (VOID, (I64, I64)) for tile in range(8)},
    **{f"rllama_tile_store_{tile}": (VOID, (I64, I64)) for tile in SUM_TILES},
    **{f"rllama_tile_dot_{sum_}_{a}_{b}": (VOID, ()) for sum_, a, b in TILE_DOTS},
}
"""Result and argument types of every machine-specific operation."""


def definitions(isa: Isa) -> str:
    """Return LLVM code that defines every operation of ``SIGNATURES`` for one instruction set."""
    module = ir.Module("rllama_isa")
    for name, body in _bodies(isa).items():
        result, arguments = SIGNATURES[name]
        function = ir.Function(module, ir.FunctionType(result, arguments), name)
        function.attributes.add("alwaysinline")
        function.attributes.add("nounwind")
        builder = ir.IRBuilder(function.append_basic_block())
        value = body(builder, *function.args)
        builder.ret_void() if value is None else builder.ret(value)
    return str(module)


def _bodies(isa: Isa) -> dict[str, _Body]:
    fused = isa.has("fma")
    vnni = isa.has("avx512vnni") or isa.has("avxvnni")
    half = isa.has("f16c")
    dot: _Body = _dot_by_widening
    signed: _Body = _dot_by_widening
    symmetric: _Body = _dot_by_widening
    total: _Body = _same
    start: _Body = _times(-1)
    signed_start: _Body = _times(0)
    lookup: _Body = _lookup_by_selecting
    if isa.has("avx2"):
        dot, total, start = _nibble_dot_avx2, _nibble_sum_avx2, _nibble_start_avx2
        signed, symmetric, lookup = _signed_avx2, _symmetric_avx2, _lookup_avx2
    if vnni:
        width = 64 if isa.has("avx512vnni") else 32
        dot, total, start = _vnni(width), _same, _times(-1)
        signed = symmetric = _offset(dot)
        signed_start = _times(-128)
    if isa.has("avx512bw"):
        lookup = _lookup_avx512
    wide = _wide_avx2 if isa.has("avx2") and not vnni else _one_by_one(dot)
    return {
        "rllama_fma": _fma if fused else _multiply_add,
        "rllama_half_to_float": _half_to_float_f16c if half else _half_to_float,
        "rllama_float_to_half": _float_to_half_f16c if half else _float_to_half,
        "rllama_nibble_dot": dot,
        "rllama_nibble_sum": total,
        "rllama_wide_dot": wide,
        "rllama_signed_dot": signed,
        "rllama_symmetric_dot": symmetric,
        "rllama_lookup": lookup,
        "rllama_nibble_start": start,
        "rllama_wide_start": _times(-1),
        "rllama_signed_start": signed_start,
        "rllama_prefetch": _prefetch,
        "rllama_prefetch_stream": _prefetch if isa.prefetches else _no_operation,
        "rllama_hide": _hide,
        "rllama_keep_order": _keep_order,
        "rllama_pause": _pause_x86 if _targets_x86() else _no_operation,
        **(_tile_bodies() if isa.has("amx-bf16") else {}),
    }


def _targets_x86() -> bool:
    triple: str = llvm.get_default_triple()
    return triple.startswith(("x86_64", "i386", "i686"))


# --- building blocks --------------------------------------------------------------------------


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def _splat(vector: Any, value: float) -> Any:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _slice(builder: Any, vector: Any, start: int, lanes: int) -> Any:
    mask = ir.Constant(ir.VectorType(I32, lanes), list(range(start, start + lanes)))
    return builder.shuffle_vector(vector, vector, mask)


def _halves(builder: Any, vector: Any) -> tuple[Any, Any]:
    lanes = vector.type.count // 2
    return _slice(builder, vector, 0, lanes), _slice(builder, vector, lanes, lanes)


def _join(builder: Any, low: Any, high: Any) -> Any:
    lanes = 2 * low.type.count
    return builder.shuffle_vector(
        low, high, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    )


def _by_halves(builder: Any, operation: Callable[..., Any], *vectors: Any) -> Any:
    """Apply an operation on 256-bit vectors to both halves of 512-bit ones."""
    pairs = [_halves(builder, vector) for vector in vectors]
    low, high = (operation(*(pair[side] for pair in pairs)) for side in (0, 1))
    return _join(builder, low, high)


def _same(_builder: Any, value: Any) -> Any:
    return value


# --- floats -----------------------------------------------------------------------------------


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", F32X16, a, b, c)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Fuse where the target does it for nothing: a library call for every lane is no help."""
    return _call(builder, "llvm.fmuladd.v16f32", F32X16, a, b, c)


def _half_to_float_f16c(builder: Any, half: Any) -> Any:
    kind = ir.VectorType(ir.HalfType(), 16)
    return builder.fpext(builder.bitcast(half, kind), F32X16)


def _float_to_half_f16c(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(ir.HalfType(), 16)
    return builder.bitcast(builder.fptrunc(value, kind), I16X16)


def _half_to_float(builder: Any, half: Any) -> Any:
    """Shift the bits into place and let one multiplication rebias, denormals included."""
    wide = builder.zext(half, I32X16)
    sign = builder.shl(builder.and_(wide, _splat(I32X16, 0x8000)), _splat(I32X16, 16))
    shifted = builder.shl(builder.and_(wide, _splat(I32X16, 0x7FFF)), _splat(I32X16, 13))
    scaled = builder.fmul(builder.bitcast(shifted, F32X16), _splat(F32X16, 2.0**112))
    special = builder.icmp_unsigned(">=", shifted, _splat(I32X16, 0x7C00 << 13))
    infinite = builder.or_(shifted, _splat(I32X16, 0x7F800000))
    bits = builder.select(special, infinite, builder.bitcast(scaled, I32X16))
    return builder.bitcast(builder.or_(bits, sign), F32X16)


def _float_to_half(builder: Any, value: Any) -> Any:
    """Round to nearest even as VCVTPS2PH does: denormals by a float addition that rounds."""
    bits = builder.bitcast(value, I32X16)
    sign = builder.and_(bits, _splat(I32X16, 0x80000000))
    size = builder.xor(bits, sign)
    odd = builder.and_(builder.lshr(size, _splat(I32X16, 13)), _splat(I32X16, 1))
    rebias = _splat(I32X16, (15 - 127) * 2**23 + 0xFFF)
    normal = builder.lshr(builder.add(builder.add(size, rebias), odd), _splat(I32X16, 13))
    # Adding 0.5 aligns a denormal's last bit with the last bit of the float's mantissa.
    aligned = builder.fadd(builder.bitcast(size, F32X16), _splat(F32X16, 0.5))
    tiny = builder.sub(builder.bitcast(aligned, I32X16), _splat(I32X16, 0x3F000000))
    nan = builder.icmp_unsigned(">", size, _splat(I32X16, 0x7F800000))
    large = builder.icmp_unsigned(">=", size, _splat(I32X16, (127 + 16) << 23))
    small = builder.icmp_unsigned("<", size, _splat(I32X16, (127 - 14) << 23))
    half = builder.select(small, tiny, normal)
    half = builder.select(large, _splat(I32X16, 0x7C00), half)
    half = builder.select(nan, _splat(I32X16, 0x7E00), half)
    return builder.trunc(builder.or_(half, builder.lshr(sign, _splat(I32X16, 16))), I16X16)


# --- dot products of bytes --------------------------------------------------------------------


def _dot_by_widening(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Multiply in 32-bit lanes, a byte of the four at a time; true for both kinds of weight."""
    words = [builder.bitcast(vector, I32X16) for vector in (weights, x)]
    for byte in range(4):
        raise_to_top, lower = _splat(I32X16, 24 - 8 * byte), _splat(I32X16, 24)
        a, b = (builder.ashr(builder.shl(word, raise_to_top), lower) for word in words)
        total = builder.add(total, builder.mul(a, b))
    return total


def _pairs_avx2(builder: Any) -> Callable[..., Any]:
    """Return VPMADDUBSW: 16-bit sums of two products of unsigned and signed bytes."""
    kind = ir.VectorType(I16, 16)
    return lambda u, s: _call(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, u, s)


def _add_pairs_avx2(builder: Any, sums: Any) -> Any:
    """Return VPMADDWD with ones: 32-bit sums of two neighbouring 16-bit lanes."""
    kind, ones = ir.VectorType(I32, 8), _splat(ir.VectorType(I16, 16), 1)
    return _call(builder, "llvm.x86.avx2.pmadd.wd", kind, sums, ones)


def _times(factor: int) -> _Body:
    """Return the start that is a multiple of what it is given."""
    return lambda builder, total: builder.mul(total, I32(factor))


def _nibble_start_avx2(builder: Any, total: Any) -> Any:
    """Start the lower 16-bit lane of a pair with all of it, at most 8 * 32 * 127 < 2^15.

    A weight means itself less an offset of 8 at most; every product takes the lane's value from
    -8 x to (w - 8) x, so it stays in that bound.
    """
    return builder.and_(builder.neg(total), I32(0xFFFF))


def _one_by_one(dot: _Body) -> _Body:
    """Return the product of twice four weights by two of four."""

    def both(builder: Any, total: Any, w0: Any, x0: Any, w1: Any, x1: Any) -> Any:
        return dot(builder, dot(builder, total, w0, x0), w1, x1)

    return both


def _wide_avx2(builder: Any, total: Any, w0: Any, x0: Any, w1: Any, x1: Any) -> Any:
    """Add two sums of two products in 16 bits: 2 * 2 * 63 * 127 < 2^15."""
    pairs, words = _pairs_avx2(builder), ir.VectorType(I16, 32)
    first, second = (
        builder.bitcast(_by_halves(builder, pairs, w, x), words) for w, x in ((w0, x0), (w1, x1))
    )
    sums = builder.add(first, second)
    return builder.add(
        total, _by_halves(builder, lambda half: _add_pairs_avx2(builder, half), sums)
    )


def _nibble_dot_avx2(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Keep 16-bit sums; from 0 they stay under 8 * 2 * 15 * 127 and 4 * 2 * 31 * 127 < 2^15."""
    kind = ir.VectorType(I16, 32)
    products = _by_halves(builder, _pairs_avx2(builder), weights, x)
    return builder.bitcast(builder.add(builder.bitcast(total, kind), products), I32X16)


def _nibble_sum_avx2(builder: Any, total: Any) -> Any:
    sums = builder.bitcast(total, ir.VectorType(I16, 32))
    return _by_halves(builder, lambda half: _add_pairs_avx2(builder, half), sums)


def _signed_avx2(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Move the weight's sign to the activation; |w| <= 128 keeps a pair under 2^15."""
    return _add_products_avx2(builder, total, _size(builder, weights), x, weights)


def _symmetric_avx2(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Move the activation's sign to the weight: the size of broadcast ones is taken once."""
    return _add_products_avx2(builder, total, _size(builder, x), weights, x)


def _size(builder: Any, vector: Any) -> Any:
    negative = builder.icmp_signed("<", vector, _splat(I8X64, 0))
    return builder.select(negative, builder.neg(vector), vector)


def _add_products_avx2(builder: Any, total: Any, size: Any, other: Any, signs: Any) -> Any:
    """Add the products of ``size`` with the other factor, which takes the signs over."""
    kind, wide = ir.VectorType(I8, 32), ir.VectorType(I16, 32)
    signed = _by_halves(
        builder, lambda a, b: _call(builder, "llvm.x86.avx2.psign.b", kind, a, b), other, signs
    )
    products = _by_halves(builder, _pairs_avx2(builder), size, signed)
    sums = builder.bitcast(products, wide)
    return builder.add(
        total, _by_halves(builder, lambda half: _add_pairs_avx2(builder, half), sums)
    )


def _vnni(width: int) -> Callable[..., Any]:
    """Return VPDPBUSD on vectors of ``width`` bytes."""

    def dot(builder: Any, total: Any, weights: Any, x: Any) -> Any:
        name = f"llvm.x86.avx512.vpdpbusd.{8 * width}"
        words = ir.VectorType(I32, width // 4)
        # LLVM 22 gave the bytes their own type; before, they travelled as 32-bit lanes.
        operand = ir.VectorType(I8, width) if llvm.llvm_version_info >= (22,) else words

        def one(c: Any, a: Any, b: Any) -> Any:
            return _call(
                builder, name, words, c, builder.bitcast(a, operand), builder.bitcast(b, operand)
            )

        if width == 64:
            return one(total, weights, x)
        return _by_halves(builder, one, total, weights, x)

    return dot


def _offset(dot: Callable[..., Any]) -> Callable[..., Any]:
    """Make signed weights unsigned by adding 128, which the start takes off again."""

    def signed(builder: Any, total: Any, weights: Any, x: Any) -> Any:
        return dot(builder, total, builder.xor(weights, _splat(I8X64, 0x80)), x)

    return signed


# --- tables of 16 bytes -----------------------------------------------------------------------


def _lookup_by_selecting(builder: Any, table: Any, index: Any) -> Any:
    """Choose among the table's halves, quarters and so on by the bits of the index."""
    values: list[Any] = [
        _spread_byte(builder, builder.extract_element(table, I32(i))) for i in range(16)
    ]
    for bit in range(4):
        set_ = builder.icmp_unsigned(
            "!=", builder.and_(index, _splat(I8X64, 1 << bit)), _splat(I8X64, 0)
        )
        values = [builder.select(set_, values[i + 1], values[i]) for i in range(0, len(values), 2)]
    return values[0]


def _spread_byte(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(I8X64, ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, _splat(ir.VectorType(I32, 64), 0))


def _copies(builder: Any, table: Any, count: int) -> Any:
    """Return a table as many times: a permutation stays within 16 bytes."""
    mask = ir.Constant(ir.VectorType(I32, 16 * count), list(range(16)) * count)
    return builder.shuffle_vector(table, table, mask)


def _lookup_avx2(builder: Any, table: Any, index: Any) -> Any:
    kind, name = ir.VectorType(I8, 32), "llvm.x86.avx2.pshuf.b"
    copies = _copies(builder, table, 2)
    return _by_halves(builder, lambda half: _call(builder, name, kind, copies, half), index)


def _lookup_avx512(builder: Any, table: Any, index: Any) -> Any:
    copies = _copies(builder, table, 4)
    return _call(builder, "llvm.x86.avx512.pshuf.b.512", I8X64, copies, index)


# --- memory and waiting -----------------------------------------------------------------------


def _prefetch(builder: Any, address: Any) -> None:
    """Ask for a cache line; an address outside our memory does no harm."""
    read, every_level, data = (ir.Constant(I32, v) for v in (0, 3, 1))
    place = builder.inttoptr(address, I8.as_pointer())
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, read, every_level, data)


def _pause_x86(builder: Any) -> None:
    _call(builder, "llvm.x86.sse2.pause", ir.VoidType())


def _hide(builder: Any, value: Any) -> Any:
    """Return a number of which LLVM does not know how it was made."""
    kind = ir.FunctionType(I64, [I64])
    return builder.call(ir.InlineAsm(kind, "", "=r,0"), [value])


def _keep_order(builder: Any) -> None:
    """Let LLVM move no load to the other side."""
    kind = ir.FunctionType(VOID, [])
    builder.call(ir.InlineAsm(kind, "", "~{memory}", side_effect=True), [])


def _no_operation(_builder: Any, *_arguments: Any) -> None:
    return None


# --- matrix tiles: eight registers of 16 rows of 64 bytes -------------------------------------


def _tile_bodies() -> dict[str, _Body]:
    """Return the tile operations as AMX has them; registers are part of an instruction."""
    bodies: dict[str, _Body] = {
        "rllama_tile_configure": _tile_instruction("ldtilecfg"),
        "rllama_tile_release": _tile_instruction("tilerelease"),
    }
    for tile in range(8):
        bodies[f"rllama_tile_load_{tile}"] = _tile_instruction("tileloadd64", tile)
    for tile in SUM_TILES:
        bodies[f"rllama_tile_zero_{tile}"] = _tile_instruction("tilezero", tile)
        bodies[f"rllama_tile_store_{tile}"] = _tile_instruction("tilestored64", tile)
    for tiles in TILE_DOTS:
        bodies["rllama_tile_dot_{}_{}_{}".format(*tiles)] = _tile_instruction("tdpbf16ps", *tiles)
    return bodies


def _tile_instruction(name: str, *tiles: int) -> _Body:
    """Return an AMX instruction on registers, and on memory where it gets an address."""

    def body(builder: Any, *memory: Any) -> None:
        operands = [I8(tile) for tile in tiles]
        if memory:
            operands += [builder.inttoptr(memory[0], I8.as_pointer()), *memory[1:]]
        _call(builder, f"llvm.x86.{name}", VOID, *operands)

    return body
