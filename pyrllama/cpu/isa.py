"""The machine-specific operations of the kernels, one definition an instruction set.

Kernels call these by name and leave them undefined; the compiler links in the definitions for
the instruction set that it makes code for, and LLVM inlines them.  The intermediate code of a
kernel is thus the same for every CPU, and any instruction set can be compiled on any machine.

Dot products of bytes add, into the 32-bit lane of a row, the products of four of the row's weights
with as many activations (``-127 <= x <= 127``).  A run of them begins at a start, which is given
the sums of all activations that follow, as pairs of 16 bits (see ``records.py``), and an offset:

``unsigned``   weights are values plus the offset, from 0 to 128.  Their run ends with
               ``unsigned_end``, which adds it to a total, times what ``run_scale`` makes of scales
               of whole numbers.  Between start and end a run is opaque, because AVX2 keeps two
               sums of 16 bits in it, each of half of the columns: 32 columns of values from -16 to
               16, or 16 of those from -32 to 32, are what they hold in the end.
``signed``     weights from -128 to 127, summed as 32 bits.
``symmetric``  the same without -128, quicker where one row of activations meets many weights.

``lookup`` takes each of 64 bytes, from 0 to 15, to the byte of a table of 16.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (VPDPBUSD,
VPMADDUBSW, VPMADDWD, VPSIGNB, VPSHUFB, VCVTPH2PS, VCVTPS2PH, LDTILECFG, TILELOADD, TDPBF16PS);
LLVM's ``IntrinsicsX86.td``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir

from pyrllama.cpu import pairs, sections, shorts
from pyrllama.cpu.dots import dot_bodies
from pyrllama.cpu.lowering import (
    F32X16,
    I8,
    I8X16,
    I8X64,
    I16X16,
    I32,
    I32X16,
    I64,
    Body,
    by_halves,
    call_function,
    splat,
    spread,
)

if TYPE_CHECKING:
    from pyrllama.cpu.target import Isa

VOID = ir.VoidType()

SUM_TILES = range(4)
"""Tile registers that hold float32 sums: two by two tiles of results."""
TILE_DOTS = ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))
"""Which sums the products of the tiles of activations (4, 5) and of weights (6, 7) go to."""

SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rllama_fma": (F32X16, (F32X16, F32X16, F32X16)),
    "rllama_half_to_float": (F32X16, (I16X16,)),
    "rllama_float_to_half": (I16X16, (F32X16,)),
    "rllama_unsigned_start": (I32X16, (I32X16, I32)),
    "rllama_unsigned_start_of_row": (I32X16, (I32X16, I32)),
    "rllama_unsigned_dot": (I32X16, (I32X16, I8X64, I8X64)),
    "rllama_unsigned_end": (I32X16, (I32X16, I32X16, I32X16)),
    "rllama_run_scale": (I32X16, (I32X16,)),
    "rllama_has_assembly": (I64, ()),
    "rllama_has_pairs": (I64, ()),
    **{section.name: (VOID, sections.ARGUMENTS) for section in sections.SECTIONS},
    **{shorts.name_for(rows): (VOID, shorts.ARGUMENTS) for rows in shorts.ROWS},
    **{each.name: (VOID, pairs.ARGUMENTS) for each in pairs.PAIRS},
    "rllama_even_shorts": shorts.EXTENSION,
    "rllama_odd_shorts": shorts.EXTENSION,
    "rllama_signed_start": (I32X16, (I32X16, I32)),
    "rllama_signed_start_of_row": (I32X16, (I32X16, I32)),
    "rllama_signed_dot": (I32X16, (I32X16, I8X64, I8X64)),
    "rllama_symmetric_dot": (I32X16, (I32X16, I8X64, I8X64)),
    "rllama_lookup": (I8X64, (I8X16, I8X64)),
    "rllama_prefetch": (VOID, (I64,)),
    "rllama_prefetch_once": (VOID, (I64,)),
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


def _bodies(isa: Isa) -> dict[str, Body]:
    fused, half = isa.has("fma"), isa.has("f16c")
    lookup: Body = _lookup_by_selecting
    if isa.has("avx512bw"):
        lookup = _lookup_avx512
    elif isa.has("avx2"):
        lookup = _lookup_avx2
    return {
        "rllama_fma": _fma if fused else _multiply_add,
        "rllama_half_to_float": _half_to_float_f16c if half else _half_to_float,
        "rllama_float_to_half": _float_to_half_f16c if half else _float_to_half,
        **dot_bodies(isa),
        "rllama_lookup": lookup,
        "rllama_prefetch": _prefetch(3),
        "rllama_prefetch_once": _prefetch(0),
        "rllama_hide": _hide,
        "rllama_keep_order": _keep_order,
        "rllama_pause": _pause_x86 if _targets_x86() else _no_operation,
        **(_tile_bodies() if isa.has("amx-bf16") else {}),
    }


def _targets_x86() -> bool:
    triple: str = llvm.get_default_triple()
    return triple.startswith(("x86_64", "i386", "i686"))


# --- floats -----------------------------------------------------------------------------------


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call_function(builder, "llvm.fma.v16f32", F32X16, a, b, c)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Fuse where the target does it for nothing: a library call for every lane is no help."""
    return call_function(builder, "llvm.fmuladd.v16f32", F32X16, a, b, c)


def _half_to_float_f16c(builder: Any, half: Any) -> Any:
    kind = ir.VectorType(ir.HalfType(), 16)
    return builder.fpext(builder.bitcast(half, kind), F32X16)


