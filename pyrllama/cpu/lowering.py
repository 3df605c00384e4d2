"""What the machine-specific operations are built of, as LLVM code: types, calls, splats, halves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Body: TypeAlias = "Callable[..., Any]"
"""Builds an operation: ``body(builder, *arguments)`` returns its value."""

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32X16 = ir.VectorType(ir.FloatType(), 16)
I32X16, I16X16, I8X64 = ir.VectorType(I32, 16), ir.VectorType(I16, 16), ir.VectorType(I8, 64)
I16X32, I8X16 = ir.VectorType(I16, 32), ir.VectorType(I8, 16)


def call_function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an LLVM intrinsic by its name."""
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def splat(vector: Any, value: float) -> Any:
    """Return a constant vector of one value."""
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def spread(builder: Any, scalar: Any, vector: Any) -> Any:
    """Copy a scalar into every lane of a vector type."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, splat(ir.VectorType(I32, vector.count), 0))


def lanes_of(builder: Any, vector: Any, start: int, count: int) -> Any:
    """Return some neighbouring lanes."""
    mask = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
    return builder.shuffle_vector(vector, vector, mask)


def halves(builder: Any, vector: Any) -> tuple[Any, Any]:
    """Return both halves of a vector."""
    lanes = vector.type.count // 2
    return lanes_of(builder, vector, 0, lanes), lanes_of(builder, vector, lanes, lanes)


def join(builder: Any, low: Any, high: Any) -> Any:
    """Return the vector of two halves."""
    lanes = 2 * low.type.count
    return builder.shuffle_vector(
        low, high, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    )


def by_halves(builder: Any, operation: Callable[..., Any], *vectors: Any) -> Any:
    """Apply an operation on 256-bit vectors to both halves of 512-bit ones."""
    pairs = [halves(builder, vector) for vector in vectors]
    low, high = (operation(*(pair[side] for pair in pairs)) for side in (0, 1))
    return join(builder, low, high)


def assembly(arguments: Sequence[Any], instructions: Iterable[str], registers: int = 16) -> Body:
    """Return what runs some instructions, in AT&T's order of operands, for x86 with AVX2.

    ``$0`` and on are registers with the arguments.  The first vector ``registers``, 16 or with
    AVX-512 32, and ``rax``, ``rcx``, ``rdx``, ``rsi``, ``rdi`` and with AVX-512 ``k1`` may change.
    """
    vectors = (f"xmm{i}" for i in range(registers))
    masks = ("k1",) if registers > 16 else ()
    changed = (*vectors, *masks, "rax", "rcx", "rdx", "rsi", "rdi", "cc", "memory")
    constraints = ["r"] * len(arguments) + [f"~{{{name}}}" for name in changed]
    kind = ir.FunctionType(ir.VoidType(), arguments)
    text = "\n\t".join(instructions)
    code = ir.InlineAsm(kind, text, ",".join(constraints), side_effect=True)

    def body(builder: Any, *values: Any) -> None:
        builder.call(code, values)

    return body


def same(_builder: Any, value: Any) -> Any:
    """Return a value as it is."""
    return value
