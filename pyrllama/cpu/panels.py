"""Panels: weights unpacked for several rows of activations, and their products with these.

A panel holds 16 rows of some columns of a quantised type, block of 32 by block: the operands of
the products as bytes, then float32 scales and addends of every run and row, whatever the type
was.  Two or four rows alone are multiplied with the packed weights as they come from memory,
which is what then takes the time.

While a panel is multiplied, the packed weights that the next one is made of are asked for, so
that memory and arithmetic work at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrllama.cpu import activations as forms
from pyrllama.cpu.blocks import blocks_of, sums_of_halves
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.levels import PAIRS, Step, over_pairs
from pyrllama.cpu.simd import (
    Lanes,
    add_nibble_sum_rows,
    fused_multiply_add_rows,
    hide,
    load_f32x16,
    load_i8x64,
    prefetch,
    scale_rows,
    splat_f32,
    store,
    zero_rows,
    zero_sums,
)

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format

PANEL_SCALES = 512
"""Where scales stand in a block of 16 rows of a panel: behind 32 columns of bytes."""
ASKING_BLOCKS = 8
"""Blocks of a panel that are multiplied between requests for what follows.  For two sixes of
rows, eight blocks bring 18 lines of Q4_0, which a core can wait for at once."""

Multiply = Callable[[int, int, int], Any]
"""``multiply(p, x, n)``: the products of ``n`` blocks with the rows of activations at ``x``."""
MultiplyPanel = Callable[[Any, int, int, int, int, int], Any]
"""``multiply(totals, panel, x, n, ahead, step)``: the totals with ``n`` blocks of a panel, while
``step`` bytes a block are asked for from ``ahead`` on."""
Adder = Callable[[Any, int, int, Lanes, Lanes], Any]
"""``add(totals, q, x, scale, addend)``: the totals with a run of the levels at ``q``."""
Steps = Callable[[int, int, Step], Callable[[Any, int, int], Any]]
"""``steps(first, count, step)`` is what takes a step for some pairs."""


def panel_block_bytes(format_: Format) -> int:
    """Return the bytes of 16 rows and 32 columns in a panel: operands, scales, addends."""
    return PANEL_SCALES + 64 * format_.runs * (1 + format_.has_addend)


def steps_of_packed(format_: Format) -> Steps:
    """Return what goes over the pairs of a packed block."""
    operands = blocks_of(format_).operands
    return lambda first, count, step: over_pairs(operands[first : first + count], first, step)


def steps_of_panel(first: int, count: int, step: Step) -> Callable[[Any, int, int], Any]:
    """Return what goes over the pairs of a panel; written out, LLVM would mix them up.

    A loop of two it would write out by itself, so their number is hidden from it.
    """
    hidden = count < PAIRS

    @inline
    def steps(sums: Any, q: int, x: int) -> Any:
        for i in range(hide(first) if hidden else first, first + count):
            pair = q + 128 * i
            sums = step(sums, load_i8x64(pair), load_i8x64(pair + 64), x, i)
        return sums

    return steps


def adders(rows: int, format_: Format, steps: Steps) -> tuple[Adder, Adder]:
    """Return what adds the first and the last run of 32 columns to the totals of some rows."""
    last = format_.runs - 1
    return run_adder(rows, format_, steps, 0), run_adder(rows, format_, steps, last)


def run_adder(rows: int, format_: Format, steps: Steps, run: int) -> Adder:
    """Return what adds a run to the totals of some rows."""
    products, has_addend = blocks_of(format_).products, format_.has_addend
    start, dot, end, offset = (
        products.start_rows, products.dot_rows, products.end_rows, products.offset
    )  # fmt: skip
    sum_of_run = forms.COLUMN_BYTES * (run + format_.runs - 1)
    pairs = PAIRS // format_.runs

    @inline
    def step(sums: Any, w0: Lanes, w1: Lanes, x: int, i: int) -> Any:
        """Add the products of a pair."""
        word = x + 2 * forms.COLUMN_BYTES * i
        return dot(sums, w0, w1, word, word + forms.COLUMN_BYTES)

    @inline
    def zero() -> Any:
        return zero_sums(rows)

    first = run * pairs
    if products.in_halves:
        halves = [steps(i, 2, step) for i in range(first, first + pairs, 2)]
        all_products = sums_of_halves(halves, zero, add_nibble_sum_rows)
    else:
        all_products = steps(first, pairs, step)

    @inline
    def add(totals: Any, q: int, x: int, scale: Lanes, addend: Lanes) -> Any:
        sums = all_products(start(rows, x + forms.SUMS_OF_ROWS + sum_of_run, offset), q, x)
        totals = scale_rows(totals, end(sums), scale, x + forms.SCALES)
        if has_addend:
            place = x + forms.SCALED_SUMS + sum_of_run
            totals = fused_multiply_add_rows(totals, addend, place)
        return totals

    return add


def multiply_packed(rows: int, format_: Format) -> Multiply:
    """Return what multiplies a packed group with a few rows."""
    scale, addend = blocks_of(format_).scale, blocks_of(format_).addend
    runs, blocks = format_.runs, format_.blocks
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    add, add_1 = adders(rows, format_, steps_of_packed(format_))

    @inline
    def multiply(p: int, x: int, n_packed: int) -> Any:
        totals = zero_rows(rows)
        for _ in range(n_packed):
            for b in range(blocks):
                q, i = p + head_bytes + b * level_bytes, runs * b
                totals = add(totals, q, x, scale(p, i), addend(p, i))
                if runs == 2:
                    totals = add_1(totals, q, x, scale(p, i + 1), addend(p, i + 1))
                x += forms.BLOCK_BYTES
            p += packed_bytes
        return totals

    return multiply


def multiply_panel(rows: int, format_: Format) -> MultiplyPanel:
    """Return what adds the products of a panel to the totals of up to six rows."""
    runs, block_bytes = format_.runs, panel_block_bytes(format_)
    addends = PANEL_SCALES + 64 * runs
    add, add_1 = adders(rows, format_, steps_of_panel)
    has_addend = format_.has_addend

    @inline
    def addend_at(place: int) -> Lanes:
        return load_f32x16(place) if has_addend else splat_f32(0.0)

    @inline
    def add_block(totals: Any, panel: int, x: int) -> Any:
        scale = load_f32x16(panel + PANEL_SCALES)
        totals = add(totals, panel, x, scale, addend_at(panel + addends))
        if runs == 2:
            scale = load_f32x16(panel + PANEL_SCALES + 64)
            totals = add_1(totals, panel, x, scale, addend_at(panel + addends + 64))
        return totals

    @inline
    def multiply(totals: Any, panel: int, x: int, n: int, ahead: int, step: int) -> Any:
        for first in range(0, n, ASKING_BLOCKS):
            last = min(first + ASKING_BLOCKS, n)
            for place in range(ahead + first * step, ahead + last * step, 64):
                prefetch(place)
            for _ in range(first, last):
                totals = add_block(totals, panel, x)
                panel += block_bytes
                x += forms.BLOCK_BYTES
        return totals

    return multiply


def unpack_panel(format_: Format) -> Callable[[int, int, int], None]:
    """Return what makes a panel of a packed group."""
    operands, scale, addend, _ = blocks_of(format_)
    runs, blocks, has_addend = format_.runs, format_.blocks, format_.has_addend
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    block_bytes = panel_block_bytes(format_)

    @inline
    def put(state: int, first: Lanes, second: Lanes, place: int, i: int) -> int:
        """Store a pair as bytes."""
        store(place + 128 * i, first)
        store(place + 128 * i + 64, second)
        return state

    put_all = over_pairs(operands, 0, put)

    @inline
    def unpack(p: int, panel: int, n_packed: int) -> None:
        for _ in range(n_packed):
            for b in range(blocks):
                put_all(0, p + head_bytes + b * level_bytes, panel)
                for run in range(runs):
                    place, i = panel + PANEL_SCALES + 64 * run, runs * b + run
                    store(place, scale(p, i))
                    if has_addend:
                        store(place + 64 * runs, addend(p, i))
                panel += block_bytes
            p += packed_bytes

    return unpack
