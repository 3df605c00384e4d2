"""Element-wise parts of a step: normalisation, exponentials, SwiGLU.

Every row is padded with zeros to whole vectors, so that no loop has a remainder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.cpu.instructions import fused_multiply_add
from pyrllama.cpu.kernel import inline, kernel, part
from pyrllama.cpu.simd import (
    as_f32,
    as_i32,
    keep_first,
    load_f32,
    load_f32x16,
    maximum,
    minimum,
    splat_f32,
    square_root,
    store,
    sum_f32,
    truncate_to_i32,
)

if TYPE_CHECKING:
    from pyrllama.cpu.vectors import Lanes

f32 = np.float32
ZERO = f32(0.0)
ROUNDER = f32(1.5 * 2**23)
"""Added and taken off again, it rounds a float32 under 2^22 to the nearest whole number."""


@inline
def round_to_even(x: Lanes) -> Lanes:
    """Round lanes to the nearest whole number, halves to the even one."""
    return (x + ROUNDER) - ROUNDER


@inline
def exponential(x: Lanes) -> Lanes:
    """Return e^x with a relative error under 3e-7; x is held to -87.3 to 88, where e^x is finite.

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, 2^n through
    the exponent's bits.  ln 2 is taken off in two parts, the first exact in few bits.
    """
    x = minimum(maximum(x, splat_f32(-87.3)), splat_f32(88.0))
    n = round_to_even(x * f32(1.4426950408889634))
    r = fused_multiply_add(n, splat_f32(-0.693359375), x)
    r = fused_multiply_add(n, splat_f32(2.12194440e-4), r)
    p = splat_f32(1.0 / 5040)
    p = fused_multiply_add(p, r, splat_f32(1.0 / 720))
    p = fused_multiply_add(p, r, splat_f32(1.0 / 120))
    p = fused_multiply_add(p, r, splat_f32(1.0 / 24))
    p = fused_multiply_add(p, r, splat_f32(1.0 / 6))
    p = fused_multiply_add(p, r, splat_f32(0.5))
    p = fused_multiply_add(p, r, splat_f32(1.0))
    p = fused_multiply_add(p, r, splat_f32(1.0))
    return as_f32(as_i32(p) + (truncate_to_i32(n) << 23))


@part
def rms_norm(x: int, weight: int, out: int, n: int, eps: float) -> None:
    """Write ``x / sqrt(mean(x^2) + eps) * weight`` for a row of ``n`` float32."""
    squares = splat_f32(0.0)
    n_bytes = (n + 15) // 16 * 64
    for i in range(0, n_bytes, 64):
        v = load_f32x16(x + i)
        squares = fused_multiply_add(v, v, squares)
    scale = f32(1.0) / square_root(sum_f32(squares) / f32(n) + eps)
    for i in range(0, n_bytes, 64):
        store(out + i, load_f32x16(x + i) * scale * load_f32x16(weight + i))


@inline
def normalise_head(
    x: int, weight: int, out: int, head_dim: int, head_stride: int, eps: float
) -> None:
    """Normalise one head of a row, behind which others follow; zeros up to the stride."""
    squares = splat_f32(0.0)
    for i in range(0, head_stride, 16):
        v = keep_first(load_f32x16(x + 4 * i), head_dim - i, ZERO)
        squares = fused_multiply_add(v, v, squares)
        store(out + 4 * i, v)
    scale = f32(1.0) / square_root(sum_f32(squares) / f32(head_dim) + eps)
    for i in range(0, 4 * head_stride, 64):
        store(out + i, load_f32x16(out + i) * scale * load_f32x16(weight + i))


@part
def swiglu(gate: int, up: int, out: int, n: int) -> None:
    """Write ``silu(gate) * up`` for ``n`` float32, a multiple of 16."""
    for i in range(0, 4 * n, 64):
        g = load_f32x16(gate + i)
        sigmoid = splat_f32(1.0) / (exponential(splat_f32(0.0) - g) + f32(1.0))
        store(out + i, g * sigmoid * load_f32x16(up + i))


@kernel
def rms_norm_kernel(x: int, weight: int, out: int, n: int, eps: int) -> None:
    """Entry for tests: ``eps`` is the address of a float32."""
    rms_norm(x, weight, out, n, load_f32(eps))


@kernel
def swiglu_kernel(gate: int, up: int, out: int, n: int) -> None:
    """Entry for tests of ``swiglu``."""
    swiglu(gate, up, out, n)
