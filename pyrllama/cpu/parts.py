"""Products of several rows of activations, part by part of the columns, whatever panels hold.

A panel is a part of a group's columns, unpacked, that stays in the core's first cache.  The same
columns of many rows stay in the second one while several groups pass, part by part, whatever whole
rows would take; the sums so far wait behind the panel.  A few rows fit there whole and meet group
after group.  While rows are multiplied, six at a time, the weights that are unpacked next are
asked for, so that memory and arithmetic work at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyrllama.cpu.instructions import has_assembly, has_pairs, prefetch
from pyrllama.cpu.kernel import View, inline
from pyrllama.cpu.records import (
    FEW_SIXES,
    GROUPS_AT_ONCE,
    PANEL_BYTES,
    ROWS_AT_ONCE,
    SIXES_AT_ONCE,
)
from pyrllama.cpu.row_vectors import add_rows, load_rows, store_rows, zero_rows

ROWS = ROWS_AT_ONCE
SUMS_BYTES = 64 * ROWS
"""Bytes of the sums of a group for six rows."""
MEMORY = PANEL_BYTES - 1024
"""Where in a panel's room the memory begins in which a block's sums may stand."""
ASKING_BLOCKS = 8
"""Blocks of a panel that are multiplied between requests for what follows.  For two sixes of
rows, eight blocks bring 18 lines of Q4_0, which a core can wait for at once."""

AddPart = Callable[..., None]
"""``add(panel, x, own, n, ahead, apart, step, sums, begins, ends, out, stride, accumulate)``.

