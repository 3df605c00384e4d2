"""Transposing pieces of 16 stored rows in registers, 16 bytes of each row at a time.

All of it is exchanges between the 128-bit vectors of four or eight rows, for which every CPU
has instructions; a row's bytes are loaded once, and whole vectors are stored.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pyrllama.cpu.vectors import I16, I32, I64, instruction, pointer, shuffle

ROWS = 16
_WORDS, _HALVES = ir.VectorType(I32, 4), ir.VectorType(I16, 8)
_EVEN, _ODD = list(range(0, 16, 2)), list(range(1, 16, 2))


def _at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.add(base, offset if isinstance(offset, ir.Value) else I64(offset))


def _columns_of_words(builder: Any, source: Any, stride: Any) -> list[list[Any]]:
    """Load 16 bytes of each row; return, for each of 4 words, that of 4 rows, 4 times."""
    columns: list[list[Any]] = [[], [], [], []]
    for first in range(0, ROWS, 4):
        a, b, c, d = (
            builder.load(
                pointer(builder, _at(builder, source, builder.mul(stride, I64(row))), _WORDS),
                align=1,
            )
            for row in range(first, first + 4)
        )
        for low, words in ((0, (0, 1)), (2, (2, 3))):
            ab, cd = (
                shuffle(builder, x, y, [low, low + 4, low + 1, low + 5])
                for x, y in ((a, b), (c, d))
            )
            columns[words[0]].append(shuffle(builder, ab, cd, [0, 1, 4, 5]))
            columns[words[1]].append(shuffle(builder, ab, cd, [2, 3, 6, 7]))
    return columns


@instruction
def transpose_words(_typing: Any, source: Any, stride: Any, target: Any) -> Any:
    """Store 4 vectors of 16 words at ``target``: the first word of every row, and so on."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        for word, quarters in enumerate(_columns_of_words(builder, args[0], args[1])):
            for quarter, vector in enumerate(quarters):
                place = _at(builder, args[2], 64 * word + 16 * quarter)
                builder.store(vector, pointer(builder, place, _WORDS), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@instruction
def transpose_halves(_typing: Any, source: Any, stride: Any, target: Any) -> Any:
    """Store 8 vectors of 16 half-words at ``target``: the first of every row, and so on."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        for word, quarters in enumerate(_columns_of_words(builder, args[0], args[1])):
            pairs = [builder.bitcast(quarter, _HALVES) for quarter in quarters]
            for side, lanes in enumerate((_EVEN, _ODD)):
                for half in (0, 1):
                    vector = shuffle(builder, pairs[2 * half], pairs[2 * half + 1], lanes)
                    place = _at(builder, args[2], 64 * word + 32 * side + 16 * half)
                    builder.store(vector, pointer(builder, place, _HALVES), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@instruction
def gather_halves(_typing: Any, source: Any, stride: Any, target: Any) -> Any:
    """Store the half-words that stand at ``source`` in each of the 16 rows."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.VectorType(I16, ROWS)
        vector: Any = ir.Constant(kind, ir.Undefined)
        for row in range(ROWS):
            place = _at(builder, args[0], builder.mul(args[1], I64(row)))
            half = builder.load(pointer(builder, place, I16), align=1)
            vector = builder.insert_element(vector, half, ir.Constant(I32, row))
        builder.store(vector, pointer(builder, args[2], kind), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build
