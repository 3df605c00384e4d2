"""Q8_0 and Q4_0: blocks of 32 numbers of a row behind one half-precision scale ``d``.

=====  =====  ==============  ==============================================================
type   bytes  layout          number
=====  =====  ==============  ==============================================================
Q8_0   34     d, int8[32]     ``d * q[i]``
Q4_0   18     d, uint8[16]    ``d * (q[i] - 8)``; byte ``i`` holds number ``i`` in its low
                              and number ``i + 16`` in its high four bits
=====  =====  ==============  ==============================================================

Source: ``block_q8_0`` and ``block_q4_0`` in ggml's ``ggml-common.h``; packing gives the bits
that ``quantize_row_q8_0_ref`` and ``quantize_row_q4_0_ref`` in ``ggml-quants.c`` give for
finite numbers.  Blocks are ``(n, bytes)`` uint8 and numbers ``(n, 32)`` float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32
"""Numbers that share a scale."""
SCALE_BYTES = 2
_HALF_BLOCK = BLOCK // 2
_LOW_BITS = np.uint8(0x0F)
_NIBBLE = np.uint8(4)
_JUST_UNDER_HALF = np.nextafter(np.float32(0.5), np.float32(0.0))


def unpack_q8_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q8_0 blocks to ``out``."""
    np.multiply(blocks[:, SCALE_BYTES:].view(np.int8), _scales(blocks), out=out)


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


def unpack_q4_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of Q4_0 blocks to ``out``."""
    packed = blocks[:, SCALE_BYTES:]
    scale = _scales(blocks)
    for half, nibbles in enumerate((packed & _LOW_BITS, packed >> _NIBBLE)):
        columns = slice(half * _HALF_BLOCK, (half + 1) * _HALF_BLOCK)
        np.multiply(nibbles.view(np.int8) - np.int8(8), scale, out=out[:, columns])


def pack_q4_0(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as Q4_0 blocks: the number farthest from zero becomes -8."""
    scale = _farthest(x) / np.float32(-8)
    scaled = x * _inverse(scale)
    scaled += np.float32(8.5)
    nibbles = np.minimum(scaled.astype(np.uint8), np.uint8(15))
    out[:, :SCALE_BYTES].view("<f2")[:] = scale
    np.left_shift(nibbles[:, _HALF_BLOCK:], _NIBBLE, out=out[:, SCALE_BYTES:])
    out[:, SCALE_BYTES:] |= nibbles[:, :_HALF_BLOCK]


def _scales(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the scale that stands first in each block: ``(n, 1)``."""
    return blocks[:, :SCALE_BYTES].view("<f2").astype(np.float32)


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
