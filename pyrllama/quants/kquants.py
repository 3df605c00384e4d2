"""Q2_K to Q6_K: super-blocks of 256 numbers whose own blocks have small integer scales.

=====  =====  ===============================================  ===============================
type   bytes  layout                                           number of block ``j``
=====  =====  ===============================================  ===============================
Q2_K   84     u8[16] scale | min << 4, 2 bits[256], d, dmin    ``d * sc[j] * q - dmin * m[j]``
Q3_K   110    high bit[256], 2 bits[256], 6 bits[16] scale, d  ``d * (sc[j] - 32) * (q - 4)``
Q4_K   144    d, dmin, 6 bits[16] scale and min, 4 bits[256]   ``d * sc[j] * q - dmin * m[j]``
Q5_K   176    d, dmin, 6 bits[16] scale and min, high bit[256] ``d * sc[j] * q - dmin * m[j]``
              , 4 bits[256]
Q6_K   210    4 bits[256], high 2 bits[256], i8[16] scale, d   ``d * sc[j] * (q - 32)``
=====  =====  ===============================================  ===============================

``d`` and ``dmin`` are half-precision.  Blocks hold 16 numbers in Q2_K, Q3_K and Q6_K and 32 in
Q4_K and Q5_K.  Bits of several numbers share a byte in runs: 32 bytes hold the lowest bits of
32 numbers, then the next ones, and so on (64 bytes for the low bits of Q6_K).

Source: ``block_q2_K`` to ``block_q6_K`` in ggml's ``ggml-common.h``.  Blocks are ``(n, bytes)``
uint8 and numbers ``(n, 256)`` float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.quants.bits import half, join, split, store_half
from pyrllama.quants.fitting import Samples, WholeLevels, affine_levels, inverse
from pyrllama.quants.superblocks import Limits, fit_affine_scales, fit_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.quants.fitting import Floats

SUPER_BLOCK = 256
"""Numbers that share the half-precision scales."""
RUN = 32
"""Bytes over which the bits of neighbouring numbers are laid out."""
_Q6_RUN = 64
_SMALL = 16
"""Numbers of a block of Q2_K, Q3_K and Q6_K."""
_LARGE = 32
"""Numbers of a block of Q4_K and Q5_K."""
_LOW_4 = np.uint8(0x0F)
_LOW_6 = np.uint8(0x3F)
_HIGH_2 = np.uint8(0x30)
_2, _4, _6 = np.uint8(2), np.uint8(4), np.uint8(6)

_Q2_QS, _Q2_D, _Q2_DMIN = 16, 80, 82
_Q3_QS, _Q3_SCALES, _Q3_D = 32, 96, 108
_Q4_DMIN, _Q4_SCALES, _Q4_QS, _Q5_QS = 2, 4, 16, 48
_Q6_QH, _Q6_SCALES, _Q6_D = 128, 192, 208


_ENDS = {
    2: tuple(np.linspace(2.4, 5.0, 12)),
    3: (*np.linspace(-4.9, -2.6, 6), *np.linspace(2.6, 3.9, 4)),
    4: tuple(np.linspace(14.2, 18.0, 12)),
    5: tuple(np.linspace(30.2, 34.0, 12)),
    6: tuple(np.linspace(-33.0, -29.6, 10)),
}
"""Levels, by bits, at which the number farthest from zero, or the highest one, is tried."""


_NEIGHBOURS = {2: (-1, 0, 1), 3: (-1, 0, 1), 4: (-1, 0, 1), 5: (-1, 0, 1), 6: (0,)}
"""Steps, by bits, from a block's integer scale to the others that are tried."""


class _Affine(NamedTuple):
    """Super-blocks as ``d * scale * q - dmin * min``: ``(n,)``, ``(n, blocks)``, ``(n, 256)``."""

    d: Floats
    dmin: Floats
    scales: NDArray[np.uint8]
    mins: NDArray[np.uint8]
    q: NDArray[np.uint8]


class _Linear(NamedTuple):
    """Super-blocks as ``d * scale * q``: ``(n,)``, ``(n, blocks)``, ``(n, 256)``."""

    d: Floats
    scales: NDArray[np.int8]
    q: NDArray[np.int8]


