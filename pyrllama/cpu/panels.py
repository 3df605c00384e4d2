"""Panels: weights unpacked for several rows of activations, and their products with these.

A panel holds 16 rows of some columns of a quantised type, packed block by packed block: of every
32 columns the operands of the products as bytes, then the scales of their runs where these have
any; behind them the block's float32 scales and addends.  Two or four rows alone are multiplied
with the packed weights as they come from memory, which is what then takes the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrllama.cpu import six_layout as forms
from pyrllama.cpu.blocks import blocks_of, minus_at_row
from pyrllama.cpu.finishing import rows_finisher
from pyrllama.cpu.instructions import has_assembly, hide
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.levels import PAIRS, Step, over_pairs
from pyrllama.cpu.parts import MEMORY, MultiplyPanel, Panels, add_part, over_panel
from pyrllama.cpu.records import PANEL_BLOCKS, START_OFFSET
from pyrllama.cpu.row_vectors import load_sums, zero_rows, zero_sums
from pyrllama.cpu.section_sums import OPERANDS_BYTES, no_sums, sums_of_sections
from pyrllama.cpu.sections import OFFSET
from pyrllama.cpu.simd import load_f32x16, load_i8x64, load_i32x16, splat_i32, store
from pyrllama.cpu.vectors import Lanes

if TYPE_CHECKING:
    from pyrllama.cpu.formats import Format

Multiply = Callable[[int, int, int], Any]
"""``multiply(p, x, n)``: the products of ``n`` blocks with the rows of activations at ``x``."""
AddSection = Callable[[Any, int, int, Lanes], Any]
"""``add(totals, q, x, scale)``: integer totals with a section of the levels at ``q``."""
Steps = Callable[[int, int, Step], Callable[[Any, int, int], Any]]
"""``steps(first, count, step)`` is what takes a step for some pairs."""


def sums_in_sections(format_: Format) -> bool:
    """Whether ``sections.py`` has what sums the products of a type, on CPUs that want it."""
    return format_.has_run_scales and not format_.is_signed


class PanelBlock(NamedTuple):
    """Bytes of 16 rows of a packed block in a panel."""

    columns: int
    """Of 32 columns, or those of two runs: operands, scales of runs."""
    scales: int
    """Before the float32 scales."""
    addends: int
    """Before the addends, or the unit of minimums and these."""
    size: int


def panel_block(format_: Format, groups: int = 1) -> PanelBlock:
    """Return where things stand in a panel's blocks, of one group or of two line by line."""
    step = blocks_a_step(format_, groups)
    lines = 1 if scales_share_words(format_, groups) else format_.runs
    columns = step * OPERANDS_BYTES + (64 * lines if format_.has_run_scales else 0)
    scales = format_.blocks // step * columns
    size = scales + 64 + 64 * addend_lines(format_, groups)
    return PanelBlock(*(groups * place for place in (columns, scales, scales + 64, size)))


def scales_share_words(format_: Format, groups: int) -> bool:
    """Whether scales of two runs share words in a panel, as ``pairs.py`` wants it."""
    return groups == 2 and format_.shared_limit > 0


def raised_by(format_: Format) -> int:
    """Return what a panel of two groups adds to operands, so that all offsets are the same."""
    if format_.is_signed:
        return START_OFFSET
    return START_OFFSET - format_.offset if format_.offset else 0


def blocks_a_step(format_: Format, groups: int) -> int:
    """Return the blocks of 32 columns behind which scales stand in a panel."""
    return 2 // format_.runs if scales_share_words(format_, groups) else 1


def addend_lines(format_: Format, groups: int) -> int:
    """Return the vectors of 16 rows' addends, or of the unit of minimums and of these.

    Those of two runs share the words of a panel of two groups.
    """
    if not format_.has_minimums:
        return format_.n_addends
    return 1 + format_.n_addends // groups


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


