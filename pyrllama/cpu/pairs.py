"""Panels of two groups of weights times rows of activations, written out for 32 wide registers.

With AVX-512 and VNNI a product of 64 bytes is one instruction, and so is its addition, but it waits
four cycles for the sum that it adds to, and CPUs that begin two of them a cycle (measured on a
Zen 5) load two vectors a cycle.  Six rows times two groups are twelve sums, which is enough to
wait for, and share every load with one of the other side: 8 loads for 12 products.

A run is 16 or 32 columns.  What its sums begin with, to take the offset of unsigned weights off,
stands among the rows and costs no arithmetic.  Sums of runs go, times their scales, to totals of 32
bits, which stay in registers for a super-block; those of packed blocks go to totals of float32,
which wait in memory.

Source of the instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from pyrllama.cpu.lowering import I64, assembly
from pyrllama.cpu.records import ROWS_AT_ONCE
from pyrllama.cpu.six_layout import (
    BLOCK_BYTES,
    COLUMN_BYTES,
    GREATEST,
    SCALED_SUMS,
    SCALES,
    SUMS_OF_BLOCKS,
    SUMS_OF_HALVES,
    SUMS_OF_ROWS,
)

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


class Pairs(NamedTuple):
    """An operation on ``(panel, x, n, totals, limit)``, over ``n`` packed blocks.

    Their products are added to totals of float32 in memory, those of a group's rows side by side.
    """

    rows: int
    blocks: int
    """Of 32 columns in a packed block."""
    runs: int
    """Of 32 columns."""
    starts: bool
    """Whether sums of runs begin with the rows' sums, and not with zero."""
    run_scales: bool
    """Whether runs have scales of whole numbers."""
    shared: bool
    """Whether the sums of two runs may share words: those of super-blocks do whose activations are
    no greater than ``limit``.  Both scales share words too."""
    addends: int
    """Of a packed block, which are multiplied with sums of activations and added."""
    minimums: int
    """Of a packed block: words of those of two runs, which are multiplied with sums of activations
    that share words."""

    @property
    def name(self) -> str:
        """Of the operation."""
        return "rllama_pairs_" + "_".join(str(int(each)) for each in self)

    @property
    def step_blocks(self) -> int:
        """Blocks of 32 columns whose products are taken at a time."""
        return 2 // self.runs if self.shared else 1

    @property
    def step_bytes(self) -> int:
        """Bytes of a step of both groups in a panel: levels, then scales."""
        lines = 1 if self.shared else self.runs
        return self.step_blocks * LEVEL_BYTES + (LINE * lines if self.run_scales else 0)

    @property
    def lines(self) -> int:
        """Vectors behind the columns of a packed block in a panel, of each group."""
        return 1 + self.addends + (1 + self.minimums if self.minimums else 0)

    @property
    def packed_bytes(self) -> int:
        """Bytes of a packed block of both groups in a panel."""
        return self.blocks // self.step_blocks * self.step_bytes + LINE * self.lines


def _all_pairs() -> Iterator[Pairs]:
    super_block = 8
    for rows in (2, 4, ROWS_AT_ONCE):
        for starts in (False, True):
            yield from (Pairs(rows, 1, 1, starts, False, False, addends, 0) for addends in (0, 1))
            yield Pairs(rows, super_block, 1, starts, False, False, 0, 0)
        for runs, shared in itertools.product((1, 2), (False, True)):
            minimums = super_block * runs // 2
            yield Pairs(rows, super_block, runs, False, True, shared, 0, 0)
            yield Pairs(rows, super_block, runs, True, True, shared, 0, 0)
            yield Pairs(rows, super_block, runs, False, True, shared, 0, minimums)


PAIRS = tuple(_all_pairs())
ARGUMENTS = (I64,) * 5


def pair_bodies(*, wide: bool) -> dict[str, Body]:
    """Return the definitions of the operations, which are there for AVX-512 with VNNI."""
    if not wide:
        return {}
    return {pairs.name: assembly(ARGUMENTS, _instructions(pairs), 32) for pairs in PAIRS}


