"""Panels of two groups of weights times rows of activations, written out for 32 wide registers.

With AVX-512 and VNNI a product of 64 bytes is one instruction, and so is its addition, but it waits
four cycles for the sum that it adds to, and CPUs that begin two of them a cycle (measured on a
Zen 5) load two vectors a cycle.  Six rows times two groups are twelve sums, which is enough to
wait for, and share every load with one of the other side: 8 loads for 12 products.

A run is 16 or 32 columns.  What its sums begin with, to take the offset of unsigned weights off,
is read from the activations and costs no arithmetic.  Sums of runs go, times their scales, to
totals of 32 bits, which stay in registers for a super-block; where a block has one float16 scale,
they go to totals of float32.

Source of the instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
"""

from __future__ import annotations

import enum
import itertools
from typing import TYPE_CHECKING, NamedTuple

from pyrllama.cpu.lowering import I64, assembly
from pyrllama.cpu.records import BLOCK_WORDS, ROWS_AT_ONCE, SUMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.cpu.lowering import Body

GROUPS = 2
WORDS = 8
"""Words of four columns in a block of 32."""
LINE = 64 * GROUPS
"""Bytes of a vector of both groups, one behind the other."""
LEVEL_BYTES = LINE * WORDS
"""Bytes of the levels of 32 columns, before what stands behind them in a panel."""
WORD_BYTES = 4 * ROWS_AT_ONCE
BLOCK_BYTES = WORD_BYTES * BLOCK_WORDS
SCALES = WORDS * WORD_BYTES
SCALED_SUMS = SCALES + (1 + SUMS) * WORD_BYTES


class End(enum.Enum):
    """Where the sums of runs go."""

    NOWHERE = "plain"
    """They are the totals."""
    WHOLE = "whole"
    """To totals of whole numbers, times scales of whole numbers."""
    FLOAT = "float"
    """To totals of float32, times the block's scales and the activations'."""
    ADDEND = "addend"
    """The same, and addends of the block times the sums of activations."""


class Pairs(NamedTuple):
    """An operation on ``(panel, x, starts, n, totals)``, over ``n`` blocks of 32 columns.

    Totals of float32 are added to, those of whole numbers written.
    """

    rows: int
    runs: int
    """Of 32 columns."""
    starts: bool
    """Whether sums of runs begin with the words at ``starts``, and not with zero."""
    end: End

    @property
    def name(self) -> str:
        """Of the operation."""
        return f"rllama_pairs_{self.rows}_{self.runs}_{self.starts:d}_{self.end.value}"

    @property
    def to_float(self) -> bool:
        """Whether totals are float32."""
        return self.end in {End.FLOAT, End.ADDEND}

    @property
    def starts_bytes(self) -> int:
        """Bytes of the starts of 32 columns."""
        return WORD_BYTES * self.runs if self.starts else 0

    @property
    def block_bytes(self) -> int:
        """Bytes of 32 columns of both groups in a panel."""
        behind = {End.NOWHERE: 0, End.WHOLE: self.runs, End.FLOAT: 1, End.ADDEND: 2}
        return LEVEL_BYTES + LINE * behind[self.end]


def _all_pairs() -> Iterator[Pairs]:
    for rows, starts in itertools.product((2, 4, ROWS_AT_ONCE), (False, True)):
        for end in End:
            yield Pairs(rows, 1, starts, end)
        yield Pairs(rows, 2, starts, End.WHOLE)


PAIRS = tuple(_all_pairs())
ARGUMENTS = (I64,) * 5


def pair_bodies(*, wide: bool) -> dict[str, Body]:
    """Return the definitions of the operations, which are there for AVX-512 with VNNI."""
    if not wide:
        return {}
    return {pairs.name: assembly(ARGUMENTS, _instructions(pairs), 32) for pairs in PAIRS}


_PANEL, _X, _STARTS, _BLOCKS = "%rax", "%rcx", "%rsi", "%rdx"
_WEIGHTS, _WORD, _FACTOR = ("%zmm24", "%zmm25"), "%zmm26", "%zmm27"


