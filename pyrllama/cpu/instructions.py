"""Instructions on vectors that ``isa.py`` lowers, once for each instruction set.

Their names begin with ``rllama_`` in LLVM code, where the compiler links the target's definitions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import types
from numba.core import cgutils

from pyrllama.cpu import isa
from pyrllama.cpu.vectors import (
    Lanes,
    call_llvm,
    constant,
    f32x16,
    i8x16,
    i8x64,
    i16x16,
    i32x16,
    instruction,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def machine_operation(name: str, arguments: tuple[Any, ...], result: Any) -> Callable[..., Any]:
    """Declare one of ``isa.py``'s operations, which the compiler defines for its target."""
    llvm_result, llvm_arguments = isa.SIGNATURES[name]

    @instruction
    def call(_typing: Any, *operands: Any) -> Any:
        def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            operands = cgutils.unpack_tuple(builder, args[0], len(llvm_arguments))
            value = call_llvm(builder, name, llvm_result, operands)
            return context.get_dummy_value() if result is types.void else value

        return result(types.StarArgTuple(arguments)), build

    return call


fused_multiply_add = machine_operation("rllama_fma", (f32x16, f32x16, f32x16), f32x16)
half_to_float = machine_operation("rllama_half_to_float", (i16x16,), f32x16)
float_to_half = machine_operation("rllama_float_to_half", (f32x16,), i16x16)
unsigned_start = machine_operation("rllama_unsigned_start", (i32x16, types.int32), i32x16)
unsigned_dot = machine_operation("rllama_unsigned_dot", (i32x16, i8x64, i8x64), i32x16)
unsigned_end = machine_operation("rllama_unsigned_end", (i32x16, i32x16, i32x16), i32x16)
run_scale = machine_operation("rllama_run_scale", (i32x16,), i32x16)
signed_start = machine_operation("rllama_signed_start", (i32x16, types.int32), i32x16)
signed_dot = machine_operation("rllama_signed_dot", (i32x16, i8x64, i8x64), i32x16)
symmetric_dot = machine_operation("rllama_symmetric_dot", (i32x16, i8x64, i8x64), i32x16)
has_assembly = machine_operation("rllama_has_assembly", (), types.int64)
"""Whether ``sections.py`` and ``shorts.py`` have operations for this instruction set.

A constant, so what it excludes is not compiled.
"""
has_pairs = machine_operation("rllama_has_pairs", (), types.int64)
"""Whether ``pairs.py`` has, a constant too."""
prefetch = machine_operation("rllama_prefetch", (types.int64,), types.void)
prefetch_once = machine_operation("rllama_prefetch_once", (types.int64,), types.void)
"""The same for a line that is read once, and need not push others out of the larger caches."""
hide = machine_operation("rllama_hide", (types.int64,), types.int64)
keep_order = machine_operation("rllama_keep_order", (), types.void)
pause = machine_operation("rllama_pause", (), types.void)
tile_configure = machine_operation("rllama_tile_configure", (types.int64,), types.void)
tile_release = machine_operation("rllama_tile_release", (), types.void)
tile_zero = [
    machine_operation(f"rllama_tile_zero_{tile}", (), types.void) for tile in isa.SUM_TILES
]
tile_load = [
    machine_operation(f"rllama_tile_load_{tile}", (types.int64, types.int64), types.void)
    for tile in range(8)
]
tile_store = [
    machine_operation(f"rllama_tile_store_{tile}", (types.int64, types.int64), types.void)
    for tile in isa.SUM_TILES
]
tile_dot = [
    machine_operation("rllama_tile_dot_{}_{}_{}".format(*tiles), (), types.void)
    for tiles in isa.TILE_DOTS
]
"""Operations on matrix tiles, one for each register, or for each pair whose product is taken."""


def lookup_in(values: tuple[int, ...]) -> Callable[[Lanes], Lanes]:
    """Return the instruction that takes bytes from 0 to 15 to those of a table."""
    table = constant(i8x16, [*values, *[0] * (16 - len(values))])

    @instruction
    def lookup(_typing: Any, index: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return call_llvm(builder, "rllama_lookup", i8x64.llvm, [table, args[0]])

        return i8x64(i8x64), build

    return lookup