_PANEL, _X, _N = "%rax", "%rcx", "%rdx"
_LEFT, _LEFT_32 = "%rdi", "%edi"
_SHARED, _WORD, _FACTOR = ("%zmm24", "%zmm25"), "%zmm26", "%zmm27"
"""What both groups' rows are multiplied with, a broadcast, and a product of scales."""
_SIGN, _LIMIT = "%zmm28", "%zmm29"
"""The sign of the lower 16 bits, and the greatest sum of magnitudes with which runs share words."""
_SUMS, _TOTALS = ([f"%zmm{first + i}" for i in range(12)] for first in (0, 12))


def _instructions(pairs: Pairs) -> Iterator[str]:
    """Yield a loop over packed blocks, and inside of it one over blocks of 32 columns."""
    if pairs.shared:
        yield f"mov $$0x8000, {_LEFT_32}"
        yield f"vpbroadcastd {_LEFT_32}, {_SIGN}"
        yield f"vpbroadcastd ${{4:k}}, {_LIMIT}"
    copies = (_PANEL, _X, _N)
    yield from (f"mov ${i}, {copy}" for i, copy in enumerate(copies))
    stay = (
        list(zip(_tile(pairs, _TOTALS), _places(pairs), strict=True)) if pairs.blocks == 1 else []
    )
    yield from (f"vmovups {place}, {total}" for total, place in stay)
    yield ".p2align 4"
    yield "1:"
    if pairs.blocks > 1:
        yield from (f"vpxord {total}, {total}, {total}" for total in _tile(pairs, _TOTALS))
    if pairs.shared:
        yield f"vmovdqu64 {GREATEST}({_X}), {_WORD}"
        yield f"vpcmpgtd {_LIMIT}, {_WORD}, %k1"
        yield f"kmovw %k1, {_LEFT_32}"
        yield f"test $${(1 << pairs.rows) - 1}, {_LEFT_32}"
        yield "jne 4f"
        yield from _loop(pairs, "2", _shared_step(pairs))
        yield "jmp 5f"
        yield from _loop(pairs, "4", _step(pairs))
        yield "5:"
    elif pairs.blocks > 1:
        yield from _loop(pairs, "2", _step(pairs))
    else:
        yield from _step(pairs)
    yield from _finish_with_minimums(pairs) if pairs.minimums else _finish(pairs)
    yield f"add $${LINE * pairs.lines}, {_PANEL}"
    yield f"dec {_N}"
    yield "jne 1b"
    yield from (f"vmovups {total}, {place}" for total, place in stay)


def _loop(pairs: Pairs, label: str, step: Iterator[str]) -> Iterator[str]:
    """Yield what takes a step until a packed block is through."""
    inner = "3" if label == "4" else label
    if inner != label:
        yield f"{label}:"
    yield f"mov $${pairs.blocks // pairs.step_blocks}, {_LEFT}"
    yield ".p2align 4"
    yield f"{inner}:"
    yield from step
    yield f"dec {_LEFT}"
    yield f"jne {inner}b"


def _places(pairs: Pairs) -> list[str]:
    """Return where the float32 totals of a tile's registers are."""
    n = GROUPS * pairs.rows
    return [f"{64 * (i % GROUPS * pairs.rows + i // GROUPS)}($3)" for i in range(n)]


def _tile(pairs: Pairs, registers: list[str]) -> list[str]:
    """Return the registers of all rows, of each both groups."""
    return registers[: GROUPS * pairs.rows]


def _accumulators(pairs: Pairs) -> list[str]:
    """Return the registers that products are added to."""
    plain = pairs.blocks > 1 and not pairs.run_scales
    return _tile(pairs, _TOTALS if plain else _SUMS)


