"""Packing: stored rows become groups of 16 interleaved rows, bits unchanged.

Blocked types (32 columns and one float16 scale a block): a group's block is the 16 rows'
scales (32 bytes), then vectors of 64 bytes, each holding the same four stored bytes of all 16
rows.  Q4_0 has four vectors (low nibbles: columns ``4j..4j+3``, high nibbles: 16 further), and
Q8_0 eight.  Float types: a group is its columns one after the other, 16 rows each.

Columns are padded with zeros to a multiple of 32 before packing, rows to one of 16 here.  The
conversions between types that ``--quantize`` and its like ask for happen row by row on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrllama.cpu.barrier import take
from pyrllama.cpu.kernel import KernelFunction, call, inline, kernel, part, view
from pyrllama.cpu.norm import absolute
from pyrllama.cpu.records import MATRIX, PACKING
from pyrllama.cpu.simd import (
    Lanes,
    as_i32,
    first_lane,
    float_to_half,
    half_to_float,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i16x16,
    load_i32,
    load_i32x16,
    load_u8,
    load_u16,
    max_f32,
    maximum,
    minimum,
    narrow_to_i8,
    narrow_to_i16,
    splat_f32,
    splat_i32,
    store,
    to_f32,
    truncate_to_i32,
    widen_i8,
    widen_u16,
)
from pyrllama.cpu.transpose import gather_halves, transpose_halves, transpose_words

Matrix = view(MATRIX)
Packing = view(PACKING)

f32 = np.float32
i8, i16, i32 = np.int8, np.int16, np.int32
SMALLEST_SCALE = f32(2.0**-128)
"""The inverse of a scale that is no greater is infinite; such a block counts as zeros."""


@kernel
def pack(packing: int, worker: int) -> None:
    """Pack the groups of a matrix, shared out among the workers of a team."""
    p = Packing(packing)
    floats = p.work + worker * p.work_bytes
    rows = floats + 4 * p.n_cols
    g = take(p.counter, 1)
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
        g = take(p.counter, 1)


# --- interleaving 16 rows ---------------------------------------------------------------------


def interleave_blocks(n_words: int) -> KernelFunction:
    """Return the packer of a type whose blocks are a float16 scale and ``n_words`` * 4 bytes."""
    block_bytes, packed_bytes = 2 + 4 * n_words, 32 + 64 * n_words

    @kernel
    def interleave(source: int, row_bytes: int, n_rows: int, target: int, n_cols: int) -> None:
        """Interleave up to 16 rows of blocks; rows that are not there are zeros."""
        for b in range(n_cols // 32):
            p, out = source + b * block_bytes, target + b * packed_bytes
            if n_rows == 16:
                gather_halves(p, row_bytes, out)
                for j in range(0, n_words, 4):
                    transpose_words(p + 2 + 4 * j, row_bytes, out + 32 + 64 * j)
            else:
                scatter_16bit(p, row_bytes, n_rows, out, 1)
                scatter_32bit(p + 2, row_bytes, n_rows, out + 32, n_words)

    return interleave


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


interleave_q4_0 = interleave_blocks(4)
interleave_q8_0 = interleave_blocks(8)


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


@kernel
def row_q4_0(matrix: int, row: int, out: int) -> None:
    """Unpack a row of Q4_0."""
    m = Matrix(matrix)
    p, lane = m.data + row // 16 * m.bytes_a_group, row % 16
    for b in range(m.n_cols // 32):
        scale = half_at(p + 288 * b + 2 * lane)
        for j in range(4):
            for k in range(4):
                pair = load_u8(p + 288 * b + 32 + 64 * j + 4 * lane + k)
                place = out + 128 * b + 16 * j + 4 * k
                store(place, f32(np.int64(pair & 15) - 8) * scale)
                store(place + 64, f32(np.int64(pair >> 4) - 8) * scale)


@kernel
def row_q8_0(matrix: int, row: int, out: int) -> None:
    """Unpack a row of Q8_0."""
    m = Matrix(matrix)
    p, lane = m.data + row // 16 * m.bytes_a_group, row % 16
    for b in range(m.n_cols // 32):
        scale = half_at(p + 544 * b + 2 * lane)
        for j in range(8):
            for k in range(4):
                byte = i8(load_u8(p + 544 * b + 32 + 64 * j + 4 * lane + k))
                store(out + 128 * b + 16 * j + 4 * k, f32(byte) * scale)


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


# --- stored rows to float32 -------------------------------------------------------------------


@kernel
def dequantise_f32(source: int, target: int, n_cols: int) -> None:
    """Copy a row of float32."""
    for c in range(0, 4 * n_cols, 64):
        store(target + c, load_f32x16(source + c))


@kernel
def dequantise_f16(source: int, target: int, n_cols: int) -> None:
    """Widen a row of float16."""
    for c in range(0, n_cols, 16):
        store(target + 4 * c, half_to_float(load_i16x16(source + 2 * c)))


@kernel
def dequantise_bf16(source: int, target: int, n_cols: int) -> None:
    """Widen a row of bfloat16."""
    for c in range(0, n_cols, 16):
        store(target + 4 * c, widen_u16(load_i16x16(source + 2 * c)) << 16)


@kernel
def dequantise_q8_0(source: int, target: int, n_cols: int) -> None:
    """Unpack a stored row of Q8_0."""
    for b in range(n_cols // 32):
        p, out = source + 34 * b, target + 128 * b
        scale = half_at(p)
        store(out, to_f32(widen_i8(load_i8x16(p + 2))) * scale)
        store(out + 64, to_f32(widen_i8(load_i8x16(p + 18))) * scale)


@kernel
def dequantise_q4_0(source: int, target: int, n_cols: int) -> None:
    """Unpack a stored row of Q4_0."""
    for b in range(n_cols // 32):
        p, out = source + 18 * b, target + 128 * b
        scale = half_at(p)
        pairs = widen_i8(load_i8x16(p + 2))
        store(out, to_f32((pairs & 15) - 8) * scale)
        store(out + 64, to_f32(((pairs >> 4) & 15) - 8) * scale)


# --- float32 to stored rows -------------------------------------------------------------------


@kernel
def quantise_f32(source: int, target: int, n_cols: int) -> None:
    """Copy a row of float32."""
    for c in range(0, 4 * n_cols, 64):
        store(target + c, load_f32x16(source + c))


@kernel
def quantise_f16(source: int, target: int, n_cols: int) -> None:
    """Round a row to float16, to nearest even."""
    for c in range(0, n_cols, 16):
        store(target + 2 * c, float_to_half(load_f32x16(source + 4 * c)))


@kernel
def quantise_bf16(source: int, target: int, n_cols: int) -> None:
    """Round a row to bfloat16, to nearest even; finite weights only, as loading checks."""
    for c in range(0, n_cols, 16):
        bits = load_i32x16(source + 4 * c)
        rounded = bits + ((bits >> 16) & 1) + 0x7FFF
        store(target + 2 * c, narrow_to_i16(rounded >> 16))


@inline
def store_half(p: int, value: float) -> None:
    """Store one float32 as float16."""
    store(p, first_lane(float_to_half(splat_f32(value))))


@inline
def round_half_away(x: Lanes) -> Lanes:
    """Round lanes of less than 2^22 to whole numbers, halves away from zero."""
    size = absolute(x)
    whole = truncate_to_i32(size)
    up = truncate_to_i32((size - to_f32(whole)) * 2)
    sign = 0 - (as_i32(x) >> 31)
    return ((whole + up) ^ sign) - sign


@kernel
def quantise_q8_0(source: int, target: int, n_cols: int) -> None:
    """Quantise a row to Q8_0: the scale is the greatest magnitude over 127."""
    for b in range(n_cols // 32):
        p, out = source + 128 * b, target + 34 * b
        low, high = load_f32x16(p), load_f32x16(p + 64)
        scale = max_f32(maximum(absolute(low), absolute(high))) / f32(127.0)
        factor = f32(1.0) / scale if scale > SMALLEST_SCALE else f32(0.0)
        store_half(out, scale)
        store(out + 2, narrow_to_i8(round_half_away(low * factor)))
        store(out + 18, narrow_to_i8(round_half_away(high * factor)))


@kernel
def quantise_q4_0(source: int, target: int, n_cols: int) -> None:
    """Quantise a row to Q4_0: the value of greatest magnitude becomes -8."""
    for b in range(n_cols // 32):
        p, out = source + 128 * b, target + 18 * b
        low, high = load_f32x16(p), load_f32x16(p + 64)
        greatest = max_f32(maximum(absolute(low), absolute(high)))
        extreme: Any = f32(0.0)
        for c in range(32):
            value = load_f32(p + 4 * c)
            if abs(value) == greatest:
                extreme = value
                break
        scale = extreme / f32(-8.0)
        factor = f32(1.0) / scale if abs(scale) > SMALLEST_SCALE else f32(0.0)
        store_half(out, scale)
        low_q = truncate_to_i32(minimum(low * factor + f32(8.5), splat_f32(15.0)))
        high_q = truncate_to_i32(minimum(high * factor + f32(8.5), splat_f32(15.0)))
        store(out + 2, narrow_to_i8(low_q | (high_q << 4)))
