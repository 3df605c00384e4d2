"""IQ1, IQ2 and IQ3: groups of numbers that are points of a codebook, times a scale.

=======  =====  ================================================  ============================
type     bytes  layout                                            number
=======  =====  ================================================  ============================
IQ1_S    50     d, u8[32] index, 8 x (3 bits[4] index, 3 bits     ``d * (2 * sc + 1) * (point
                scale, 1 bit shift)                               +- 1/8)``
IQ1_M    56     u8[32] index, (3 bits index, 1 bit shift)[32],    as IQ1_S
                4 x (3 bits[4] scale, 4 bits of d)
IQ2_XXS  66     d, 8 x (u8[4] index, 7 bits[4] sign, 4 bits sc)   ``d * (sc + 1/2) / 4 * point``
IQ2_XS   74     d, (9 bits index, 7 bits sign)[32],               as IQ2_XXS
                4 bits[16] scale
IQ2_S    82     d, u8[32] index, u8[32] sign, 2 bits[32] index,   as IQ2_XXS
                4 bits[16] scale
IQ3_XXS  98     d, u8[64] index, 8 x (7 bits[4] sign, 4 bits sc)  ``d * (sc + 1/2) / 2 * point``
IQ3_S    110    d, u8[64] index, 1 bit[64] index, u8[32] sign,    ``d * (2 * sc + 1) * point``
                4 bits[8] scale
=======  =====  ================================================  ============================

``d`` is half-precision.  A point has 8 numbers in IQ1 and IQ2 and 4 in IQ3; signs are one bit a
number, and where 8 numbers have 7 of them, an even number of all 8 is negative.

Source: ``block_iq1_s`` to ``block_iq3_s`` in ggml's ``ggml-common.h``, and
``dequantize_row_iq1_s`` to ``dequantize_row_iq3_s`` in ``ggml-quants.c``.  Blocks are
``(n, bytes)`` uint8 and numbers ``(n, 256)`` float32.
"""

from __future__ import annotations

import base64
import zlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.quants import codebook_points
from pyrllama.quants.bits import half, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IQ1_VALUES = (-1, 0, 1)
_IQ2_VALUES = (8, 25, 43)
_IQ3_XXS_VALUES = (4, 12, 20, 28, 36, 44, 52, 62)
_IQ3_S_VALUES = (1, 3, 5, 7, 9, 11, 13, 15)
_SHIFT = np.float32(0.125)
"""By how much IQ1 moves a whole point up or down."""
_HALF = np.float32(0.5)
_QUARTER = np.float32(0.25)
_4 = np.uint8(4)
_8 = np.uint16(8)
_LOW_3 = np.uint16(7)
_SEVEN_BITS = np.array([0, 7, 14, 21], np.uint32)
_THREE_BITS = np.array([0, 3, 6, 9], np.uint16)


