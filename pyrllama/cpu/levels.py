"""Levels of 16 rows and 32 columns, taken out of their vectors and put into them.

They are taken as four pairs of vectors: pair ``i`` holds columns ``8i`` to ``8i + 3`` of every row,
and the four after them, a byte each.  What reads and writes them is put together from
``formats.PLACES`` while a kernel is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyrllama.cpu.formats import PLACES, Bits
from pyrllama.cpu.kernel import inline
from pyrllama.cpu.simd import as_i8, load_i8x64, load_i32x16, store
from pyrllama.cpu.vectors import Lanes

PAIRS = 4
"""Pairs of vectors in the levels of 32 columns."""


# --- levels -----------------------------------------------------------------------------------


@inline
def moved(w: Lanes, source: int, target: int) -> Lanes:
    """Move bits of every byte from one place to another; others come along."""
    if source <= target:
        return as_i8(w << (target - source))
    return as_i8(w >> (source - target))


def read_levels(bits: int, columns: int) -> Callable[[int], Lanes]:
    """Return what reads a vector of levels, a byte each, from the block's vectors at ``q``."""
    return _joined([_read(field) for field in PLACES[bits] if field.columns == columns])


def _read(field: Bits) -> Callable[[int], Lanes]:
    offset, place, lowest = 64 * field.vector, field.place, field.lowest
    mask = ((1 << field.width) - 1) << lowest

    @inline
    def read(q: int) -> Lanes:
        return moved(load_i32x16(q + offset), place, lowest) & mask

    @inline
    def read_byte(q: int) -> Lanes:
        return load_i8x64(q + offset)

    return read_byte if field.width == 8 else read


def _joined(parts: list[Callable[[int], Lanes]]) -> Callable[[int], Lanes]:
    first, *others = parts
    if not others:
        return first
    rest = _joined(others)

    @inline
    def read(q: int) -> Lanes:
        return first(q) | rest(q)

    return read


def put_levels(bits: int) -> Callable[[int, int], None]:
    """Return what stores eight vectors of levels, a byte each, in the block's vectors at ``q``."""
    return _one_after_the_other(
        [
            _put(vector, [field for field in PLACES[bits] if field.vector == vector])
            for vector in range(bits)
        ]
    )


def _put(vector: int, fields: list[Bits]) -> Callable[[int, int], None]:
    join = _joined([_taken(field) for field in fields])

    @inline
    def put(levels: int, q: int) -> None:
        store(q + 64 * vector, join(levels))

    return put


def _taken(field: Bits) -> Callable[[int], Lanes]:
    """Return what brings some bits of the levels to their place in a vector."""
    source, mask = 64 * field.columns, ((1 << field.width) - 1) << field.place
    lowest, place = field.lowest, field.place

    @inline
    def take(levels: int) -> Lanes:
        return moved(load_i32x16(levels + source), lowest, place) & mask

    return take


def _one_after_the_other(
    parts: list[Callable[[int, int], None]],
) -> Callable[[int, int], None]:
    first, *others = parts
    if not others:
        return first
    rest = _one_after_the_other(others)

    @inline
    def both(a: int, b: int) -> None:
        first(a, b)
        rest(a, b)

    return both


# --- pairs ------------------------------------------------------------------------------------

Read = Callable[[int], tuple[Lanes, Lanes]]
"""``read(q)``: a pair of operands of the levels at ``q``."""
Step = Callable[[Any, Lanes, Lanes, int, int], Any]
"""``step(state, first, second, x, i)``: the state after pair ``i``, with an address of its own."""


def over_pairs(reads: Sequence[Read], first: int, step: Step) -> Callable[[Any, int, int], Any]:
    """Return what takes a step for some pairs: ``steps(state, q, x)``; ``first`` is their number.

    The steps are written out: shifts by the counter of a loop would be more instructions.
    """
    read, *others = reads

    @inline
    def one(state: Any, q: int, x: int) -> Any:
        low, high = read(q)
        return step(state, low, high, x, first)

    if not others:
        return one
    rest = over_pairs(others, first + 1, step)

    @inline
    def steps(state: Any, q: int, x: int) -> Any:
        return rest(one(state, q, x), q, x)

    return steps
