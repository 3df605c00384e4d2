"""Explicit SIMD vectors for kernels that Numba compiles.

A kernel works on logical 512-bit vectors (``f32x16``, ``i32x16``, ``i8x64``) and
their 16-lane half and quarter forms with ordinary operators; LLVM splits a vector where the
CPU has no register of that width.  An operator takes two vectors of one type, or a vector and
a scalar that is spread over all lanes.  ``>>`` shifts in zeros.  Memory is addressed by plain
int64 addresses; nothing here checks bounds, so every size is checked before a kernel runs.

Each function below is an intrinsic: called from a kernel it becomes a few LLVM instructions.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from pyrllama.cpu import isa

if TYPE_CHECKING:
    from collections.abc import Callable

Lanes: TypeAlias = Any
"""A SIMD vector in a kernel; its own type exists for Numba alone."""

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
_ELEMENTS = {"i8": I8, "i16": I16, "i32": I32, "f32": F32, "f64": F64}
_FLOATS = {"f32", "f64"}


def instruction(typing: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of Numba types that builds LLVM code callable from kernels.

    Its parameters after the first are the operands; their names matter to readers alone.
    """
    made: Callable[..., Any] = intrinsic(typing)
    return made


def constant_instruction(typing: Callable[..., Any]) -> Callable[..., Any]:
    """Make an ``instruction`` whose integer operands may be constants that shape its code."""
    made: Callable[..., Any] = intrinsic(prefer_literal=True)(typing)
    return made


class Vector(types.Type):
    """Numba's type of a SIMD vector: ``lanes`` elements of ``kind`` (``"f32"``, ``"i8"``...)."""

    def __init__(self, kind: str, lanes: int) -> None:
        self.kind, self.lanes = kind, lanes
        self.llvm = ir.VectorType(_ELEMENTS[kind], lanes)
        super().__init__(name=f"{kind}x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


f32x16 = Vector("f32", 16)
f64x16 = Vector("f64", 16)
i32x16 = Vector("i32", 16)
i16x16 = Vector("i16", 16)
i8x64 = Vector("i8", 64)
i8x16 = Vector("i8", 16)


# --- scalars, constants, shuffles: helpers that build LLVM IR ---------------------------------


def constant(vector: Vector, values: Any) -> ir.Constant:
    """Return a constant vector: one value for all lanes, or a list of them."""
    lanes = list(values) if isinstance(values, list) else [values] * vector.lanes
    return ir.Constant(vector.llvm, [ir.Constant(vector.llvm.element, v) for v in lanes])


def shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """Pick lanes out of the concatenation of two vectors."""
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(a, b, mask)


def spread(builder: Any, scalar: Any, vector_type: Any) -> Any:
    """Copy a scalar of the element's LLVM type into every lane."""
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return shuffle(builder, first, undefined, [0] * vector_type.count)


def call_llvm(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call an LLVM intrinsic (or an external symbol) by its name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def pointer(builder: Any, address: Any, element: Any) -> Any:
    """Turn an int64 address into a pointer to ``element``."""
    return builder.inttoptr(address, element.as_pointer())


def _to_element(builder: Any, scalar: Any, number: Any, vector: Vector) -> Any:
    """Convert a kernel's scalar to the element type of a vector."""
    element = vector.llvm.element
    if vector.kind == "f32":
        if isinstance(number, types.Integer):
            return builder.sitofp(scalar, element)
        return scalar if scalar.type == element else builder.fptrunc(scalar, element)
    if not isinstance(number, types.Integer):
        raise TypeError(f"a lane of {vector} cannot hold {number}")
    if scalar.type.width == element.width:
        return scalar
    return (builder.trunc if scalar.type.width > element.width else builder.sext)(scalar, element)


# --- operators --------------------------------------------------------------------------------

_FLOAT_OPERATORS = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul"}
_FLOAT_OPERATORS[operator.truediv] = "fdiv"
_INTEGER_OPERATORS = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.xor: "xor",
    operator.lshift: "shl",
    operator.rshift: "lshr",
}


def _register(function: Any) -> None:
    """Type and lower one Python operator for vectors."""

    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, _kws: Any) -> Any:
            vectors = [a for a in args if isinstance(a, Vector)]
            if not vectors or any(v is not vectors[0] for v in vectors):
                return None
            table = _FLOAT_OPERATORS if vectors[0].kind in _FLOATS else _INTEGER_OPERATORS
            rest = [a for a in args if not isinstance(a, Vector)]
            if function not in table or not all(isinstance(a, types.Number) for a in rest):
                return None
            return signature(vectors[0], *args)

    def lower(_context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = sig.return_type
        table = _FLOAT_OPERATORS if vector.kind in _FLOATS else _INTEGER_OPERATORS
        operands = [
            value
            if isinstance(kind, Vector)
            else spread(builder, _to_element(builder, value, kind, vector), vector.llvm)
            for value, kind in zip(args, sig.args, strict=True)
        ]
        return getattr(builder, table[function])(*operands)

    for left, right in (
        (Vector, Vector),
        (Vector, types.Number),
        (types.Number, Vector),
    ):
        lower_builtin(function, left, right)(lower)


for _function in _FLOAT_OPERATORS.keys() | _INTEGER_OPERATORS.keys():
    _register(_function)


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


# --- operations that isa.py lowers ------------------------------------------------------------


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
prefetch = machine_operation("rllama_prefetch", (types.int64,), types.void)
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