@cache
def codebook(points: str, values: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a codebook, ``(points, numbers a point)``, from its bitmap and its values."""
    bitmap = np.frombuffer(zlib.decompress(base64.b85decode(points), wbits=-15), np.uint8)
    (codes,) = np.nonzero(np.unpackbits(bitmap, bitorder="little"))
    base, width = len(values), 8 if len(values) == len(_IQ2_VALUES) else 4
    digits = codes[:, None] // base ** np.arange(width) % base
    points_of_codes: NDArray[np.float32] = np.array(values, np.float32)[digits]
    return points_of_codes


def unpack_iq1_s(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ1_S blocks to ``out``."""
    high = np.ascontiguousarray(blocks[:, 34:]).view("<u2")  # (n, 8)
    index = blocks[:, 2:34] | ((high[..., None] >> _THREE_BITS) & _LOW_3).reshape(-1, 32) << _8
    scales = half(blocks) * (2 * ((high >> np.uint16(12)) & _LOW_3) + np.uint16(1))
    shifts = np.where(high >> np.uint16(15), -_SHIFT, _SHIFT)  # (n, 8)
    points = codebook(codebook_points.IQ1, _IQ1_VALUES)[index].reshape(len(blocks), 8, 32)
    points += shifts[..., None]
    np.multiply(points, scales[..., None], out=out.reshape(points.shape))


def unpack_iq1_m(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ1_M blocks to ``out``; their ``d`` is spread over four words."""
    words = np.ascontiguousarray(blocks[:, 48:]).view("<u2")  # (n, 4)
    nibbles = (words >> np.uint16(12)) << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(nibbles, axis=1).astype("<u2").view("<f2").astype(np.float32)
    scales = ((words[..., None] >> _THREE_BITS) & _LOW_3).reshape(-1, 16)
    scaled = d[:, None] * (np.uint16(2) * scales + np.uint16(1))  # (n, 16)
    high = split(blocks[:, 32:48], 4, 1)  # (n, 32)
    index = blocks[:, :32] | (high & np.uint8(7)).astype(np.uint16) << _8
    shifts = np.where(high >> np.uint8(3), -_SHIFT, _SHIFT)
    points = codebook(codebook_points.IQ1, _IQ1_VALUES)[index]  # (n, 32, 8)
    points += shifts[..., None]
    shape = (len(blocks), 16, 16)
    np.multiply(points.reshape(shape), scaled[..., None], out=out.reshape(shape))


def unpack_iq2_xxs(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ2_XXS blocks to ``out``."""
    words = np.ascontiguousarray(blocks[:, 2:]).view("<u4").reshape(-1, 8, 2)
    index = np.ascontiguousarray(words[..., 0]).view(np.uint8)
    scales, signs = _scales_and_signs(words[..., 1])
    points = codebook(codebook_points.IQ2_XXS, _IQ2_VALUES)[index]
    _signed(points, signs, half(blocks) * scales * _QUARTER, out)


def unpack_iq2_xs(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ2_XS blocks to ``out``."""
    words = np.ascontiguousarray(blocks[:, 2:66]).view("<u2")
    signs = _eighth_sign((words >> np.uint16(9)).astype(np.uint8))
    points = codebook(codebook_points.IQ2_XS, _IQ2_VALUES)[words & np.uint16(511)]
    scales = split(blocks[:, 66:], 4, 1) + _HALF
    _signed(points, signs, half(blocks) * scales * _QUARTER, out)


def unpack_iq2_s(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ2_S blocks to ``out``."""
    index = blocks[:, 2:34] | split(blocks[:, 66:74], 2, 1).astype(np.uint16) << _8
    points = codebook(codebook_points.IQ2_S, _IQ2_VALUES)[index]
    scales = split(blocks[:, 74:], 4, 1) + _HALF
    _signed(points, blocks[:, 34:66], half(blocks) * scales * _QUARTER, out)


def unpack_iq3_xxs(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ3_XXS blocks to ``out``."""
    words = np.ascontiguousarray(blocks[:, 66:]).view("<u4")
    scales, signs = _scales_and_signs(words)
    points = codebook(codebook_points.IQ3_XXS, _IQ3_XXS_VALUES)[blocks[:, 2:66]]
    _signed(points, signs, half(blocks) * scales * _HALF, out)


def unpack_iq3_s(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ3_S blocks to ``out``."""
    index = blocks[:, 2:66] | split(blocks[:, 66:74], 1, 1).astype(np.uint16) << _8
    points = codebook(codebook_points.IQ3_S, _IQ3_S_VALUES)[index]
    scales = np.uint8(2) * split(blocks[:, 106:], 4, 1) + np.uint8(1)
    _signed(points, blocks[:, 74:106], half(blocks) * scales, out)


def _scales_and_signs(
    words: NDArray[np.uint32],
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the scales, ``(n, 8)``, and sign bytes, ``(n, 32)``, of words ``(n, 8)``."""
    seven = ((words[..., None] >> _SEVEN_BITS) & np.uint32(127)).astype(np.uint8)
    scales = (words >> np.uint32(28)).astype(np.float32) + _HALF
    return scales, _eighth_sign(seven.reshape(len(words), -1))


def _eighth_sign(seven: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return sign bytes with the eighth bit that makes an even number of them."""
    parity = seven ^ seven >> _4
    parity ^= parity >> np.uint8(2)
    parity ^= parity >> np.uint8(1)
    return seven | parity << np.uint8(7)


def _signed(
    points: NDArray[np.float32],
    signs: NDArray[np.uint8],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write points with their signs, ``(n, 32)`` bytes, and scales, ``(n, blocks)``, to ``out``."""
    negative = np.unpackbits(np.ascontiguousarray(signs), axis=1, bitorder="little")
    shape = (*scales.shape, -1)
    np.multiply(points.reshape(shape), scales[..., None], out=out.reshape(len(out), *shape[1:]))
    np.negative(out, out=out, where=negative.view(bool))