def _instructions(pairs: Pairs) -> Iterator[str]:
    """Yield a loop over blocks of 32 columns; a row has two registers of sums, two of totals."""
    totals = [f"%zmm{12 + i}" for i in range(GROUPS * pairs.rows)]
    places = [f"{64 * place}($4)" for place in _places(pairs)]
    copies = (_PANEL, _X, _STARTS, _BLOCKS)
    yield from (f"mov ${i}, {copy}" for i, copy in enumerate(copies))
    for place, total in zip(places, totals, strict=True):
        yield (
            f"vmovdqu64 {place}, {total}" if pairs.to_float else f"vpxord {total}, {total}, {total}"
        )
    yield ".p2align 4"
    yield "1:"
    sums = totals if pairs.end is End.NOWHERE else [f"%zmm{i}" for i in range(len(totals))]
    for run in range(pairs.runs):
        yield from _start(pairs, run, sums)
        yield from _products(run, pairs, sums)
        yield from _end(pairs, run, sums, totals)
    yield f"add $${pairs.block_bytes}, {_PANEL}"
    yield f"add $${BLOCK_BYTES}, {_X}"
    yield f"add $${pairs.starts_bytes}, {_STARTS}"
    yield f"dec {_BLOCKS}"
    yield "jne 1b"
    for place, total in zip(places, totals, strict=True):
        yield f"vmovdqu64 {total}, {place}"


def _places(pairs: Pairs) -> list[int]:
    """Return where the totals of each row and group stand: those of a group side by side."""
    return [pairs.rows * group + row for row in range(pairs.rows) for group in range(GROUPS)]


def _start(pairs: Pairs, run: int, sums: list[str]) -> Iterator[str]:
    for row in range(pairs.rows):
        start = f"{WORD_BYTES * run + 4 * row}({_STARTS})"
        first, second = sums[GROUPS * row : GROUPS * row + GROUPS]
        if pairs.end is End.NOWHERE:
            if pairs.starts:
                yield f"vpaddd {start}{{1to16}}, {first}, {first}"
                yield f"vpaddd {start}{{1to16}}, {second}, {second}"
        elif pairs.starts:
            yield f"vpbroadcastd {start}, {first}"
            yield f"vmovdqa64 {first}, {second}"
        else:
            yield f"vpxord {first}, {first}, {first}"
            yield f"vpxord {second}, {second}, {second}"


def _products(run: int, pairs: Pairs, sums: list[str]) -> Iterator[str]:
    words = WORDS // pairs.runs
    for i in range(words * run, words * run + words):
        for group, weights in enumerate(_WEIGHTS):
            yield f"vmovdqu64 {LINE * i + 64 * group}({_PANEL}), {weights}"
        for row in range(pairs.rows):
            yield f"vpbroadcastd {WORD_BYTES * i + 4 * row}({_X}), {_WORD}"
            for group, weights in enumerate(_WEIGHTS):
                yield f"vpdpbusd {_WORD}, {weights}, {sums[GROUPS * row + group]}"


def _end(pairs: Pairs, run: int, sums: list[str], totals: list[str]) -> Iterator[str]:
    if pairs.end is End.NOWHERE:
        return
    behind = LEVEL_BYTES + LINE * run
    for group, scales in enumerate(_WEIGHTS):
        yield f"vmovdqu64 {behind + 64 * group}({_PANEL}), {scales}"
    for i, (sum_, total) in enumerate(zip(sums, totals, strict=True)):
        row, scales = i // GROUPS, _WEIGHTS[i % GROUPS]
        if pairs.end is End.WHOLE:
            yield f"vpmulld {scales}, {sum_}, {sum_}"
            yield f"vpaddd {sum_}, {total}, {total}"
            continue
        yield f"vmulps {SCALES + 4 * row}({_X}){{1to16}}, {scales}, {_FACTOR}"
        yield f"vcvtdq2ps {sum_}, {sum_}"
        yield f"vfmadd231ps {_FACTOR}, {sum_}, {total}"
    if pairs.end is not End.ADDEND:
        return
    for group, addends in enumerate(_WEIGHTS):
        yield f"vmovdqu64 {behind + LINE + 64 * group}({_PANEL}), {addends}"
    for i, total in enumerate(totals):
        place = SCALED_SUMS + 4 * (i // GROUPS)
        yield f"vfmadd231ps {place}({_X}){{1to16}}, {_WEIGHTS[i % GROUPS]}, {total}"
