"""Instructions on vectors that LLVM has by itself: memory, lanes, conversions, reductions.

Memory is addressed by plain int64 addresses; nothing here checks bounds, so every size is checked
before a kernel runs.  Each function below is an intrinsic: called from a kernel it becomes a few
LLVM instructions.  ``instructions.py`` has those that differ between instruction sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types

from pyrllama.cpu.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    Lanes,
    Vector,
    _to_element,
    call_llvm,
    constant,
    constant_instruction,
    f32x16,
    f64x16,
    i8x16,
    i8x64,
    i16x16,
    i32x16,
    instruction,
    pointer,
    shuffle,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# --- memory -----------------------------------------------------------------------------------


def _loader(vector: Vector) -> Callable[[int], Lanes]:
    @instruction
    def load(_typing: Any, address: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return builder.load(pointer(builder, args[0], vector.llvm), align=1)

        return vector(types.int64), build

    return load


load_f32x16 = _loader(f32x16)
load_f64x16 = _loader(f64x16)
load_i32x16 = _loader(i32x16)
load_i16x16 = _loader(i16x16)
load_i8x64 = _loader(i8x64)
load_i8x16 = _loader(i8x16)


@instruction
def store(_typing: Any, address: Any, vector: Any) -> Any:
    """Store a vector, or a scalar of its own width, at an address of any alignment."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store(args[1], pointer(builder, args[0], args[1].type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, vector), build


def _scalar_loader(number: Any, llvm_type: Any) -> Callable[[int], Any]:
    @instruction
    def load(_typing: Any, address: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return builder.load(pointer(builder, args[0], llvm_type), align=1)

        return number(types.int64), build

    return load


load_f32 = _scalar_loader(types.float32, F32)
load_i64 = _scalar_loader(types.int64, I64)
load_i32 = _scalar_loader(types.int32, I32)
load_u16 = _scalar_loader(types.uint16, I16)
load_u8 = _scalar_loader(types.uint8, I8)


# --- lanes ------------------------------------------------------------------------------------


def _splatter(vector: Vector) -> Callable[[Any], Any]:
    @instruction
    def splat(_typing: Any, scalar: Any) -> Any:
        def build(_context: Any, builder: Any, sig: Any, args: Any) -> Any:
            element = _to_element(builder, args[0], sig.args[0], vector)
            return spread(builder, element, vector.llvm)

        return vector(types.unliteral(scalar)), build

    return splat


splat_f32 = _splatter(f32x16)
splat_i32 = _splatter(i32x16)


def _bitcaster(target: Vector) -> Callable[[Any], Any]:
    @instruction
    def cast(_typing: Any, vector: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], target.llvm)

        return target(vector), build

    return cast


as_f32 = _bitcaster(f32x16)
as_i32 = _bitcaster(i32x16)
as_i8 = _bitcaster(i8x64)