def _step(pairs: Pairs) -> Iterator[str]:
    """Yield the products of a step's columns, run by run."""
    for run in range(pairs.step_blocks * pairs.runs):
        yield from _start(pairs, run)
        yield from _products(pairs, run)
        if pairs.run_scales:
            yield from _scale(pairs, run)
    yield from _go_on(pairs)


def _shared_step(pairs: Pairs) -> Iterator[str]:
    """Yield the products of two runs, of which each sum takes one half of a word.

    The second run's are raised to the upper half, from which a negative sum in the lower one takes
    1.  Adding the lower half's sign bit gives that back, and turns this bit round.  It is added to
    what the first run starts with, which comes last, when nothing waits for it.
    """
    sums, totals = _tile(pairs, _SUMS), _tile(pairs, _TOTALS)
    yield from _start(pairs, 1)
    yield from _products(pairs, 1)
    yield from (f"vpslld $$16, {sum_}, {sum_}" for sum_ in sums)
    yield from _products(pairs, 0)
    yield from _load_shared(pairs.step_blocks * LEVEL_BYTES)
    for row in range(pairs.rows):
        start = _SIGN
        if pairs.starts:
            start = _WORD
            yield f"vpaddd {_place_of_start(pairs, 0, row)}{{1to16}}, {_SIGN}, {start}"
        for group, scales in enumerate(_SHARED):
            sum_, total = (each[GROUPS * row + group] for each in (sums, totals))
            yield f"vpaddd {start}, {sum_}, {sum_}"
            yield f"vpxord {_SIGN}, {sum_}, {sum_}"
            yield f"vpdpwssd {scales}, {sum_}, {total}"
    yield from _go_on(pairs)


def _go_on(pairs: Pairs) -> Iterator[str]:
    yield f"add $${pairs.step_bytes}, {_PANEL}"
    yield f"add $${BLOCK_BYTES * pairs.step_blocks}, {_X}"


def _place_of_start(pairs: Pairs, run: int, row: int) -> str:
    """Return where the start of a run of a step is."""
    block, run = divmod(run, pairs.runs)
    place = BLOCK_BYTES * block + SUMS_OF_ROWS + COLUMN_BYTES * (run + pairs.runs - 1)
    return f"{place + 4 * row}({_X})"


def _start(pairs: Pairs, run: int) -> Iterator[str]:
    sums, plain = _accumulators(pairs), pairs.blocks > 1 and not pairs.run_scales
    for row in range(pairs.rows):
        start = _place_of_start(pairs, run, row)
        first, second = sums[GROUPS * row : GROUPS * row + GROUPS]
        if plain and pairs.starts:
            yield f"vpaddd {start}{{1to16}}, {first}, {first}"
            yield f"vpaddd {start}{{1to16}}, {second}, {second}"
        elif pairs.starts:
            yield f"vpbroadcastd {start}, {first}"
            yield f"vmovdqa64 {first}, {second}"
        elif not plain:
            yield f"vpxord {first}, {first}, {first}"
            yield f"vpxord {second}, {second}, {second}"


def _load_shared(place: int) -> Iterator[str]:
    for group, register in enumerate(_SHARED):
        yield f"vmovdqu64 {place + 64 * group}({_PANEL}), {register}"


def _products(pairs: Pairs, run: int) -> Iterator[str]:
    """Yield the products of a run of a step."""
    block, run = divmod(run, pairs.runs)
    words, sums = WORDS // pairs.runs, _accumulators(pairs)
    for i in range(words * run, words * run + words):
        yield from _load_shared(LEVEL_BYTES * block + LINE * i)
        for row in range(pairs.rows):
            place = BLOCK_BYTES * block + COLUMN_BYTES * i + 4 * row
            yield f"vpbroadcastd {place}({_X}), {_WORD}"
            for group, weights in enumerate(_SHARED):
                yield f"vpdpbusd {_WORD}, {weights}, {sums[GROUPS * row + group]}"