def fit_q2_k(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q2_K blocks of the least squared error."""
    _store_q2_k(_fit_affine(x, weights, 2, _SMALL, Limits(0, 15)), out)


def unpack_q2_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q2_K blocks to ``out``."""
    scales = blocks[:, :_Q2_QS]
    q = split(blocks[:, _Q2_QS:_Q2_D], 2, RUN)
    d, dmin = half(blocks, _Q2_D), half(blocks, _Q2_DMIN)
    _affine(q, d * (scales & _LOW_4), dmin * (scales >> _4), out)


def _store_q2_k(parts: _Affine, out: NDArray[np.uint8]) -> None:
    """Write scales, minimums and quants to ``out`` as Q2_K blocks."""
    out[:, :_Q2_QS] = parts.scales | parts.mins << _4
    out[:, _Q2_QS:_Q2_D] = join(parts.q, 2, RUN)
    store_half(parts.d, out, _Q2_D)
    store_half(parts.dmin, out, _Q2_DMIN)


def fit_q3_k(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q3_K blocks of the least squared error."""
    _store_q3_k(_fit_linear(x, weights, 3, Limits(-32, 31)), out)


def unpack_q3_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q3_K blocks to ``out``."""
    high = split(blocks[:, :_Q3_QS], 1, RUN)
    q = split(blocks[:, _Q3_QS:_Q3_SCALES], 2, RUN) | high << _2
    low = split(blocks[:, _Q3_SCALES : _Q3_SCALES + 8], 4, 8)
    scales = low | split(blocks[:, _Q3_SCALES + 8 : _Q3_D], 2, 4) << _4
    scaled = half(blocks, _Q3_D) * (scales.view(np.int8) - np.int8(32))
    _linear(q.view(np.int8) - np.int8(4), scaled, out)


def _store_q3_k(parts: _Linear, out: NDArray[np.uint8]) -> None:
    """Write scales and quants, -4 to 3, to ``out`` as Q3_K blocks."""
    q = (parts.q + np.int8(4)).view(np.uint8)
    scales = (parts.scales + np.int8(32)).view(np.uint8)
    out[:, :_Q3_QS] = join(q >> _2, 1, RUN)
    out[:, _Q3_QS:_Q3_SCALES] = join(q & np.uint8(3), 2, RUN)
    out[:, _Q3_SCALES : _Q3_SCALES + 8] = join(scales & _LOW_4, 4, 8)
    out[:, _Q3_SCALES + 8 : _Q3_D] = join(scales >> _4, 2, 4)
    store_half(parts.d, out, _Q3_D)


def fit_q4_k(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q4_K blocks of the least squared error."""
    _store_q4_k(_fit_affine(x, weights, 4, _LARGE, Limits(0, 63)), out)


def unpack_q4_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q4_K blocks to ``out``."""
    scales, mins = six_bit_pairs(blocks[:, _Q4_SCALES:_Q4_QS])
    q = split(blocks[:, _Q4_QS:], 4, RUN)
    _affine(q, half(blocks) * scales, half(blocks, _Q4_DMIN) * mins, out)


def _store_q4_k(parts: _Affine, out: NDArray[np.uint8]) -> None:
    """Write scales, minimums and quants to ``out`` as Q4_K blocks."""
    _store_affine_head(parts, out)
    out[:, _Q4_QS:] = join(parts.q, 4, RUN)


def fit_q5_k(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q5_K blocks of the least squared error."""
    _store_q5_k(_fit_affine(x, weights, 5, _LARGE, Limits(0, 63)), out)


def unpack_q5_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q5_K blocks to ``out``."""
    scales, mins = six_bit_pairs(blocks[:, _Q4_SCALES:_Q4_QS])
    high = split(blocks[:, _Q4_QS:_Q5_QS], 1, RUN)
    q = split(blocks[:, _Q5_QS:], 4, RUN) | high << _4
    _affine(q, half(blocks) * scales, half(blocks, _Q4_DMIN) * mins, out)


def _store_q5_k(parts: _Affine, out: NDArray[np.uint8]) -> None:
    """Write scales, minimums and quants to ``out`` as Q5_K blocks."""
    _store_affine_head(parts, out)
    out[:, _Q4_QS:_Q5_QS] = join(parts.q >> _4, 1, RUN)
    out[:, _Q5_QS:] = join(parts.q & _LOW_4, 4, RUN)


def fit_q6_k(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q6_K blocks of the least squared error."""
    _store_q6_k(_fit_linear(x, weights, 6, Limits(-128, 127)), out)


def unpack_q6_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q6_K blocks to ``out``."""
    high = split(blocks[:, _Q6_QH:_Q6_SCALES], 2, RUN)
    q = split(blocks[:, :_Q6_QH], 4, _Q6_RUN) | high << _4
    scales = half(blocks, _Q6_D) * blocks[:, _Q6_SCALES:_Q6_D].view(np.int8)
    _linear(q.view(np.int8) - np.int8(32), scales, out)


def _store_q6_k(parts: _Linear, out: NDArray[np.uint8]) -> None:
    """Write scales and quants, -32 to 31, to ``out`` as Q6_K blocks."""
    q = (parts.q + np.int8(32)).view(np.uint8)
    out[:, :_Q6_QH] = join(q & _LOW_4, 4, _Q6_RUN)
    out[:, _Q6_QH:_Q6_SCALES] = join(q >> _4, 2, RUN)
    out[:, _Q6_SCALES:_Q6_D] = parts.scales.view(np.uint8)
    store_half(parts.d, out, _Q6_D)


def _affine(
    q: NDArray[np.uint8],
    scales: NDArray[np.float32],
    mins: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write ``scale * q - minimum`` to ``out``; one scale and minimum, ``(n, blocks)``, a block."""
    blocks = out.reshape(*scales.shape, -1)
    np.multiply(q.reshape(blocks.shape), scales[..., None], out=blocks)
    blocks -= mins[..., None]


def _linear(q: NDArray[np.int8], scales: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write ``scale * q`` to ``out``; one scale, ``(n, blocks)``, a block."""
    blocks = out.reshape(*scales.shape, -1)
    np.multiply(q.reshape(blocks.shape), scales[..., None], out=blocks)


def six_bit_pairs(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return eight scales and eight minimums of 6 bits, each ``(n, 8)``.

    Bytes 0 to 3 hold the scales of blocks 0 to 3, bytes 4 to 7 their minimums, bytes 8 to 11
    the low four bits of both for blocks 4 to 7, whose high two bits stand above those of the
    first eight bytes.
    """
    first, low = packed[:, :8], packed[:, 8:]
    late = (first >> _2) & _HIGH_2
    scales = np.concatenate([first[:, :4] & _LOW_6, (low & _LOW_4) | late[:, :4]], axis=1)
    mins = np.concatenate([first[:, 4:] & _LOW_6, (low >> _4) | late[:, 4:]], axis=1)
    return scales, mins


def _store_affine_head(parts: _Affine, out: NDArray[np.uint8]) -> None:
    """Write the scales of Q4_K and Q5_K as ``six_bit_pairs`` reads them."""
    store_half(parts.d, out)
    store_half(parts.dmin, out, _Q4_DMIN)
    scales, mins = parts.scales, parts.mins
    packed = out[:, _Q4_SCALES:_Q4_QS]
    packed[:, :4] = scales[:, :4] | (scales[:, 4:] >> _4) << _6
    packed[:, 4:8] = mins[:, :4] | (mins[:, 4:] >> _4) << _6
    packed[:, 8:] = (scales[:, 4:] & _LOW_4) | (mins[:, 4:] & _LOW_4) << _4


def _fit_affine(
    x: Floats, weights: Floats | None, bits: int, width: int, limits: Limits
) -> _Affine:
    """Return super-blocks of blocks of ``width`` numbers with scales and minimums."""
    samples = Samples(x, weights, width)
    top = (1 << bits) - 1
    scales, mins = fit_affine_scales(
        samples, top, _ENDS[bits], limits, SUPER_BLOCK // width, _NEIGHBOURS[bits]
    )
    q = affine_levels(samples, inverse(scales.products), -mins.products, top)
    return _Affine(
        scales.d,
        mins.d,
        scales.integers.astype(np.uint8),
        mins.integers.astype(np.uint8),
        q.T.astype(np.uint8).reshape(x.shape),
    )


def _fit_linear(x: Floats, weights: Floats | None, bits: int, limits: Limits) -> _Linear:
    """Return super-blocks of blocks of 16 numbers with scales alone."""
    samples = Samples(x, weights, _SMALL)
    levels = WholeLevels(-(1 << bits - 1), (1 << bits - 1) - 1)
    scales = fit_scales(
        samples, levels, _ENDS[bits], limits, SUPER_BLOCK // _SMALL, _NEIGHBOURS[bits]
    )
    q = levels.nearest(samples.x, inverse(scales.products), samples.work)
    integers = scales.integers.astype(np.int8)
    return _Linear(scales.d, integers, q.T.astype(np.int8).reshape(x.shape))
