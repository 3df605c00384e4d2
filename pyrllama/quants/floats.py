"""F32, F16 and BF16: one number is one block, little-endian.

=====  =====  ================  ============================================================
type   bytes  bits              meaning
=====  =====  ================  ============================================================
F32    4      1 + 8 + 23        IEEE 754 binary32
F16    2      1 + 5 + 10        IEEE 754 binary16
BF16   2      1 + 8 + 7         the upper half of a binary32
=====  =====  ================  ============================================================

Blocks are ``(n, bytes)`` uint8 and numbers ``(n, 1)`` float32.  Packing rounds to the nearest
value, ties to even; what is too large becomes infinite, and NaN stays NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BF16_ROUND = np.uint32(0x7FFF)
_F32_ABS = np.uint32(0x7FFFFFFF)
_F32_INF = np.uint32(0x7F800000)
_F32_QUIET = np.uint32(0x00400000)
_ONE = np.uint32(1)
_HALF_WIDTH = np.uint32(16)


def unpack_f32(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of F32 blocks to ``out``."""
    out[:] = blocks.view("<f4")


def pack_f32(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as F32 blocks."""
    out.view("<f4")[:] = x


def unpack_f16(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of F16 blocks to ``out``, exactly."""
    out[:] = blocks.view("<f2")


def pack_f16(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as F16 blocks; from 65520 on they become infinite."""
    out.view("<f2")[:] = x


def unpack_bf16(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of BF16 blocks to ``out``, exactly."""
    np.left_shift(blocks.view("<u2"), _HALF_WIDTH, out=out.view(np.uint32), dtype=np.uint32)


def pack_bf16(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as BF16 blocks."""
    bits = x.view(np.uint32)
    # Adding just under half of the last kept bit, and that bit itself, rounds ties to even.
    rounded = (bits + (_BF16_ROUND + ((bits >> _HALF_WIDTH) & _ONE))) >> _HALF_WIDTH
    nan = (bits & _F32_ABS) > _F32_INF
    if nan.any():
        # Rounding could carry a NaN over into zero or infinity.
        rounded[nan] = (bits[nan] | _F32_QUIET) >> _HALF_WIDTH
    out.view("<u2")[:] = rounded
