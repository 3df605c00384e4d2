"""Sections of a panel times rows of activations, written out for registers that are scarce.

A section is 16 or 32 columns of 16 rows of weights, bytes as ``panels.py`` has them, times rows
of activations that are interleaved word by word, four columns each (``activations.py``).  Its
products are summed in 16 bits, joined times the scales of its rows, and added to sums of 32 bits.

AVX2 has sixteen registers: sums of six rows, two vectors of weights, a broadcast and a product are
as many.  LLVM adds sums in trees and moves loads up, for both of which registers are missing, and
so kept half of the sums in memory between any two products.  As one piece of assembly they stay,
and what waits in memory are the sums of 32 bits, which change once a section.

Source of the instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyrllama.cpu.lowering import I64, assembly
from pyrllama.cpu.records import ROWS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.cpu.lowering import Body

WORD_BYTES = 4 * ROWS_AT_ONCE
"""Bytes of a word of all interleaved rows."""
OFFSET = 64 * ROWS_AT_ONCE
"""Where the negative offset of the weights stands behind the sums of rows, 16 bits a lane."""
SUMS_BYTES = OFFSET + 64
"""Bytes of the sums and the offset."""


class Section(NamedTuple):
    """An operation on ``(q, x, starts, scale, sums)``, the addresses of a section's operands.

    They are its weights, its activations, the pairs of sums of the latter, the scales of the
    weights, and the sums of all rows with the offset behind them.
    """

    rows: int
    words: int
    has_offset: bool
    """Whether weights have an offset, which ``starts`` take off."""

    @property
    def name(self) -> str:
        """Of the operation."""
        return f"rllama_section_{self.rows}_{self.words}_{self.has_offset:d}"


SECTIONS = tuple(
    Section(rows, words, has_offset)
    for rows in (2, 4, ROWS_AT_ONCE)
    for words in (4, 8)
    for has_offset in (False, True)
)
ARGUMENTS = (I64,) * 5


def section_bodies(*, avx2: bool) -> dict[str, Body]:
    """Return the definitions of the operations, which are there for AVX2."""
    if not avx2:
        return {}
    return {section.name: assembly(ARGUMENTS, _instructions(section)) for section in SECTIONS}


def _instructions(section: Section) -> Iterator[str]:
    """Yield a section's instructions; a row has two registers of sums."""
    q, x, starts, scale, sums = (f"(${i})" for i in range(5))
    low, high, word, product = (f"%ymm{i}" for i in range(12, 16))
    for i in range(section.words):
        yield f"vmovdqu {64 * i}{q}, {low}"
        yield f"vmovdqu {64 * i + 32}{q}, {high}"
        for row in range(section.rows):
            first, second = f"%ymm{2 * row}", f"%ymm{2 * row + 1}"
            yield f"vpbroadcastd {WORD_BYTES * i + 4 * row}{x}, {word}"
            if i == 0 and not section.has_offset:
                yield f"vpmaddubsw {word}, {low}, {first}"
                yield f"vpmaddubsw {word}, {high}, {second}"
                continue
            if i == 0:
                yield f"vpbroadcastd {4 * row}{starts}, {second}"
                yield f"vpmullw {OFFSET}{sums}, {second}, {second}"
            yield f"vpmaddubsw {word}, {low}, {product}"
            yield f"vpmaddubsw {word}, {high}, {word}"
            yield f"vpaddw {product}, {second if i == 0 else first}, {first}"
            yield f"vpaddw {word}, {second}, {second}"
    yield f"vmovdqu {scale}, {low}"
    yield f"vmovdqu 32{scale}, {high}"
    for i in range(2 * section.rows):
        yield f"vpmaddwd {high if i % 2 else low}, %ymm{i}, %ymm{i}"
        yield f"vpaddd {32 * i}{sums}, %ymm{i}, %ymm{i}"
        yield f"vmovdqu %ymm{i}, {32 * i}{sums}"
