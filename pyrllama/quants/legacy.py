"""Q4_0 to Q8_0: blocks of 32 numbers of a row behind one half-precision scale ``d``.

=====  =====  ============================  ================================================
type   bytes  layout                        number
=====  =====  ============================  ================================================
Q4_0   18     d, 4 bits[32]                 ``d * (q[i] - 8)``
Q4_1   20     d, m, 4 bits[32]              ``d * q[i] + m``
Q5_0   22     d, high bit[32], 4 bits[32]   ``d * (q[i] - 16)``
Q5_1   24     d, m, high bit[32],           ``d * q[i] + m``
              4 bits[32]
Q8_0   34     d, int8[32]                   ``d * q[i]``
=====  =====  ============================  ================================================

``m`` is half-precision, too.  Of the 16 bytes of four bits, byte ``i`` holds number ``i`` in its
low and number ``i + 16`` in its high ones; high bits lie in order, the lowest first.

Source: ``block_q4_0`` to ``block_q8_0`` in ggml's ``ggml-common.h``.  ``pack_q8_0`` and
``pack_q4_0`` give the bits that ``quantize_row_q8_0_ref`` and ``quantize_row_q4_0_ref`` in
``ggml-quants.c`` give for finite numbers; the ``fit`` functions search for better scales.
Blocks are ``(n, bytes)`` uint8 and numbers ``(n, 32)`` float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.quants.bits import half, join, split, store_half
from pyrllama.quants.fitting import (
    Samples,
    WholeLevels,
    affine_levels,
    as_half,
    fit_affine,
    fit_scale,
    inverse,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.quants.fitting import Floats

BLOCK = 32
"""Numbers that share a scale."""
SCALE_BYTES = 2
_RUN = 16
"""Bytes that hold the low four bits of a block."""
_HALF_BLOCK = BLOCK // 2
_LOW_BITS = np.uint8(0x0F)
_NIBBLE = np.uint8(4)
_JUST_UNDER_HALF = np.nextafter(np.float32(0.5), np.float32(0.0))

_Q4_0_ENDS = (*np.linspace(-9.0, -7.0, 7), *np.linspace(6.4, 8.4, 5))
_Q5_0_ENDS = (*np.linspace(-17.0, -14.6, 7), *np.linspace(14.2, 16.6, 5))
_Q8_0_ENDS = tuple(np.linspace(125.6, 128.4, 8))
_Q4_1_ENDS = tuple(np.linspace(13.6, 18.0, 18))
_Q5_1_ENDS = tuple(np.linspace(29.6, 34.0, 18))
"""Levels at which the number farthest from zero, or the highest one, is tried."""


def unpack_q4_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q4_0 blocks to ``out``."""
    q = split(blocks[:, 2:], 4, _RUN)
    np.multiply(q.view(np.int8) - np.int8(8), half(blocks), out=out)


