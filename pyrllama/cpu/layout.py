"""Packing: stored rows become groups of 16 interleaved rows, bits unchanged.

Quantised types: stored blocks are taken apart into heads and levels (``stored.py``) and put
together again as ``formats.py`` and ``blocks.py`` say.  Float types: a group is its columns one
after the other, 16 rows each.

Columns are padded with zeros to a multiple of 32 before packing, rows to one of 16 here.  The
conversions between types that ``--quantize`` and its like ask for happen row by row on the way.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.cpu.barrier import take as take_number
from pyrllama.cpu.blocks import blocks_of
from pyrllama.cpu.formats import FORMATS, format_named
from pyrllama.cpu.instructions import half_to_float, lookup_in
from pyrllama.cpu.kernel import KernelFunction, call, inline, kernel, part, view
from pyrllama.cpu.levels import PAIRS, over_pairs, put_levels
from pyrllama.cpu.records import MATRIX, PACKING
from pyrllama.cpu.simd import (
    as_i8,
    as_i32,
    first_lane,
    lane_of,
    load_f32,
    load_i32,
    load_u8,
    load_u16,
    narrow_to_i16,
    scratch,
    splat_i32,
    store,
)
from pyrllama.cpu.stored import taker
from pyrllama.cpu.transpose import transpose_halves, transpose_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.formats import Format
    from pyrllama.cpu.vectors import Lanes
    from pyrllama.tensors import TensorType

Matrix = view(MATRIX)
Packing = view(PACKING)

f32 = np.float32
u8, u16, i8, i16, i32 = np.uint8, np.uint16, np.int8, np.int16, np.int32
HEAD_STRIDE = 64
"""Bytes from the head of a row that is being packed to the next one's, more than any has."""


@kernel
def pack(packing: int, worker: int) -> None:
    """Pack the groups of a matrix, shared out among the workers of a team."""
    p = Packing(packing)
    floats = p.work + worker * p.work_bytes
    rows = floats + 4 * p.n_cols
    g = take_number(p.counter, 1)
    while g < p.n_groups:
        source = p.source + 16 * g * p.source_row_bytes
        n_rows = min(p.n_rows - 16 * g, 16)
        row_bytes = p.source_row_bytes
        if p.quantise != 0:
            row_bytes = p.row_bytes
            for r in range(n_rows):
                call(p.dequantise, source + r * p.source_row_bytes, floats, p.n_cols)
                call(p.quantise, floats, rows + r * row_bytes, p.n_cols)
            source = rows
        call(p.interleave, source, row_bytes, n_rows, p.target + g * p.bytes_a_group, p.n_cols)
        g = take_number(p.counter, 1)


# --- interleaving 16 rows of blocks -----------------------------------------------------------


def interleave_head(format_: Format) -> Callable[[int, int, int, int], None]:
    """Return what puts the heads of 16 rows, ``stride`` bytes apart, number by number at ``out``.

    Those of rows from ``n_rows`` on are zeros.
    """
    fields = format_.head_fields
    size_0, count_0 = fields[0]
    size_1, count_1 = fields[1] if len(fields) > 1 else (1, 0)
    size_2, count_2 = fields[2] if len(fields) > 2 else (1, 0)

    @inline
    def put(head: int, stride: int, n_rows: int, out: int) -> None:
        put_numbers(head, stride, n_rows, out, size_0, count_0)
        head += size_0 * count_0
        out += 16 * size_0 * count_0
        put_numbers(head, stride, n_rows, out, size_1, count_1)
        head += size_1 * count_1
        out += 16 * size_1 * count_1
        put_numbers(head, stride, n_rows, out, size_2, count_2)

    return put


