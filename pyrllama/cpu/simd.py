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


# --- operations that isa.py lowers ------------------------------------------------------------


def _machine(name: str, arguments: tuple[Any, ...], result: Any) -> Callable[..., Any]:
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


fused_multiply_add = _machine("rllama_fma", (f32x16, f32x16, f32x16), f32x16)
half_to_float = _machine("rllama_half_to_float", (i16x16,), f32x16)
float_to_half = _machine("rllama_float_to_half", (f32x16,), i16x16)
nibble_dot = _machine("rllama_nibble_dot", (i32x16, i8x64, i8x64), i32x16)
nibble_sum = _machine("rllama_nibble_sum", (i32x16,), i32x16)
wide_dot = _machine("rllama_wide_dot", (i32x16, i8x64, i8x64, i8x64, i8x64), i32x16)
signed_dot = _machine("rllama_signed_dot", (i32x16, i8x64, i8x64), i32x16)
symmetric_dot = _machine("rllama_symmetric_dot", (i32x16, i8x64, i8x64), i32x16)
nibble_start = _machine("rllama_nibble_start", (types.int32,), types.int32)
wide_start = _machine("rllama_wide_start", (types.int32,), types.int32)
signed_start = _machine("rllama_signed_start", (types.int32,), types.int32)
prefetch = _machine("rllama_prefetch", (types.int64,), types.void)
prefetch_stream = _machine("rllama_prefetch_stream", (types.int64,), types.void)
hide = _machine("rllama_hide", (types.int64,), types.int64)
keep_order = _machine("rllama_keep_order", (), types.void)
pause = _machine("rllama_pause", (), types.void)
tile_configure = _machine("rllama_tile_configure", (types.int64,), types.void)
tile_release = _machine("rllama_tile_release", (), types.void)
tile_zero = [_machine(f"rllama_tile_zero_{tile}", (), types.void) for tile in isa.SUM_TILES]
tile_load = [
    _machine(f"rllama_tile_load_{tile}", (types.int64, types.int64), types.void)
    for tile in range(8)
]
tile_store = [
    _machine(f"rllama_tile_store_{tile}", (types.int64, types.int64), types.void)
    for tile in isa.SUM_TILES
]
tile_dot = [
    _machine("rllama_tile_dot_{}_{}_{}".format(*tiles), (), types.void) for tiles in isa.TILE_DOTS
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


# --- rows: a tuple of vectors, one for each of several rows of activations --------------------
#
# What differs from row to row is a scalar; the scalars of the rows stand side by side in memory
# and are broadcast from there.  The loops below run while code is made, so a kernel's tuple
# lives in registers.


def _row_count(rows: Any) -> int:
    count: int = rows.literal_value
    return count


def _row_scalars(builder: Any, address: Any, element: Any, count: int) -> list[Any]:
    """Load neighbouring scalars of four bytes."""
    places = [builder.add(address, I64(4 * row)) for row in range(count)]
    return [builder.load(pointer(builder, place, element), align=4) for place in places]


def _each_row(
    context: Any, builder: Any, sig: Any, rows: Any, change: Callable[[int, Any], Any]
) -> Any:
    """Build a tuple by changing every vector of another one."""
    vectors = cgutils.unpack_tuple(builder, rows, sig.return_type.count)
    changed = [change(row, vector) for row, vector in enumerate(vectors)]
    return context.make_tuple(builder, sig.return_type, changed)


@constant_instruction
def zero_rows(_typing: Any, rows: Any) -> Any:
    """Return as many zeroed ``f32x16`` as a constant says."""
    count = _row_count(rows)

    def build(context: Any, builder: Any, sig: Any, _args: Any) -> Any:
        return context.make_tuple(builder, sig.return_type, [constant(f32x16, 0)] * count)

    return types.UniTuple(f32x16, count)(rows), build


@constant_instruction
def zero_sums(_typing: Any, rows: Any) -> Any:
    """Return as many zeroed ``i32x16`` as a constant says."""
    count = _row_count(rows)

    def build(context: Any, builder: Any, sig: Any, _args: Any) -> Any:
        return context.make_tuple(builder, sig.return_type, [constant(i32x16, 0)] * count)

    return types.UniTuple(i32x16, count)(rows), build


@constant_instruction
def load_rows(_typing: Any, rows: Any, address: Any, stride: Any) -> Any:
    """Load as many ``f32x16`` as a constant says, ``stride`` bytes apart."""
    count = _row_count(rows)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        places = _row_places(builder, args[1], args[2], count)
        vectors = [builder.load(pointer(builder, at, f32x16.llvm), align=4) for at in places]
        return context.make_tuple(builder, sig.return_type, vectors)

    return types.UniTuple(f32x16, count)(rows, types.int64, types.int64), build


def _row_places(builder: Any, address: Any, stride: Any, count: int) -> list[Any]:
    return [builder.add(address, builder.mul(stride, I64(row))) for row in range(count)]


@instruction
def store_rows(_typing: Any, address: Any, stride: Any, rows: Any) -> Any:
    """Store the vectors of a tuple ``stride`` bytes apart."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = cgutils.unpack_tuple(builder, args[2], sig.args[2].count)
        places = _row_places(builder, args[0], args[1], len(vectors))
        for place, vector in zip(places, vectors, strict=True):
            builder.store(vector, pointer(builder, place, vector.type), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, rows), build


@instruction
def add_rows(_typing: Any, a: Any, b: Any) -> Any:
    """Add the vectors of two tuples."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        others = cgutils.unpack_tuple(builder, args[1], sig.return_type.count)
        change = lambda row, vector: builder.fadd(vector, others[row])  # noqa: E731
        return _each_row(context, builder, sig, args[0], change)

    return a(a, b), build


@instruction
def fused_multiply_add_rows(_typing: Any, totals: Any, vector: Any, x: Any) -> Any:
    """Add to each row a vector that they share times the row's float32 at ``x``."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalars = _row_scalars(builder, args[2], F32, sig.return_type.count)

        def change(row: int, total: Any) -> Any:
            factor = spread(builder, scalars[row], f32x16.llvm)
            return call_llvm(builder, "rllama_fma", f32x16.llvm, [args[1], factor, total])

        return _each_row(context, builder, sig, args[0], change)

    return totals(totals, vector, types.int64), build


def _dot_rows(name: str) -> Callable[[Any, Lanes, Lanes, int, int], Any]:
    """Return what adds the products of two vectors with the words of every row at two places."""
    at_once = len(isa.SIGNATURES[name][1]) // 2

    def add(builder: Any, totals: list[Any], factors: list[tuple[Any, Any]]) -> list[Any]:
        """Add one product, or as many as the operation takes, to all rows."""
        words = [_row_scalars(builder, place, I32, len(totals)) for _, place in factors]
        added = []
        for row, total in enumerate(totals):
            operands = [total]
            for (vector, _), of_rows in zip(factors, words, strict=True):
                x = builder.bitcast(spread(builder, of_rows[row], i32x16.llvm), i8x64.llvm)
                operands += [vector, x]
            added.append(call_llvm(builder, name, i32x16.llvm, operands))
        return added

    @instruction
    def dot(_typing: Any, sums: Any, w0: Any, w1: Any, x0: Any, x1: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            totals = cgutils.unpack_tuple(builder, args[0], sig.return_type.count)
            factors = list(zip(args[1:3], args[3:], strict=True))  # (vector, place of words)
            for i in range(0, 2, at_once):  # row by row would hold both vectors in registers
                totals = add(builder, totals, factors[i : i + at_once])
            return context.make_tuple(builder, sig.return_type, totals)

        return sums(sums, w0, w1, types.int64, types.int64), build

    return dot


nibble_dot_rows = _dot_rows("rllama_nibble_dot")
wide_dot_rows = _dot_rows("rllama_wide_dot")
signed_dot_rows = _dot_rows("rllama_signed_dot")


def _start_rows(name: str) -> Callable[[int, int, int], Any]:
    """Return what begins the sums of rows with an offset times the neighbouring int32 of each."""

    @constant_instruction
    def start(_typing: Any, rows: Any, address: Any, offset: Any) -> Any:
        count = _row_count(rows)

        def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            factor = builder.trunc(args[2], I32)
            vectors = []
            for scalar in _row_scalars(builder, args[1], I32, count):
                begin = call_llvm(builder, name, I32, [builder.mul(scalar, factor)])
                vectors.append(spread(builder, begin, i32x16.llvm))
            return context.make_tuple(builder, sig.return_type, vectors)

        return types.UniTuple(i32x16, count)(rows, types.int64, types.int64), build

    return start


nibble_start_rows = _start_rows("rllama_nibble_start")
wide_start_rows = _start_rows("rllama_wide_start")
signed_start_rows = _start_rows("rllama_signed_start")


@instruction
def nibble_sum_rows(_typing: Any, sums: Any) -> Any:
    """Apply ``nibble_sum`` to every row."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = "rllama_nibble_sum"
        change = lambda _row, total: call_llvm(builder, name, i32x16.llvm, [total])  # noqa: E731
        return _each_row(context, builder, sig, args[0], change)

    return sums(sums), build


@instruction
def add_nibble_sum_rows(_typing: Any, totals: Any, sums: Any) -> Any:
    """Add to every row what ``nibble_sum`` makes of other sums of its own."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        others = cgutils.unpack_tuple(builder, args[1], sig.return_type.count)

        def change(row: int, total: Any) -> Any:
            ended = call_llvm(builder, "rllama_nibble_sum", i32x16.llvm, [others[row]])
            return builder.add(total, ended)

        return _each_row(context, builder, sig, args[0], change)

    return totals(totals, sums), build


@instruction
def scale_rows(_typing: Any, totals: Any, sums: Any, scale: Any, x: Any) -> Any:
    """Add to each row its integer sums, times the scale of the lanes, times a float32 at ``x``."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        count = sig.return_type.count
        sums, scalars = (
            cgutils.unpack_tuple(builder, args[1], count),
            _row_scalars(builder, args[3], F32, count),
        )

        def change(row: int, total: Any) -> Any:
            factor = builder.fmul(args[2], spread(builder, scalars[row], f32x16.llvm))
            value = builder.sitofp(sums[row], f32x16.llvm)
            return call_llvm(builder, "rllama_fma", f32x16.llvm, [value, factor, total])

        return _each_row(context, builder, sig, args[0], change)

    return totals(totals, sums, scale, types.int64), build