def section_adder(rows: int, format_: Format, steps: Steps, section: int) -> AddSection:
    """Return what adds a section of 32 columns to the totals of some rows."""
    products, offset, sections = blocks_of(format_).products, format_.offset, format_.sections
    start, dot, end = products.start_rows, products.dot_rows, products.end_rows
    sums_of_section = forms.SUMS_OF_ROWS + forms.COLUMN_BYTES * (section + sections - 1)
    pairs = PAIRS // sections

    @inline
    def step(sums: Any, w0: Lanes, w1: Lanes, x: int, i: int) -> Any:
        """Add the products of a pair."""
        word = x + 2 * forms.COLUMN_BYTES * i
        return dot(sums, w0, w1, word, word + forms.COLUMN_BYTES)

    all_products = steps(section * pairs, pairs, step)

    @inline
    def add(totals: Any, q: int, x: int, scale: Lanes) -> Any:
        return end(totals, all_products(start(rows, x + sums_of_section, offset), q, x), scale)

    return add


ScaleOfRun = Callable[[int, int], Lanes]
"""``scale(p, run)``, as integer sums take it."""
Columns = Callable[[Any, int, int, int, int], Any]
"""``add(totals, q, x, p, i)``: integer totals with 32 columns, whose first run is ``i``."""


def columns_adder(rows: int, format_: Format, steps: Steps, scale: ScaleOfRun) -> Columns:
    """Return what adds 32 columns to the integer totals of some rows."""
    sections, runs = format_.sections, format_.runs
    first, last = (section_adder(rows, format_, steps, i) for i in (0, sections - 1))

    @inline
    def add(totals: Any, q: int, x: int, p: int, i: int) -> Any:
        totals = first(totals, q, x, scale(p, i))
        if sections == 2:
            totals = last(totals, q, x, scale(p, i + runs - 1))
        return totals

    return add


def multiply_packed(rows: int, format_: Format) -> Multiply:
    """Return what multiplies a packed group with a few rows."""
    of_blocks, runs, blocks = blocks_of(format_), format_.runs, format_.blocks
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    run_scale, minimum_of_run = of_blocks.run_scale, of_blocks.minimum
    as_scale = of_blocks.products.scale

    @inline
    def scale(p: int, i: int) -> Lanes:
        return as_scale(run_scale(p, i))

    @inline
    def minimum(p: int, i: int) -> Lanes:
        return as_scale(minimum_of_run(p, i))

    add = columns_adder(rows, format_, steps_of_packed(format_), scale)
    addend = minimum if format_.has_minimums else of_blocks.addend
    finish = rows_finisher(rows, format_, of_blocks.unit, addend, minus_at_row)

    @inline
    def multiply(p: int, x: int, n_packed: int) -> Any:
        totals = zero_rows(rows)
        for _ in range(n_packed):
            sums, first_x = zero_sums(rows), x
            for b in range(blocks):
                sums = add(sums, p + head_bytes + b * level_bytes, x, p, runs * b)
                x += forms.BLOCK_BYTES
            totals = finish(totals, sums, p, first_x)
            p += packed_bytes
        return totals

    return multiply


def multiply_panel(rows: int, format_: Format) -> MultiplyPanel:
    """Return what adds the products of a panel to the totals of up to six rows."""
    blocks, (columns_bytes, scales, addends, block_bytes) = format_.blocks, panel_block(format_)
    as_scale, has_run_scales = blocks_of(format_).products.scale, format_.has_run_scales

    @inline
    def scale(q: int, run: int) -> Lanes:
        if has_run_scales:
            return load_i32x16(q + OPERANDS_BYTES + 64 * run)
        return as_scale(splat_i32(1))

    @inline
    def unit(panel: int) -> Lanes:
        return load_f32x16(panel + scales)

    @inline
    def addend(panel: int, i: int) -> Lanes:
        return load_f32x16(panel + addends + 64 * i)

    @inline
    def minus(panel: int) -> Lanes:
        return load_f32x16(panel + addends)

    @inline
    def minimum(panel: int, i: int) -> Lanes:
        return load_i32x16(panel + addends + 64 + 64 * i)

    add = columns_adder(rows, format_, steps_of_panel, scale)
    finish = rows_finisher(rows, format_, unit, minimum if format_.has_minimums else addend, minus)
    in_sections = sums_in_sections(format_)
    put_sums = sums_of_sections(rows, format_, columns_bytes) if in_sections else no_sums

    @inline
    def add_block(totals: Any, panel: int, x: int, memory: int) -> Any:
        if in_sections and has_assembly():
            put_sums(panel, x, memory)
            return finish(totals, load_sums(rows, memory), panel, x)
        sums = zero_sums(rows)
        for b in range(blocks):
            q = panel + b * columns_bytes
            sums = add(sums, q, x + b * forms.BLOCK_BYTES, q, 0)
        return finish(totals, sums, panel, x)

    return over_panel(add_block, blocks, block_bytes, forms.BLOCK_BYTES)


