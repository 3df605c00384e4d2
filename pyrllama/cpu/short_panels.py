"""Panels of signed weights as numbers of 16 bits, where a CPU wants them so (``shorts.py``).

Such a panel has no scales of runs any more: they are in its weights, which are whole numbers of at
most 15 bits and a sign.  The rows of activations that it meets are brought into the same form, a
part of the columns at a time, and stay in a core's second cache while groups pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import types

from pyrllama.cpu import shorts
from pyrllama.cpu import six_layout as forms
from pyrllama.cpu.blocks import blocks_of
from pyrllama.cpu.instructions import machine_operation, run_scale
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.levels import over_pairs
from pyrllama.cpu.parts import MultiplyPanel, OwnRows, Panels, add_part, over_panel
from pyrllama.cpu.records import PANEL_BLOCKS
from pyrllama.cpu.row_vectors import load_sums, scale_rows
from pyrllama.cpu.simd import load_f32x16, load_i8x64, splat_i32, store
from pyrllama.cpu.vectors import Lanes, i8x64, i32x16

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.formats import Format

even_shorts = machine_operation("rllama_even_shorts", (i8x64, i32x16), i32x16)
odd_shorts = machine_operation("rllama_odd_shorts", (i8x64, i32x16), i32x16)
_PRODUCTS = {
    rows: machine_operation(
        shorts.name_for(rows), (types.int64,) * len(shorts.ARGUMENTS), types.void
    )
    for rows in shorts.ROWS
}
ONES = 0x10001
"""One in both 16-bit halves of a lane."""
ROWS_STRIDE = PANEL_BLOCKS * shorts.BLOCK_BYTES
"""Bytes from one six of rows to the next."""


def suits_shorts(format_: Format) -> bool:
    """Whether panels of a type are short where CPUs want that.

    Where a sum is that of 32 columns, taking it to float32 costs what its products save.
    """
    return format_.is_signed and format_.has_run_scales


@inline
def widen_rows(x: int, x_stride: int, n_blocks: int, n_sixes: int, out: int) -> None:
    """Write blocks of interleaved rows of bytes, ``x_stride`` apart, as numbers of 16 bits."""
    for six in range(n_sixes):
        source, target = x + six * x_stride, out + six * ROWS_STRIDE
        for _ in range(n_blocks):
            # Lines go beyond the scales, into a block that is still to be written.
            for line in range(0, shorts.ODD, 64):
                four = load_i8x64(source + line)
                store(target + line, even_shorts(four, splat_i32(ONES)))
                store(target + shorts.ODD + line, odd_shorts(four, splat_i32(ONES)))
            store(target + shorts.SCALES, load_f32x16(source + forms.SCALES))
            source += forms.BLOCK_BYTES
            target += shorts.BLOCK_BYTES


def unpack_short_panel(format_: Format) -> Callable[[int, int, int, int], None]:
    """Return what makes a panel of a packed group of a signed type."""
    operands, unit, scale_of_run, *_ = blocks_of(format_)
    runs, blocks = format_.runs, format_.blocks
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes

    @inline
    def put(scale: Lanes, first: Lanes, second: Lanes, place: int, i: int) -> Lanes:
        """Store a pair times the scale of its run."""
        place += 256 * i
        store(place, even_shorts(first, scale))
        store(place + 64, odd_shorts(first, scale))
        store(place + 128, even_shorts(second, scale))
        store(place + 192, odd_shorts(second, scale))
        return scale

    pairs = len(operands) // runs
    put_first = over_pairs(operands[:pairs], 0, put)
    put_last = over_pairs(operands[-pairs:], len(operands) - pairs, put)

    @inline
    def unpack(p: int, panel: int, n_packed: int, _apart: int) -> None:
        for _ in range(n_packed):
            for b in range(blocks):
                q, i = p + head_bytes + b * level_bytes, runs * b
                put_first(run_scale(scale_of_run(p, i)), q, panel)
                if runs == 2:
                    put_last(run_scale(scale_of_run(p, i + 1)), q, panel)
                panel += shorts.WEIGHT_BYTES
            store(panel, unit(p))
            panel += 64
            p += packed_bytes

    return unpack


def multiply_short_panel(rows: int, format_: Format) -> MultiplyPanel:
    """Return what adds the products of a panel to the totals of up to six rows."""
    blocks, multiply = format_.blocks, _PRODUCTS[rows]
    weight_bytes = blocks * shorts.WEIGHT_BYTES

    @inline
    def add_block(totals: Any, panel: int, x: int, memory: int) -> Any:
        multiply(panel, x, blocks, memory)
        unit = load_f32x16(panel + weight_bytes)
        return scale_rows(totals, load_sums(rows, memory), unit, x + shorts.SCALES)

    return over_panel(add_block, blocks, weight_bytes + 64, shorts.BLOCK_BYTES)


def short_panels(format_: Format) -> Panels:
    """Return the panels of a signed type of super-blocks, as numbers of 16 bits."""
    return Panels(
        unpack_short_panel(format_),
        lambda rows: add_part(rows, multiply_short_panel(rows, format_), in_place=False),
        format_.bytes,
        format_.blocks,
        PANEL_BLOCKS,
        forms.BLOCK_BYTES,
        OwnRows(widen_rows, ROWS_STRIDE),
    )
