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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.quants import codebook_points
from pyrllama.quants.bits import half, split
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_NUMBERS = 256
_4 = np.uint8(4)
_8 = np.uint16(8)
_LOW_3 = np.uint16(7)
_SEVEN_BITS = np.array([0, 7, 14, 21], np.uint32)
_THREE_BITS = np.array([0, 3, 6, 9], np.uint16)


class _Book(NamedTuple):
    """A codebook, and what its digits and a sign mean: ``values[digit | sign << bits]``."""

    points: str
    values: tuple[int, ...]
    base: int
    """Digits of a number."""
    factor: float = 1.0
    """By which ``values`` are too large."""

    @property
    def bits(self) -> int:
        """Bits of a digit."""
        return (self.base - 1).bit_length()


def _either_sign(*values: int) -> tuple[int, ...]:
    padded = values + (0,) * (-len(values) % 4)
    return padded + tuple(-value for value in padded)


# IQ1 moves a whole number up or down by an eighth, which counts as its sign.
_IQ1 = _Book(codebook_points.IQ1, (-7, 1, 9, 0, -9, -1, 7, 0), 3, 1 / 8)
_IQ2 = _Book("", _either_sign(8, 25, 43), 3, 1 / 8)
_IQ3_XXS = _Book(codebook_points.IQ3_XXS, _either_sign(4, 12, 20, 28, 36, 44, 52, 62), 8, 1 / 4)
_IQ3_S = _Book(codebook_points.IQ3_S, _either_sign(1, 3, 5, 7, 9, 11, 13, 15), 8)


class _Parts(NamedTuple):
    """What blocks are made of: ``n`` blocks of 256 numbers, point by point."""

    d: NDArray[np.float32]  # (n, 1)
    scales: NDArray[np.uint8]  # (n, runs): odd numbers
    points: NDArray[np.unsignedinteger]  # (n, 32 or 64): places in the codebook
    negative: NDArray[np.uint8]  # (n, 256), or as many as share a sign: 0 or 1


def _iq1_s(blocks: NDArray[np.uint8]) -> _Parts:
    high = np.ascontiguousarray(blocks[:, 34:]).view("<u2")  # (n, 8)
    index = blocks[:, 2:34] | ((high[..., None] >> _THREE_BITS) & _LOW_3).reshape(-1, 32) << _8
    negative = (high >> np.uint16(15)).astype(np.uint8)
    return _Parts(half(blocks), _odd((high >> np.uint16(12)) & _LOW_3), index, negative)


def _iq1_m(blocks: NDArray[np.uint8]) -> _Parts:
    words = np.ascontiguousarray(blocks[:, 48:]).view("<u2")  # (n, 4): d is spread over them
    nibbles = (words >> np.uint16(12)) << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(nibbles, axis=1).astype("<u2").view("<f2").astype(np.float32)
    scales = ((words[..., None] >> _THREE_BITS) & _LOW_3).reshape(-1, 16)
    high = split(blocks[:, 32:48], 4, 1)  # (n, 32)
    index = blocks[:, :32] | (high & np.uint8(7)).astype(np.uint16) << _8
    return _Parts(d[:, None], _odd(scales), index, high >> np.uint8(3))


def _iq2_xxs(blocks: NDArray[np.uint8]) -> _Parts:
    words = np.ascontiguousarray(blocks[:, 2:]).view("<u4").reshape(-1, 8, 2)
    index = np.ascontiguousarray(words[..., 0]).view(np.uint8)
    return _Parts(half(blocks), *_scales_index_signs(words[..., 1], index))


def _iq2_xs(blocks: NDArray[np.uint8]) -> _Parts:
    words = np.ascontiguousarray(blocks[:, 2:66]).view("<u2")
    signs = _eighth_sign((words >> np.uint16(9)).astype(np.uint8))
    scales = split(blocks[:, 66:], 4, 1)
    return _Parts(half(blocks), _odd(scales), words & np.uint16(511), _bits(signs))


def _iq2_s(blocks: NDArray[np.uint8]) -> _Parts:
    index = blocks[:, 2:34] | split(blocks[:, 66:74], 2, 1).astype(np.uint16) << _8
    scales = split(blocks[:, 74:], 4, 1)
    return _Parts(half(blocks), _odd(scales), index, _bits(blocks[:, 34:66]))


def _iq3_xxs(blocks: NDArray[np.uint8]) -> _Parts:
    words = np.ascontiguousarray(blocks[:, 66:]).view("<u4")
    return _Parts(half(blocks), *_scales_index_signs(words, blocks[:, 2:66]))