Adds the products of ``n`` blocks of a panel with rows at ``x``, of which what the panels want of
their own is at ``own``, to ``sums``, which they begin or end in ``out``.  ``step`` bytes a block
are asked for from ``ahead`` on, and as many of a second group ``apart`` from it."""
MultiplyPanel = Callable[[Any, int, int, int, int, int], Any]
"""``multiply(totals, panel, x, n, ahead, step)``: the totals with ``n`` blocks of a panel, while
``step`` bytes a block are asked for from ``ahead`` on."""
AddBlock = Callable[[Any, int, int, int], Any]
"""``add(totals, panel, x, memory)``: the totals with a packed block; its sums may use memory."""


class OwnRows(NamedTuple):
    """What panels want of rows of activations beside or in place of them, made for each part."""

    prepare: Callable[[int, int, int, int, int], None]
    """``prepare(x, x_stride, n_blocks, n_sixes, out)``."""
    stride: int
    """Bytes from six rows to the next."""


class Panels(NamedTuple):
    """How parts of the groups of a type become panels, and what multiplies these."""

    unpack: Callable[[int, int, int, int], None]
    """``unpack(p, panel, n_packed, apart)``: makes a panel of so many packed blocks of a group,
    or of two that are ``apart``."""
    add_part: Callable[[int], AddPart]
    """``add_part(rows)``: what multiplies a panel with two, four or six rows."""
    packed_bytes: int
    """Of 16 rows of a packed block."""
    blocks: int
    """Blocks of 32 columns in a packed block."""
    part: int
    """Blocks of 32 columns in a panel."""
    x_bytes: int
    """Of a block of six rows of activations, as they come."""
    own_rows: OwnRows | None = None
    groups: int = 1
    """That share a panel."""


def over_panel(add: AddBlock, blocks: int, block_bytes: int, x_bytes: int) -> MultiplyPanel:
    """Return what adds the packed blocks of a panel, each ``blocks`` times ``x_bytes`` of rows."""

    @inline
    def multiply(totals: Any, panel: int, x: int, n: int, ahead: int, step: int) -> Any:
        memory = panel + MEMORY
        for first in range(0, n, ASKING_BLOCKS):
            last = min(first + ASKING_BLOCKS, n)
            for place in range(ahead + first * step, ahead + last * step, 64):
                prefetch(place)
            for _ in range(first, last, blocks):
                totals = add(totals, panel, x, memory)
                panel += block_bytes
                x += blocks * x_bytes
        return totals

    return multiply


@inline
def finish_rows(rows: int, out: int, stride: int, totals: Any, accumulate: int) -> None:
    """Store the results of some rows, or add them to what is there."""
    if accumulate:
        totals = add_rows(load_rows(rows, out, stride), totals)
    store_rows(out, stride, totals)


def add_part(rows: int, multiply: MultiplyPanel, in_place: bool = True) -> AddPart:
    """Return what adds a part of a group's columns to the sums of some rows.

    Unless ``in_place``, what is multiplied are the panels' own rows.
    """

    @inline
    def add(
        panel: int, x: int, own: int, n: int, ahead: int, _apart: int, step: int, sums: int,
        begins: bool, ends: bool, out: int, stride: int, accumulate: int,
    ) -> None:  # fmt: skip
        totals = zero_rows(rows) if begins else load_rows(rows, sums, 64)
        totals = multiply(totals, panel, x if in_place else own, n, ahead, step)
        if ends:
            finish_rows(rows, out, stride, totals, accumulate)
        else:
            store_rows(sums, 64, totals)

    return add


def rows_with_panel(panels: Panels) -> Callable[..., None]:
    """Return what multiplies a panel with all rows, six by six."""
    groups, own_stride = panels.groups, panels.own_rows.stride if panels.own_rows else 0
    add_2, add_4, add_6 = (panels.add_part(rows) for rows in (2, 4, ROWS))
    block_bytes = panels.packed_bytes // panels.blocks

    @inline
    def six_rows(
        panel: int, x: int, own: int, n: int, ahead: int, apart: int, step: int, sums: int,
        begins: bool, ends: bool, out: int, stride: int, accumulate: int, n_rows: int,
    ) -> None:  # fmt: skip
        """Multiply a panel with six rows, or as many as there are."""
        if n_rows <= 2:
            add_2(
                panel, x, own, n, ahead, apart, step, sums, begins, ends, out, stride,
                accumulate,
            )  # fmt: skip
        elif n_rows <= 4:
            add_4(
                panel, x, own, n, ahead, apart, step, sums, begins, ends, out, stride,
                accumulate,
            )  # fmt: skip
        else:
            add_6(
                panel, x, own, n, ahead, apart, step, sums, begins, ends, out, stride,
                accumulate,
            )  # fmt: skip

    @inline
    def all_sixes(
        panel: int, x: int, x_stride: int, own: int, n: int, ahead: int, apart: int, sums: int,
        begins: bool, ends: bool, out: int, stride: int, accumulate: int, n_rows: int,
    ) -> None:  # fmt: skip
        """Multiply a panel with rows six by six, and ask for as much from ``ahead`` on."""
        n_sixes = (n_rows + ROWS - 1) // ROWS
        step = (block_bytes + n_sixes - 1) // n_sixes
        for six in range(n_sixes):
            six_rows(
                panel, x + six * x_stride, own + six * own_stride, n, ahead + six * n * step,
                apart, step,
                sums + six * groups * SUMS_BYTES, begins, ends, out + ROWS * six * stride, stride,
                accumulate, n_rows - ROWS * six,
            )  # fmt: skip

    return all_sixes


def part_by_part(panels: Panels) -> Callable[..., None]:
    """Return what multiplies no more groups and rows than meet at once."""
    unpack, all_sixes, own = panels.unpack, rows_with_panel(panels), panels.own_rows
    packed_bytes, blocks, part, x_bytes, groups = (
        panels.packed_bytes, panels.blocks, panels.part, panels.x_bytes, panels.groups
    )  # fmt: skip
    has_own = own is not None
    prepare = own.prepare if own else _no_rows

    @inline
    def multiply(
        m: View, x: int, x_stride: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        n_blocks, sums = m.n_cols // 32, panel + PANEL_BYTES
        own_rows = sums + SUMS_BYTES * GROUPS_AT_ONCE * SIXES_AT_ONCE
        for block in range(0, n_blocks, part):
            n, data = min(part, n_blocks - block), m.data + block // blocks * packed_bytes
            if has_own:
                prepare(x, x_stride, n, (n_rows + ROWS - 1) // ROWS, own_rows)
            apart = m.bytes_a_group
            for g in range(first, last, groups):
                p = data + g * apart
                unpack(p, panel, n // blocks, apart)
                ahead = p + groups * apart
                if g + groups == last and block + n < n_blocks:
                    ahead = data + first * apart + n // blocks * packed_bytes
                all_sixes(
                    panel, x, x_stride, own_rows, n, ahead, apart,
                    sums + (g - first) * SIXES_AT_ONCE * SUMS_BYTES, block == 0,
                    block + n == n_blocks, out + 64 * g, stride, accumulate, n_rows,
                )  # fmt: skip
            x += n * x_bytes

    return multiply


@inline
def _no_rows(_x: int, _x_stride: int, _n_blocks: int, _n_sixes: int, _out: int) -> None:
    """Stand where panels multiply rows as they come."""


def product_by_parts(
    panels: Panels, of_many: Panels | None = None, of_pairs: Panels | None = None
) -> Callable[..., None]:
    """Return what multiplies groups with all rows.

    CPUs that have ``sections.py`` take panels ``of_many`` for many rows, where a type has any, and
    those that have ``pairs.py`` panels ``of_pairs`` of groups.
    """
    differs, paired, with_panels = of_many is not None, of_pairs is not None, part_by_part(panels)
    with_panels_of_many = part_by_part(of_many) if of_many else with_panels
    with_panels_of_pairs = part_by_part(of_pairs) if of_pairs else with_panels

    @inline
    def multiply_some(
        m: View, x: int, x_stride: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int, few: bool,
    ) -> None:  # fmt: skip
        """Multiply no more groups and rows than meet at once."""
        if paired and has_pairs() and last - first > 1:
            odd = last - (last - first) % 2
            with_panels_of_pairs(
                m, x, x_stride, n_rows, out, stride, first, odd, accumulate, panel
            )  # fmt: skip
            first = odd
        if first == last:
            return
        if differs and has_assembly() and not few:
            with_panels_of_many(
                m, x, x_stride, n_rows, out, stride, first, last, accumulate, panel
            )  # fmt: skip
        else:
            with_panels(m, x, x_stride, n_rows, out, stride, first, last, accumulate, panel)

    @inline
    def multiply(
        m: View, x: int, x_stride: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        few, at_most = n_rows <= ROWS * FEW_SIXES, ROWS * SIXES_AT_ONCE
        at_once = GROUPS_AT_ONCE
        if few:
            at_once = 2 if paired and has_pairs() else 1
        for g in range(first, last, at_once):
            for row in range(0, n_rows, at_most):
                multiply_some(
                    m, x + row // ROWS * x_stride, x_stride, min(n_rows - row, at_most),
                    out + row * stride, stride, g, min(g + at_once, last), accumulate, panel, few,
                )  # fmt: skip

    return multiply