def unpack_panel(format_: Format, groups: int = 1) -> Callable[[int, int, int, int], None]:
    """Return what makes a panel of a packed group, or of two whose lines alternate.

    Operands of two groups are raised, as ``pairs.py`` wants it.
    """
    operands, unit, run_scale, _, _, products = blocks_of(format_)
    runs, blocks, put_addends = format_.runs, format_.blocks, put_addends_of(format_, groups)
    has_run_scales, as_scale = format_.has_run_scales, products.scale
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    columns_bytes, scales, addends, block_bytes = panel_block(format_, groups)
    in_sections, minus_offset = sums_in_sections(format_), (-format_.offset & 0xFFFF) * 0x10001
    line, up = 64 * groups, raised_by(format_) if groups == 2 else 0
    operands_bytes, step = groups * OPERANDS_BYTES, blocks_a_step(format_, groups)
    shared = scales_share_words(format_, groups)

    @inline
    def put(state: int, first: Lanes, second: Lanes, place: int, i: int) -> int:
        """Store a pair as bytes."""
        store(place + 2 * line * i, first + up)
        store(place + 2 * line * i + line, second + up)
        return state

    put_all = over_pairs(operands, 0, put)

    @inline
    def unpack_group(p: int, panel: int, n_packed: int) -> None:
        for _ in range(n_packed):
            for b in range(blocks):
                q = panel + b // step * columns_bytes + b % step * operands_bytes
                put_all(0, p + head_bytes + b * level_bytes, q)
                if shared:
                    if b % step == step - 1:
                        last = runs * b + runs - 1
                        pair = (run_scale(p, last - 1) & 0xFFFF) | (run_scale(p, last) << 16)
                        store(q + operands_bytes, pair)
                elif has_run_scales:
                    for run in range(runs):
                        scale = as_scale(run_scale(p, runs * b + run))
                        store(q + operands_bytes + line * run, scale)
            store(panel + scales, unit(p))
            put_addends(p, panel + addends)
            panel += block_bytes
            p += packed_bytes

    @inline
    def unpack(p: int, panel: int, n_packed: int, apart: int) -> None:
        if in_sections and has_assembly():
            store(panel + MEMORY + OFFSET, splat_i32(minus_offset))
        unpack_group(p, panel, n_packed)
        if groups == 2:
            unpack_group(p + apart, panel + 64, n_packed)

    return unpack


def put_addends_of(format_: Format, groups: int) -> Callable[[int, int], None]:
    """Return what writes the addends of a packed block, as ``addend_lines`` counts them."""
    blocks, n_addends, line = blocks_of(format_), format_.n_addends, 64 * groups
    addend, minimum, as_scale = blocks.addend, blocks.minimum, blocks.products.scale

    @inline
    def put_floats(p: int, place: int) -> None:
        for i in range(n_addends):
            store(place + line * i, addend(p, i))

    @inline
    def put_minimums(p: int, place: int) -> None:
        store(place, minus_at_row(p))
        for i in range(n_addends):
            store(place + line + line * i, as_scale(minimum(p, i)))

    @inline
    def put_pairs_of_minimums(p: int, place: int) -> None:
        store(place, minus_at_row(p))
        for i in range(0, n_addends, 2):
            pair = minimum(p, i) | (minimum(p, i + 1) << 16)
            store(place + line + line * (i // 2), pair)

    if not format_.has_minimums:
        return put_floats
    return put_minimums if groups == 1 else put_pairs_of_minimums


def byte_panels(format_: Format) -> Panels:
    """Return the panels of a quantised type, as bytes."""
    return Panels(
        unpack_panel(format_),
        lambda rows: add_part(rows, multiply_panel(rows, format_)),
        format_.bytes,
        format_.blocks,
        PANEL_BLOCKS,
        forms.BLOCK_BYTES,
    )