def pack_q4_0(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q4_0 blocks: the number farthest from zero becomes -8."""
    scale = _farthest(x) / np.float32(-8)
    scaled = x * _inverse(scale)
    scaled += np.float32(8.5)
    nibbles = np.minimum(scaled.astype(np.uint8), np.uint8(15))
    out[:, :SCALE_BYTES].view("<f2")[:] = scale
    np.left_shift(nibbles[:, _HALF_BLOCK:], _NIBBLE, out=out[:, SCALE_BYTES:])
    out[:, SCALE_BYTES:] |= nibbles[:, :_HALF_BLOCK]


def fit_q4_0(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q4_0 blocks of the least squared error."""
    d, q = _fit(x, weights, WholeLevels(-8, 7), _Q4_0_ENDS)
    store_half(d, out)
    out[:, 2:] = join((q + np.int8(8)).view(np.uint8), 4, _RUN)


def unpack_q4_1(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q4_1 blocks to ``out``."""
    np.multiply(split(blocks[:, 4:], 4, _RUN), half(blocks), out=out)
    out += half(blocks, 2)


def fit_q4_1(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q4_1 blocks of the least squared error."""
    d, m, q = _fit_with_offset(x, weights, 15, _Q4_1_ENDS)
    store_half(d, out)
    store_half(m, out, 2)
    out[:, 4:] = join(q, 4, _RUN)


def unpack_q5_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q5_0 blocks to ``out``."""
    q = split(blocks[:, 6:], 4, _RUN) | split(blocks[:, 2:6], 1, 1) << _NIBBLE
    np.multiply(q.view(np.int8) - np.int8(16), half(blocks), out=out)


def fit_q5_0(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q5_0 blocks of the least squared error."""
    d, signed = _fit(x, weights, WholeLevels(-16, 15), _Q5_0_ENDS)
    q = (signed + np.int8(16)).view(np.uint8)
    store_half(d, out)
    out[:, 2:6] = join(q >> _NIBBLE, 1, 1)
    out[:, 6:] = join(q & _LOW_BITS, 4, _RUN)


def unpack_q5_1(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q5_1 blocks to ``out``."""
    q = split(blocks[:, 8:], 4, _RUN) | split(blocks[:, 4:8], 1, 1) << _NIBBLE
    np.multiply(q, half(blocks), out=out)
    out += half(blocks, 2)


def fit_q5_1(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q5_1 blocks of the least squared error."""
    d, m, q = _fit_with_offset(x, weights, 31, _Q5_1_ENDS)
    store_half(d, out)
    store_half(m, out, 2)
    out[:, 4:8] = join(q >> _NIBBLE, 1, 1)
    out[:, 8:] = join(q & _LOW_BITS, 4, _RUN)


def unpack_q8_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q8_0 blocks to ``out``."""
    np.multiply(blocks[:, SCALE_BYTES:].view(np.int8), half(blocks), out=out)


def pack_q8_0(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q8_0 blocks: the largest magnitude becomes 127."""
    farthest = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True))
    scale = np.abs(farthest) / np.float32(127)  # the maximum of 0 and -0 may be -0
    scaled = x * _inverse(scale)
    # Adding just under a half and cutting off rounds ties away from zero, as C's roundf does;
    # a whole half would also lift the number just under 0.5 to 1.
    scaled += np.copysign(_JUST_UNDER_HALF, scaled)
    out[:, :SCALE_BYTES].view("<f2")[:] = scale
    out[:, SCALE_BYTES:].view(np.int8)[:] = scaled


def fit_q8_0(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q8_0 blocks of the least squared error."""
    d, q = _fit(x, weights, WholeLevels(-127, 127), _Q8_0_ENDS)
    store_half(d, out)
    out[:, 2:].view(np.int8)[:] = q


def _fit(
    x: Floats, weights: Floats | None, levels: WholeLevels, ends: Sequence[float]
) -> tuple[Floats, NDArray[np.int8]]:
    """Return the scale of each block, ``(n,)``, and its levels, ``(n, 32)``."""
    samples = Samples(x, weights, BLOCK)
    d = as_half(fit_scale(samples, levels, ends))
    return d, levels.nearest(samples.x, inverse(d), samples.work).T.astype(np.int8)


def _fit_with_offset(
    x: Floats, weights: Floats | None, top: int, ends: Sequence[float]
) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Return scale and offset of each block, ``(n,)``, and its levels, ``(n, 32)``."""
    samples = Samples(x, weights, BLOCK)
    scale, offset = fit_affine(samples, top, ends, below_zero=False)
    d, m = as_half(scale), as_half(offset)
    return d, m, affine_levels(samples, inverse(d), m, top).T.astype(np.uint8)


def _farthest(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return, with its sign, each row's number of the largest magnitude, the first of equals."""
    high, low = x.max(axis=1), x.min(axis=1)
    farthest: NDArray[np.float32] = np.where(high > -low, high, low)
    (ties,) = np.nonzero(high == -low)
    farthest[ties] = x[ties, np.abs(x[ties]).argmax(axis=1)]
    return farthest.reshape(-1, 1)


def _inverse(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``1 / scale``, and 0 where the scale is too small to have a finite inverse."""
    inverse = np.reciprocal(scale)
    inverse[~np.isfinite(inverse)] = 0.0
    return inverse