def _scale(pairs: Pairs, run: int) -> Iterator[str]:
    """Yield what adds sums times their run's scale to the totals."""
    lines = 0 if pairs.shared else run
    yield from _load_shared(LEVEL_BYTES * pairs.step_blocks + LINE * lines)
    if pairs.shared:
        for scale in _SHARED:
            if run == 0:
                yield f"vpslld $$16, {scale}, {scale}"
            yield f"vpsrad $$16, {scale}, {scale}"
    totals = _tile(pairs, _TOTALS)
    for i, (sum_, total) in enumerate(zip(_SUMS, totals, strict=False)):
        yield f"vpmulld {_SHARED[i % GROUPS]}, {sum_}, {sum_}"
        yield f"vpaddd {sum_}, {total}, {total}"


def _finish(pairs: Pairs) -> Iterator[str]:
    """Yield what adds a packed block to the totals in memory; both pointers are behind it."""
    in_memory = pairs.blocks > 1
    whole, floats = (_TOTALS, _TOTALS) if in_memory else (_SUMS, _TOTALS)
    whole, floats = _tile(pairs, whole), _tile(pairs, floats)
    scales = SCALES - BLOCK_BYTES * pairs.blocks
    yield from _load_shared(0)
    for i, (number, total, place) in enumerate(zip(whole, floats, _places(pairs), strict=True)):
        scale, unit = scales + 4 * (i // GROUPS), _SHARED[i % GROUPS]
        yield f"vmulps {scale}({_X}){{1to16}}, {unit}, {_FACTOR}"
        yield f"vcvtdq2ps {number}, {number}"
        if in_memory:
            yield f"vfmadd213ps {place}, {_FACTOR}, {number}"
            yield f"vmovups {number}, {place}"
        else:
            yield f"vfmadd231ps {_FACTOR}, {number}, {total}"
    for addend in range(pairs.addends):
        yield from _load_shared(LINE * (1 + addend))
        for row in range(pairs.rows):
            yield f"vbroadcastss {SCALED_SUMS - BLOCK_BYTES + 4 * row}({_X}), {_WORD}"
            for group, addends in enumerate(_SHARED):
                yield f"vfmadd231ps {_WORD}, {addends}, {floats[GROUPS * row + group]}"


def _finish_with_minimums(pairs: Pairs) -> Iterator[str]:
    """Yield the same for a packed block with minimums.

    Their products with sums of activations are whole numbers, and two of them one instruction.
    """
    whole, minimums = _tile(pairs, _TOTALS), _tile(pairs, _SUMS)
    yield from (f"vpxord {register}, {register}, {register}" for register in minimums)
    back = BLOCK_BYTES * pairs.blocks
    sums, every = (SUMS_OF_BLOCKS, 2) if pairs.runs == 1 else (SUMS_OF_HALVES, 1)
    for word in range(pairs.minimums):
        yield from _load_shared(LINE * (2 + word))
        for row in range(pairs.rows):
            place = sums + every * word * BLOCK_BYTES - back + 4 * row
            yield f"vpbroadcastd {place}({_X}), {_WORD}"
            for group, shared in enumerate(_SHARED):
                yield f"vpdpwssd {_WORD}, {shared}, {minimums[GROUPS * row + group]}"
    yield from _load_shared(0)
    for i, number in enumerate(whole):
        yield f"vcvtdq2ps {number}, {number}"
        yield f"vmulps {_SHARED[i % GROUPS]}, {number}, {number}"
    yield from _load_shared(LINE)
    scales = SCALES - BLOCK_BYTES * pairs.blocks
    places = iter(zip(whole, minimums, _places(pairs), strict=True))
    for row in range(pairs.rows):
        yield f"vbroadcastss {scales + 4 * row}({_X}), {_WORD}"
        for group, (number, minimum, where) in zip(range(GROUPS), places, strict=False):
            yield f"vcvtdq2ps {minimum}, {minimum}"
            yield f"vfmadd231ps {_SHARED[group]}, {minimum}, {number}"
            yield f"vfmadd213ps {where}, {_WORD}, {number}"
            yield f"vmovups {number}, {where}"