def _float_to_half_f16c(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(ir.HalfType(), 16)
    return builder.bitcast(builder.fptrunc(value, kind), I16X16)


def _half_to_float(builder: Any, half: Any) -> Any:
    """Shift the bits into place and let one multiplication rebias, denormals included."""
    wide = builder.zext(half, I32X16)
    sign = builder.shl(builder.and_(wide, splat(I32X16, 0x8000)), splat(I32X16, 16))
    shifted = builder.shl(builder.and_(wide, splat(I32X16, 0x7FFF)), splat(I32X16, 13))
    scaled = builder.fmul(builder.bitcast(shifted, F32X16), splat(F32X16, 2.0**112))
    special = builder.icmp_unsigned(">=", shifted, splat(I32X16, 0x7C00 << 13))
    infinite = builder.or_(shifted, splat(I32X16, 0x7F800000))
    bits = builder.select(special, infinite, builder.bitcast(scaled, I32X16))
    return builder.bitcast(builder.or_(bits, sign), F32X16)


def _float_to_half(builder: Any, value: Any) -> Any:
    """Round to nearest even as VCVTPS2PH does: denormals by a float addition that rounds."""
    bits = builder.bitcast(value, I32X16)
    sign = builder.and_(bits, splat(I32X16, 0x80000000))
    size = builder.xor(bits, sign)
    odd = builder.and_(builder.lshr(size, splat(I32X16, 13)), splat(I32X16, 1))
    rebias = splat(I32X16, (15 - 127) * 2**23 + 0xFFF)
    normal = builder.lshr(builder.add(builder.add(size, rebias), odd), splat(I32X16, 13))
    # Adding 0.5 aligns a denormal's last bit with the last bit of the float's mantissa.
    aligned = builder.fadd(builder.bitcast(size, F32X16), splat(F32X16, 0.5))
    tiny = builder.sub(builder.bitcast(aligned, I32X16), splat(I32X16, 0x3F000000))
    nan = builder.icmp_unsigned(">", size, splat(I32X16, 0x7F800000))
    large = builder.icmp_unsigned(">=", size, splat(I32X16, (127 + 16) << 23))
    small = builder.icmp_unsigned("<", size, splat(I32X16, (127 - 14) << 23))
    half = builder.select(small, tiny, normal)
    half = builder.select(large, splat(I32X16, 0x7C00), half)
    half = builder.select(nan, splat(I32X16, 0x7E00), half)
    return builder.trunc(builder.or_(half, builder.lshr(sign, splat(I32X16, 16))), I16X16)


# --- tables of 16 bytes -----------------------------------------------------------------------


def _lookup_by_selecting(builder: Any, table: Any, index: Any) -> Any:
    """Choose among the table's halves, quarters and so on by the bits of the index."""
    values: list[Any] = [
        spread(builder, builder.extract_element(table, I32(i)), I8X64) for i in range(16)
    ]
    for bit in range(4):
        set_ = builder.icmp_unsigned(
            "!=", builder.and_(index, splat(I8X64, 1 << bit)), splat(I8X64, 0)
        )
        values = [builder.select(set_, values[i + 1], values[i]) for i in range(0, len(values), 2)]
    return values[0]


def _copies(builder: Any, table: Any, count: int) -> Any:
    """Return a table as many times: a permutation stays within 16 bytes."""
    mask = ir.Constant(ir.VectorType(I32, 16 * count), list(range(16)) * count)
    return builder.shuffle_vector(table, table, mask)


def _lookup_avx2(builder: Any, table: Any, index: Any) -> Any:
    kind, name = ir.VectorType(I8, 32), "llvm.x86.avx2.pshuf.b"
    copies = _copies(builder, table, 2)
    return by_halves(builder, lambda half: call_function(builder, name, kind, copies, half), index)


def _lookup_avx512(builder: Any, table: Any, index: Any) -> Any:
    copies = _copies(builder, table, 4)
    return call_function(builder, "llvm.x86.avx512.pshuf.b.512", I8X64, copies, index)


# --- memory and waiting -----------------------------------------------------------------------


def _prefetch(locality: int) -> Body:
    """Return what asks for a cache line; an address outside our memory does no harm.

    The locality is that of LLVM: 3 brings the line to every level of caches, 0 to the first alone.
    """
    operands = [ir.Constant(I32, v) for v in (0, locality, 1)]  # a read, of data

    def ask(builder: Any, address: Any) -> None:
        place = builder.inttoptr(address, I8.as_pointer())
        call_function(builder, "llvm.prefetch.p0", ir.VoidType(), place, *operands)

    return ask


def _pause_x86(builder: Any) -> None:
    call_function(builder, "llvm.x86.sse2.pause", ir.VoidType())


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


def _tile_bodies() -> dict[str, Body]:
    """Return the tile operations as AMX has them; registers are part of an instruction."""
    bodies: dict[str, Body] = {
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


def _tile_instruction(name: str, *tiles: int) -> Body:
    """Return an AMX instruction on registers, and on memory where it gets an address."""

    def body(builder: Any, *memory: Any) -> None:
        operands = [I8(tile) for tile in tiles]
        if memory:
            operands += [builder.inttoptr(memory[0], I8.as_pointer()), *memory[1:]]
        call_function(builder, f"llvm.x86.{name}", VOID, *operands)

    return body
