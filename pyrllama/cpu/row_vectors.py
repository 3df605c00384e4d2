"""Rows: a tuple of vectors in a kernel, one for each of several rows of activations.

What differs from row to row is a scalar; the scalars of the rows stand side by side in memory
and are broadcast from there.  The loops below run while code is made, so a kernel's tuple
lives in registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import types
from numba.core import cgutils

from pyrllama.cpu.vectors import (
    F32,
    I32,
    I64,
    Lanes,
    call_llvm,
    constant,
    constant_instruction,
    f32x16,
    i8x64,
    i32x16,
    instruction,
    pointer,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Callable


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
def load_sums(_typing: Any, rows: Any, address: Any) -> Any:
    """Load as many neighbouring ``i32x16`` as a constant says."""
    count = _row_count(rows)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        places = _row_places(builder, args[1], I64(64), count)
        vectors = [builder.load(pointer(builder, at, i32x16.llvm), align=4) for at in places]
        return context.make_tuple(builder, sig.return_type, vectors)

    return types.UniTuple(i32x16, count)(rows, types.int64), build


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

    def add(builder: Any, totals: list[Any], vector: Any, place: Any) -> list[Any]:
        added, words = [], _row_scalars(builder, place, I32, len(totals))
        for word, total in zip(words, totals, strict=True):
            x = builder.bitcast(spread(builder, word, i32x16.llvm), i8x64.llvm)
            added.append(call_llvm(builder, name, i32x16.llvm, [total, vector, x]))
        return added

    @instruction
    def dot(_typing: Any, sums: Any, w0: Any, w1: Any, x0: Any, x1: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            totals = cgutils.unpack_tuple(builder, args[0], sig.return_type.count)
            # Row by row would hold both vectors in registers.
            totals = add(builder, totals, args[1], args[3])
            totals = add(builder, totals, args[2], args[4])
            return context.make_tuple(builder, sig.return_type, totals)

        return sums(sums, w0, w1, types.int64, types.int64), build

    return dot


unsigned_dot_rows = _dot_rows("rllama_unsigned_dot")
signed_dot_rows = _dot_rows("rllama_signed_dot")


def _start_rows(name: str) -> Callable[[int, int, int], Any]:
    """Return what begins the runs of rows with the neighbouring sums of each."""

    @constant_instruction
    def start(_typing: Any, rows: Any, address: Any, offset: Any) -> Any:
        count = _row_count(rows)

        def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            factor = builder.trunc(args[2], I32)
            vectors = []
            for word in _row_scalars(builder, args[1], I32, count):
                operands = [spread(builder, word, i32x16.llvm), factor]
                vectors.append(call_llvm(builder, name, i32x16.llvm, operands))
            return context.make_tuple(builder, sig.return_type, vectors)

        return types.UniTuple(i32x16, count)(rows, types.int64, types.int64), build

    return start


unsigned_start_rows = _start_rows("rllama_unsigned_start_of_row")
signed_start_rows = _start_rows("rllama_signed_start_of_row")


@instruction
def unsigned_end_rows(_typing: Any, totals: Any, sums: Any, scale: Any) -> Any:
    """End every row's run, and add it times a scale that they share to the row's total."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        runs = cgutils.unpack_tuple(builder, args[1], sig.return_type.count)

        def change(row: int, total: Any) -> Any:
            operands = [total, runs[row], args[2]]
            return call_llvm(builder, "rllama_unsigned_end", i32x16.llvm, operands)

        return _each_row(context, builder, sig, args[0], change)

    return totals(totals, sums, scale), build


@instruction
def signed_end_rows(_typing: Any, totals: Any, sums: Any, scale: Any) -> Any:
    """Add every row's sums times a scale that they share to the row's total."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        runs = cgutils.unpack_tuple(builder, args[1], sig.return_type.count)

        def change(row: int, total: Any) -> Any:
            return builder.add(total, builder.mul(runs[row], args[2]))

        return _each_row(context, builder, sig, args[0], change)

    return totals(totals, sums, scale), build


@instruction
def scale_rows_with_minimums(
    _typing: Any, totals: Any, sums: Any, scale: Any, minimums: Any, minus: Any, x: Any
) -> Any:
    """Do the same for integer sums times a scale of the lanes and minimums times another one."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        count = sig.return_type.count
        sums, minimums = (cgutils.unpack_tuple(builder, args[i], count) for i in (1, 3))
        scalars = _row_scalars(builder, args[5], F32, count)

        def change(row: int, total: Any) -> Any:
            whole, taken = (
                builder.sitofp(vectors[row], f32x16.llvm) for vectors in (sums, minimums)
            )
            scaled = [taken, args[4], builder.fmul(whole, args[2])]
            scaled = call_llvm(builder, "rllama_fma", f32x16.llvm, scaled)
            factor = spread(builder, scalars[row], f32x16.llvm)
            return call_llvm(builder, "rllama_fma", f32x16.llvm, [scaled, factor, total])

        return _each_row(context, builder, sig, args[0], change)

    return totals(totals, sums, scale, minimums, minus, types.int64), build


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
