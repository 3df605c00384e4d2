"""TQ1_0 and TQ2_0: 256 numbers that are -1, 0 or 1 times one half-precision scale ``d``.

=====  =====  ==============  ==============================================================
type   bytes  layout          number
=====  =====  ==============  ==============================================================
TQ1_0  54     u8[52], d       ``d * (t - 1)``, five ternary digits ``t`` a byte
TQ2_0  66     2 bits[256], d  ``d * (q - 1)``
=====  =====  ==============  ==============================================================

A byte of TQ1_0 is the fraction ``0.ttttt`` in base 3, rounded up to 1/256: multiplying by 3
moves the next digit, the first one first, before the point.  Bytes come in runs of 32, 16 and
4; a run holds the first digits of all its bytes, then the second ones, and so on; the bytes of
the last run have four digits.

Source: ``block_tq1_0`` and ``block_tq2_0`` in ggml's ``ggml-common.h``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.quants.bits import half, join, split, store_half
from pyrllama.quants.fitting import Samples, WholeLevels, as_half, fit_scale, inverse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.quants.fitting import Floats

_RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))
"""First byte, end and digits a byte of each run of TQ1_0."""
_TQ1_D, _TQ2_D = 52, 64
_DIGITS = 5
_STEPS = 3**_DIGITS
"""Fractions that five digits can express."""
_POWERS = 3 ** np.arange(_DIGITS, dtype=np.uint8)
_RUN = 32
_ENDS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Levels at which the number farthest from zero is tried: beyond 1.5 the ones near it are 1."""


def unpack_tq1_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of TQ1_0 blocks to ``out``."""
    digits = [
        blocks[:, start:end].reshape(-1, 1, end - start) * _POWERS[:n, None]
        for start, end, n in _RUNS
    ]
    fractions = np.concatenate([part.reshape(len(blocks), -1) for part in digits], axis=1)
    q = (fractions.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    np.multiply(q.astype(np.int8) - np.int8(1), half(blocks, _TQ1_D), out=out)


def fit_tq1_0(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as TQ1_0 blocks of the least squared error."""
    d, q = _fit(x, weights)
    used = 0
    for start, end, n in _RUNS:
        length = n * (end - start)
        digits = q[:, used : used + length].reshape(len(q), n, -1)
        weights_of_digits = _POWERS[::-1][:n, None].astype(np.uint16)
        fractions = (digits * weights_of_digits).sum(axis=1, dtype=np.uint16)
        out[:, start:end] = (fractions * np.uint16(256) + np.uint16(_STEPS - 1)) // _STEPS
        used += length
    store_half(d, out, _TQ1_D)


def unpack_tq2_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of TQ2_0 blocks to ``out``."""
    q = split(blocks[:, :_TQ2_D], 2, _RUN)
    np.multiply(q.view(np.int8) - np.int8(1), half(blocks, _TQ2_D), out=out)


def fit_tq2_0(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as TQ2_0 blocks of the least squared error."""
    d, q = _fit(x, weights)
    out[:, :_TQ2_D] = join(q, 2, _RUN)
    store_half(d, out, _TQ2_D)


def _fit(x: Floats, weights: Floats | None) -> tuple[Floats, NDArray[np.uint8]]:
    """Return the scale of each block, ``(n,)``, and its digits, ``(n, 256)``."""
    samples = Samples(x, weights, x.shape[1])
    levels = WholeLevels(-1, 1)
    d = as_half(fit_scale(samples, levels, _ENDS))
    q = levels.nearest(samples.x, inverse(d), samples.work)
    return d, (q.T.astype(np.int8) + np.int8(1)).view(np.uint8)
