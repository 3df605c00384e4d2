"""The SIMD vectors of kernels that Numba compiles: types, operators, what instructions are made of.

A kernel works on logical 512-bit vectors (``f32x16``, ``i32x16``, ``i8x64``) and
their 16-lane half and quarter forms with ordinary operators; LLVM splits a vector where the
CPU has no register of that width.  An operator takes two vectors of one type, or a vector and
a scalar that is spread over all lanes.  ``>>`` shifts in zeros.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

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