def _converter(source: Vector, target: Vector, name: str) -> Callable[[Lanes], Lanes]:
    @instruction
    def convert(_typing: Any, vector: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return getattr(builder, name)(args[0], target.llvm)

        return target(source), build

    return convert


to_f32 = _converter(i32x16, f32x16, "sitofp")
truncate_to_i32 = _converter(f32x16, i32x16, "fptosi")
widen_f32 = _converter(f32x16, f64x16, "fpext")
widen_u16 = _converter(i16x16, i32x16, "zext")
widen_i8 = _converter(i8x16, i32x16, "sext")
narrow_to_i16 = _converter(i32x16, i16x16, "trunc")
narrow_to_i8 = _converter(i32x16, i8x16, "trunc")


@instruction
def swap_pairs(_typing: Any, vector: Any) -> Any:
    """Exchange lanes 0 and 1, 2 and 3, and so on: the other half of every RoPE pair."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        lanes = [lane ^ 1 for lane in range(vector.lanes)]
        return shuffle(builder, args[0], args[0], lanes)

    return vector(vector), build


@instruction
def keep_first(_typing: Any, vector: Any, count: Any, fill: Any) -> Any:
    """Keep the first ``count`` lanes of an ``f32x16`` and set the others to ``fill``."""

    def build(_context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = constant(i32x16, list(range(16)))
        limit = spread(builder, builder.trunc(args[1], I32), i32x16.llvm)
        other = spread(builder, _to_element(builder, args[2], sig.args[2], f32x16), f32x16.llvm)
        return builder.select(builder.icmp_signed("<", lanes, limit), args[0], other)

    return f32x16(f32x16, types.int64, types.unliteral(fill)), build


@instruction
def first_lane(_typing: Any, vector: Any) -> Any:
    """Return lane 0 as a scalar."""
    number = {"f32": types.float32, "i32": types.int32, "i16": types.int16, "i8": types.int8}

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(I32, 0))

    return number[vector.kind](vector), build


@instruction
def lane_of(_typing: Any, vector: Any, lane: Any) -> Any:
    """Return a lane, known only when a kernel runs, as a scalar; meant for what is not hot."""
    number = {"f32": types.float32, "i32": types.int32}

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], args[1])

    return number[vector.kind](vector, types.int64), build


@constant_instruction
def scratch(_typing: Any, n_bytes: Any) -> Any:
    """Return the address of so many bytes on the stack, as a constant says."""
    count = n_bytes.literal_value

    def build(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        with builder.goto_entry_block():  # or it would grow with every round of a loop
            memory = builder.alloca(ir.ArrayType(I8, count))
        memory.align = 64
        return builder.ptrtoint(memory, I64)

    return types.int64(n_bytes), build


@instruction
def maximum(_typing: Any, a: Any, b: Any) -> Any:
    """Return the greater of two ``f32x16`` lane by lane; a NaN in ``a`` gives ``b``."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return f32x16(f32x16, f32x16), build


@instruction
def minimum(_typing: Any, a: Any, b: Any) -> Any:
    """Return the smaller of two ``f32x16`` lane by lane; a NaN in ``a`` gives ``b``."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return f32x16(f32x16, f32x16), build


@instruction
def absolute(_typing: Any, vector: Any) -> Any:
    """Clear the sign bits of an ``f32x16``."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return call_llvm(builder, "llvm.fabs.v16f32", f32x16.llvm, list(args))

    return f32x16(f32x16), build


@instruction
def magnitudes(_typing: Any, vector: Any) -> Any:
    """Return the magnitudes of an ``i32x16``."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return call_llvm(builder, "llvm.abs.v16i32", i32x16.llvm, [args[0], ir.IntType(1)(0)])

    return i32x16(i32x16), build


@instruction
def square_root(_typing: Any, number: Any) -> Any:
    """Return the correctly rounded square root of a float32 scalar."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return call_llvm(builder, "llvm.sqrt.f32", F32, list(args))

    return types.float32(types.float32), build


def _reducer(vector: Vector, number: Any, combine: Any) -> Callable[[Any], Any]:
    """Fold a vector to a scalar in halves: the same order, so the same bits, on every CPU."""

    @instruction
    def reduce(_typing: Any, _vector: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            value, lanes = args[0], vector.lanes
            while lanes > 1:
                lanes //= 2
                low = shuffle(builder, value, value, list(range(lanes)))
                high = shuffle(builder, value, value, list(range(lanes, 2 * lanes)))
                value = combine(builder, low, high)
            return builder.extract_element(value, ir.Constant(I32, 0))

        return number(vector), build

    return reduce


def _greater(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


sum_f32 = _reducer(f32x16, types.float32, lambda builder, a, b: builder.fadd(a, b))
max_f32 = _reducer(f32x16, types.float32, _greater)
sum_i32 = _reducer(i32x16, types.int32, lambda builder, a, b: builder.add(a, b))


@instruction
def pair_sums(_typing: Any, _vector: Any) -> Any:
    """Return the sums of an ``i32x16`` over lanes 0 and 1 of every four, and over 2 and 3.

    The int32 holds both, each in 16 bits, the first in the lower ones.
    """

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        value, lanes = args[0], 16
        while lanes > 4:
            lanes //= 2
            low, high = (
                shuffle(builder, value, value, [first + i for i in range(lanes)])
                for first in (0, lanes)
            )
            value = builder.add(low, high)
        four = [builder.extract_element(value, ir.Constant(I32, i)) for i in range(4)]
        first, second = builder.add(*four[:2]), builder.add(*four[2:])
        return builder.or_(builder.and_(first, I32(0xFFFF)), builder.shl(second, I32(16)))

    return types.int32(i32x16), build
