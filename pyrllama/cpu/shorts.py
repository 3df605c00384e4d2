"""Columns of a panel times rows of activations, both as numbers of 16 bits.

AVX2 multiplies unsigned bytes with signed ones.  Signed weights take two more instructions there
for 32 products, and nothing but a sum of 32 bits holds two of them.  As numbers of 16 bits they
need neither: VPMADDWD multiplies half as many and adds their neighbours to 32 bits at once, and the
scale of a run goes into its weights, so that a super-block is one sum.

Bytes become such numbers two by two: what stands at even places of a 32-bit lane, then what stands
at odd ones, each extended with its sign by shifts.  As weights and activations are taken apart in
the same way, the products meet as they should.

Source of the instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrllama.cpu.lowering import (
    I8X64,
    I16X32,
    I32X16,
    I64,
    assembly,
    splat,
)
from pyrllama.cpu.records import ROWS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.cpu.lowering import Body

WORDS = 8
"""Words of four columns in a block of 32."""
WORD_BYTES = 4 * ROWS_AT_ONCE
"""Bytes of two columns of all interleaved rows of activations."""
ODD = WORDS * WORD_BYTES
"""Where the odd columns of a block's words stand behind the even ones."""
SCALES = 2 * ODD
"""Where the float32 scales of the rows stand behind both."""
BLOCK_BYTES = SCALES + WORD_BYTES
"""Bytes of a block of interleaved rows."""
WEIGHT_BYTES = 128 * WORDS
"""Bytes of the weights of 16 rows and 32 columns: of every word even columns, then odd ones."""

ARGUMENTS = (I64,) * 4
ROWS = (2, 4, ROWS_AT_ONCE)
EXTENSION = (I32X16, (I8X64, I32X16))
"""Result and arguments of what makes numbers of 16 bits, times those of a factor, of bytes."""


def name_for(rows: int) -> str:
    """Return the operation on ``(weights, x, n, sums)`` that writes the sums of ``n`` blocks."""
    return f"rllama_shorts_{rows}"


def short_bodies(*, avx2: bool) -> dict[str, Body]:
    """Return the definitions of the operations, which are there for AVX2."""
    if not avx2:
        return {}
    products = {name_for(rows): assembly(ARGUMENTS, _instructions(rows)) for rows in ROWS}
    return {**products, "rllama_even_shorts": _even, "rllama_odd_shorts": _odd}


def _even(builder: Any, lanes: Any, factors: Any) -> Any:
    lanes, eight = builder.bitcast(lanes, I16X32), splat(I16X32, 8)
    return _times(builder, builder.ashr(builder.shl(lanes, eight), eight), factors)


def _odd(builder: Any, lanes: Any, factors: Any) -> Any:
    lanes = builder.ashr(builder.bitcast(lanes, I16X32), splat(I16X32, 8))
    return _times(builder, lanes, factors)


def _times(builder: Any, numbers: Any, factors: Any) -> Any:
    return builder.bitcast(builder.mul(numbers, builder.bitcast(factors, I16X32)), I32X16)


def _instructions(rows: int) -> Iterator[str]:
    """Yield a loop over blocks; a row has two registers of sums."""
    weights, x, blocks = "%rax", "%rcx", "%rdx"
    low, high, word, product = (f"%ymm{i}" for i in range(12, 16))
    yield from (f"mov ${i}, {copy}" for i, copy in enumerate((weights, x, blocks)))
    yield from (f"vpxor %xmm{i}, %xmm{i}, %xmm{i}" for i in range(2 * rows))
    yield ".p2align 4"
    yield "1:"
    for i in range(2 * WORDS):
        yield f"vmovdqu {64 * i}({weights}), {low}"
        yield f"vmovdqu {64 * i + 32}({weights}), {high}"
        for row in range(rows):
            yield f"vpbroadcastd {i % 2 * ODD + i // 2 * WORD_BYTES + 4 * row}({x}), {word}"
            yield f"vpmaddwd {word}, {low}, {product}"
            yield f"vpmaddwd {word}, {high}, {word}"
            yield f"vpaddd {product}, %ymm{2 * row}, %ymm{2 * row}"
            yield f"vpaddd {word}, %ymm{2 * row + 1}, %ymm{2 * row + 1}"
    yield f"add $${WEIGHT_BYTES}, {weights}"
    yield f"add $${BLOCK_BYTES}, {x}"
    yield f"dec {blocks}"
    yield "jne 1b"
    yield from (f"vmovdqu %ymm{i}, {32 * i}($3)" for i in range(2 * rows))
