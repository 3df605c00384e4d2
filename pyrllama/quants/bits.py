"""Cutting bits out of bytes and joining them again, for all block formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF_BYTES = 2
"""Bytes of a half-precision number."""


def half(blocks: NDArray[np.uint8], offset: int = 0) -> NDArray[np.float32]:
    """Return the half-precision number at a byte of each block: ``(n, 1)`` float32."""
    stored = np.ascontiguousarray(blocks[:, offset : offset + HALF_BYTES])
    return stored.view("<f2").astype(np.float32)


def store_half(values: NDArray[np.float32], blocks: NDArray[np.uint8], offset: int = 0) -> None:
    """Write one number, ``(n,)``, to each block at a byte, in half precision."""
    stored = values.astype("<f2").reshape(-1, 1).view(np.uint8)
    blocks[:, offset : offset + HALF_BYTES] = stored


def split(packed: NDArray[np.uint8], n_bits: int, run: int) -> NDArray[np.uint8]:
    """Return the numbers of ``n_bits`` that share bytes: ``(n, fields, run)`` a run of bytes.

    ``packed`` is ``(n, bytes)``, cut into runs of ``run`` bytes.  A run holds first the lowest
    bits of all its bytes, then the next ones, and so on.  The result is ``(n, numbers)``.
    """
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8).reshape(-1, 1)
    fields = packed.reshape(len(packed), -1, 1, run) >> shifts
    fields &= np.uint8((1 << n_bits) - 1)
    return fields.reshape(len(packed), -1)


def join(fields: NDArray[np.uint8], n_bits: int, run: int) -> NDArray[np.uint8]:
    """Return numbers of ``n_bits``, ``(n, numbers)``, as bytes that ``split`` takes apart."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8).reshape(-1, 1)
    shifted = fields.reshape(len(fields), -1, len(shifts), run) << shifts
    joined: NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=2)
    return joined.reshape(len(fields), -1)
