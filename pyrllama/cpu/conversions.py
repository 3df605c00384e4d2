"""Rows on their way from one storage type to another, through float32.

``dequantise_<type>`` reads a stored row; ``quantise_<type>`` makes one, for the types that
``--quantize`` and its like offer.  Both give the bits that ``quants`` gives.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.cpu.blocks import blocks_of
from pyrllama.cpu.formats import FORMATS
from pyrllama.cpu.instructions import float_to_half, fused_multiply_add, half_to_float
from pyrllama.cpu.kernel import KernelFunction, inline, kernel
from pyrllama.cpu.layout import interleave_head, values_of
from pyrllama.cpu.simd import (
    absolute,
    as_i32,
    first_lane,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i8x64,
    load_i16x16,
    load_i32x16,
    max_f32,
    maximum,
    minimum,
    narrow_to_i8,
    narrow_to_i16,
    scratch,
    splat_f32,
    store,
    to_f32,
    truncate_to_i32,
    widen_i8,
    widen_u16,
)
from pyrllama.cpu.stored import taker

if TYPE_CHECKING:
    from pyrllama.cpu.vectors import Lanes
    from pyrllama.tensors import TensorType

f32 = np.float32
SMALLEST_SCALE = f32(2.0**-128)
"""The inverse of a scale that is no greater is infinite; such a block counts as zeros."""


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


def dequantise_blocks(type_: TensorType) -> KernelFunction:
    """Return what unpacks stored rows of a quantised type."""
    format_ = FORMATS[type_]
    take, stored_bytes = taker(type_)
    scale, addend = blocks_of(format_).scale, blocks_of(format_).addend
    values = values_of(format_)
    columns, run, head_bytes = format_.columns, format_.run, format_.head_bytes
    fill = interleave_head(format_)

    @kernel
    def dequantise(source: int, target: int, n_cols: int) -> None:
        row_head, head, levels = scratch(64), scratch(head_bytes), scratch(256)
        for _ in range(n_cols // columns):
            take(source, row_head, levels)
            fill(row_head, 0, 1, head)  # as the first of 16 rows
            for i in range(0, columns, 64):
                store(levels + i, values(load_i8x64(levels + i)))
            for i in range(columns // run):
                s, plus = first_lane(scale(head, i)), first_lane(addend(head, i))
                for c in range(run * i, run * i + run, 16):
                    x = to_f32(widen_i8(load_i8x16(levels + c)))
                    store(target + 4 * c, fused_multiply_add(x, splat_f32(s), splat_f32(plus)))
            source += stored_bytes
            target += 4 * columns

    return dequantise


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


@cache
def __getattr__(name: str) -> KernelFunction:
    """Make ``dequantise_<type>`` of a quantised type when it is asked for."""
    known = {f"dequantise_{type_.name.lower()}": type_ for type_ in FORMATS}
    if name not in known:
        raise AttributeError(name)
    return dequantise_blocks(known[name])