@part
def put_numbers(head: int, stride: int, n_rows: int, out: int, size: int, count: int) -> None:
    """Interleave ``count`` numbers of 1, 2 or 4 bytes of every row."""
    for i in range(count):
        for r in range(16):
            source = head + r * stride + size * i
            if size == 1:
                store(out, load_u8(source) if r < n_rows else u8(0))
            elif size == 2:
                store(out, load_u16(source) if r < n_rows else u16(0))
            else:
                store(out, load_i32(source) if r < n_rows else i32(0))
            out += size


def interleave_blocks(type_: TensorType) -> KernelFunction:
    """Return the packer of a quantised type."""
    format_ = FORMATS[type_]
    take, stored_bytes = taker(type_)
    put_head, put = interleave_head(format_), put_levels(format_.bits)
    columns, blocks, packed_bytes = format_.columns, format_.blocks, format_.bytes
    head_bytes, level_bytes = format_.head_bytes, format_.level_bytes
    heads_of_rows, levels_of_rows = 16 * HEAD_STRIDE, 16 * columns
    levels_room = levels_of_rows + 64  # zeros are stored by whole vectors

    @kernel
    def interleave(source: int, row_bytes: int, n_rows: int, target: int, n_cols: int) -> None:
        """Interleave up to 16 rows of blocks; rows that are not there are zeros."""
        heads, levels, columns_of_rows = (
            scratch(heads_of_rows), scratch(levels_room), scratch(512)
        )  # fmt: skip
        for i in range(n_rows * columns, levels_of_rows, 64):
            store(levels + i, splat_i32(0))
        for _ in range(n_cols // columns):
            for r in range(n_rows):
                take(source + r * row_bytes, heads + HEAD_STRIDE * r, levels + columns * r)
            put_head(heads, HEAD_STRIDE, n_rows, target)
            for b in range(blocks):
                for half in range(2):
                    place = levels + 32 * b + 16 * half
                    transpose_words(place, columns, columns_of_rows + 256 * half)
                put(columns_of_rows, target + head_bytes + b * level_bytes)
            source += stored_bytes
            target += packed_bytes

    return interleave


# --- interleaving 16 rows of floats -----------------------------------------------------------


@part
def scatter_16bit(source: int, row_bytes: int, n_rows: int, target: int, count: int) -> None:
    """Interleave ``count`` 16-bit numbers of fewer than 16 rows, one by one."""
    for c in range(count):
        for r in range(16):
            value = i16(load_u16(source + r * row_bytes + 2 * c)) if r < n_rows else i16(0)
            store(target + 32 * c + 2 * r, value)


@part
def scatter_32bit(source: int, row_bytes: int, n_rows: int, target: int, count: int) -> None:
    """Interleave ``count`` 32-bit numbers of fewer than 16 rows, one by one."""
    for c in range(count):
        for r in range(16):
            value = load_i32(source + r * row_bytes + 4 * c) if r < n_rows else i32(0)
            store(target + 64 * c + 4 * r, value)


@kernel
def interleave_16bit(source: int, row_bytes: int, n_rows: int, target: int, n_cols: int) -> None:
    """Interleave up to 16 rows of 16-bit floats."""
    if n_rows < 16:
        scatter_16bit(source, row_bytes, n_rows, target, n_cols)
        return
    for c in range(0, n_cols, 8):
        transpose_halves(source + 2 * c, row_bytes, target + 32 * c)


@kernel
def interleave_32bit(source: int, row_bytes: int, n_rows: int, target: int, n_cols: int) -> None:
    """Interleave up to 16 rows of 32-bit floats."""
    if n_rows < 16:
        scatter_32bit(source, row_bytes, n_rows, target, n_cols)
        return
    for c in range(0, n_cols, 4):
        transpose_words(source + 4 * c, row_bytes, target + 64 * c)


# --- one packed row as float32 (the embedding of a token) -------------------------------------


@inline
def half_at(p: int) -> float:
    """Read one float16 as a float32."""
    value: float = first_lane(half_to_float(narrow_to_i16(splat_i32(load_u16(p)))))
    return value


def values_of(format_: Format) -> Callable[[Lanes], Lanes]:
    """Return what takes levels, as bytes, to the signed bytes that they mean."""
    if format_.bits == 8:
        return as_i8
    if format_.table:
        return lookup_in(format_.values)
    lowest = min(format_.values)

    @inline
    def values(levels: Lanes) -> Lanes:
        return levels + lowest

    return values


def row_blocks(format_: Format) -> KernelFunction:
    """Return what unpacks one packed row of a quantised type."""
    read = blocks_of(format_)
    operands, scale, addend = read.operands, read.scale, read.addend
    columns, blocks, runs = format_.columns, format_.blocks, format_.runs
    packed_bytes, head_bytes, level_bytes = format_.bytes, format_.head_bytes, format_.level_bytes
    offset, pairs = format_.offset, PAIRS // runs

    @inline
    def put_columns(w: Lanes, lane: int, s: float, plus: float, out: int) -> None:
        """Store four columns of a row."""
        word = np.int64(lane_of(as_i32(w), lane))
        for k in range(4):
            value = np.int64(i8(word >> (8 * k))) - offset
            store(out + 4 * k, f32(value) * s + plus)

    @inline
    def put(
        state: tuple[int, float, float], first: Lanes, second: Lanes, out: int, i: int
    ) -> tuple[int, float, float]:
        """Store a pair's columns; the state is the row's lane and the run's scale and addend."""
        lane, s, plus = state
        put_columns(first, lane, s, plus, out + 32 * i)
        put_columns(second, lane, s, plus, out + 32 * i + 16)
        return state

    put_0, put_1 = (over_pairs(operands[i : i + pairs], i, put) for i in (0, PAIRS - pairs))

    @inline
    def scales_of(p: int, i: int, lane: int) -> tuple[int, float, float]:
        return lane, lane_of(scale(p, i), lane), lane_of(addend(p, i), lane)

    @kernel
    def row(matrix: int, index: int, out: int) -> None:
        m = Matrix(matrix)
        p, lane = m.data + index // 16 * m.bytes_a_group, index % 16
        for _ in range(m.n_cols // columns):
            for b in range(blocks):
                q = p + head_bytes + b * level_bytes
                put_0(scales_of(p, runs * b, lane), q, out)
                if runs == 2:
                    put_1(scales_of(p, runs * b + 1, lane), q, out)
                out += 128
            p += packed_bytes

    return row


@kernel
def row_f16(matrix: int, row: int, out: int) -> None:
    """Unpack a row of float16."""
    m = Matrix(matrix)
    p = m.data + row // 16 * m.bytes_a_group + 2 * (row % 16)
    for c in range(m.n_cols):
        store(out + 4 * c, half_at(p + 32 * c))


@kernel
def row_bf16(matrix: int, row: int, out: int) -> None:
    """Unpack a row of bfloat16."""
    m = Matrix(matrix)
    p = m.data + row // 16 * m.bytes_a_group + 2 * (row % 16)
    for c in range(m.n_cols):
        store(out + 4 * c, i32(i32(load_u16(p + 32 * c)) << i32(16)))  # a shift widens to int64


@kernel
def row_f32(matrix: int, row: int, out: int) -> None:
    """Unpack a row of float32."""
    m = Matrix(matrix)
    p = m.data + row // 16 * m.bytes_a_group + 4 * (row % 16)
    for c in range(m.n_cols):
        store(out + 4 * c, load_f32(p + 64 * c))


@cache
def __getattr__(name: str) -> KernelFunction:
    """Make ``interleave_<type>`` and ``row_<format>`` of quantised types when asked for."""
    work, _, kind = name.partition("_")
    if work == "row":
        return row_blocks(format_named(kind))
    types = {type_.name.lower(): type_ for type_ in FORMATS}
    if work != "interleave" or kind not in types:
        raise AttributeError(name)
    return interleave_blocks(types[kind])