def _iq3_s(blocks: NDArray[np.uint8]) -> _Parts:
    index = blocks[:, 2:66] | split(blocks[:, 66:74], 1, 1).astype(np.uint16) << _8
    scales = split(blocks[:, 106:], 4, 1)
    return _Parts(half(blocks), _odd(scales), index, _bits(blocks[:, 74:106]))


def _odd(scales: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    return (2 * scales + 1).astype(np.uint8)


def _bits(signs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a bit a number of sign bytes."""
    return np.unpackbits(np.ascontiguousarray(signs), axis=1, bitorder="little")


def _scales_index_signs(
    words: NDArray[np.uint32], index: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the scales, ``(n, 8)``, and signs, ``(n, 256)``, of words ``(n, 8)``."""
    seven = ((words[..., None] >> _SEVEN_BITS) & np.uint32(127)).astype(np.uint8)
    signs = _eighth_sign(seven.reshape(len(words), -1))
    return _odd(words >> np.uint32(28)), index.reshape(len(words), -1), _bits(signs)


def _eighth_sign(seven: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return sign bytes with the eighth bit that makes an even number of them."""
    parity = seven ^ seven >> _4
    parity ^= parity >> np.uint8(2)
    parity ^= parity >> np.uint8(1)
    return seven | parity << np.uint8(7)


_TYPES: dict[TensorType, tuple[Callable[[NDArray[np.uint8]], _Parts], _Book]] = {
    TensorType.IQ1_S: (_iq1_s, _IQ1),
    TensorType.IQ1_M: (_iq1_m, _IQ1),
    TensorType.IQ2_XXS: (_iq2_xxs, _IQ2._replace(points=codebook_points.IQ2_XXS)),
    TensorType.IQ2_XS: (_iq2_xs, _IQ2._replace(points=codebook_points.IQ2_XS)),
    TensorType.IQ2_S: (_iq2_s, _IQ2._replace(points=codebook_points.IQ2_S)),
    TensorType.IQ3_XXS: (_iq3_xxs, _IQ3_XXS),
    TensorType.IQ3_S: (_iq3_s, _IQ3_S),
}

LEVELS = {type_: book.values for type_, (_, book) in _TYPES.items()}
"""What the levels of ``as_levels`` mean, in units of ``FACTORS``."""
FACTORS = {type_: book.factor for type_, (_, book) in _TYPES.items()}


@cache
def _digits(points: str, base: int) -> NDArray[np.uint64 | np.uint32]:
    """Return the digits of a codebook's points, a byte each, as one number a point."""
    bitmap = np.frombuffer(zlib.decompress(base64.b85decode(points), wbits=-15), np.uint8)
    (codes,) = np.nonzero(np.unpackbits(bitmap, bitorder="little"))
    width = 8 if base == 3 else 4
    digits = (codes[:, None] // base ** np.arange(width) % base).astype(np.uint8)
    joined: NDArray[np.uint64 | np.uint32] = digits.view(f"u{width}").reshape(-1)
    return joined


def _levels(parts: _Parts, book: _Book) -> NDArray[np.uint8]:
    """Return the digit and the sign of every number: ``(n, 256)``."""
    levels: NDArray[np.uint8] = _digits(book.points, book.base)[parts.points].view(np.uint8)
    signs = parts.negative << np.uint8(book.bits)
    shape = (len(levels), signs.shape[1], -1)
    signed: NDArray[np.uint8] = levels.reshape(shape) | signs[..., None]
    return signed.reshape(-1, _NUMBERS)


def as_levels(type_: TensorType, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return blocks without the codebook: d, u8[runs] scales and u8[256] levels of each.

    A number is ``d * FACTORS[type] * scale * LEVELS[type][level]``.  What ``d`` is in IQ1_M
    stays a float16 here, too.
    """
    read, book = _TYPES[type_]
    parts = read(blocks)
    d = parts.d.astype("<f2").view(np.uint8)
    return np.concatenate([d, parts.scales, _levels(parts, book)], axis=1)


def unpacker(type_: TensorType) -> Callable[[NDArray[np.uint8], NDArray[np.float32]], None]:
    """Return what writes the numbers of a type's blocks to an array."""
    read, book = _TYPES[type_]
    values = np.array(book.values, np.float32)

    def unpack(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        parts = read(blocks)
        scales = parts.d * (parts.scales * np.float32(book.factor))  # (n, runs)
        numbers = values[_levels(parts, book)].reshape(*scales.shape, -1)
        np.multiply(numbers, scales[..., None], out=out.reshape(numbers.shape))

    return unpack
