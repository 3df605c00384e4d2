"""IQ4_NL, IQ4_XS and MXFP4: four bits that choose one of sixteen values.

======  =====  ===================================================  ==========================
type    bytes  layout                                               number of block ``j``
======  =====  ===================================================  ==========================
IQ4_NL  18     d, 4 bits[32]                                        ``d * NON_LINEAR[q]``
IQ4_XS  136    d, high 2 bits[8] scale, low 4 bits[8], 4 bits[256]  ``d * (sc[j] - 32) *
                                                                    NON_LINEAR[q]``
MXFP4   17     exponent u8, 4 bits[32]                              ``2^(e - 128) * E2M1[q]``
======  =====  ===================================================  ==========================

``d`` is half-precision.  Blocks hold 32 numbers; their 16 bytes hold the first half of them in
the low and the second half in the high four bits.

Source: ``block_iq4_nl``, ``block_iq4_xs``, ``block_mxfp4`` and ``kvalues_iq4nl`` in ggml's
``ggml-common.h``; E2M1 and E8M0 as in the OCP Microscaling Formats (MX) specification 1.0.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.quants.bits import half, join, split, store_half
from pyrllama.quants.fitting import Samples, TableLevels, as_half, farthest, fit_scale, inverse
from pyrllama.quants.superblocks import Limits, fit_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.quants.fitting import Floats

BLOCK = 32
"""Numbers that share a scale."""
NON_LINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
"""The values of IQ4_NL and IQ4_XS, denser where normally distributed weights are."""
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, -0.0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of MXFP4: a sign, two bits of exponent and one of mantissa."""
_E2M1_INT = E2M1.astype(np.int8)
_RUN = 16
"""Bytes that hold a block's quants."""
_XS_HIGH, _XS_LOW, _XS_QS = 2, 4, 8
_4 = np.uint8(4)

_ENDS = (*np.linspace(-136.0, -104.0, 6), *np.linspace(98.0, 122.0, 6))
"""Values at which the number farthest from zero is tried."""
_POWERS = (0, -1, -2)


def unpack_iq4_nl(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ4_NL blocks to ``out``."""
    values = NON_LINEAR[split(blocks[:, 2:], 4, _RUN)]
    np.multiply(values, half(blocks), out=out)


def fit_iq4_nl(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as IQ4_NL blocks of the least squared error."""
    samples, levels = Samples(x, weights, BLOCK), _non_linear()
    d = as_half(fit_scale(samples, levels, _ENDS))
    store_half(d, out)
    out[:, 2:] = join(levels.index(samples.x, inverse(d)).T, 4, _RUN)


def unpack_iq4_xs(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of IQ4_XS blocks to ``out``."""
    high = split(blocks[:, _XS_HIGH:_XS_LOW], 2, 1)
    scales = split(blocks[:, _XS_LOW:_XS_QS], 4, 1) | high << _4
    scaled = half(blocks) * (scales.view(np.int8) - np.int8(32))
    values = NON_LINEAR[split(blocks[:, _XS_QS:], 4, _RUN)]
    shape = (*scaled.shape, BLOCK)
    np.multiply(values.reshape(shape), scaled[..., None], out=out.reshape(shape))


def fit_iq4_xs(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as IQ4_XS blocks of the least squared error."""
    samples, levels = Samples(x, weights, BLOCK), _non_linear()
    fitted = fit_scales(samples, levels, _ENDS, Limits(-32, 31), x.shape[1] // BLOCK, (-1, 0, 1))
    scales = (fitted.integers + np.float32(32)).astype(np.uint8)
    store_half(fitted.d, out)
    out[:, _XS_HIGH:_XS_LOW] = join(scales >> _4, 2, 1)
    out[:, _XS_LOW:_XS_QS] = join(scales & np.uint8(0x0F), 4, 1)
    q = levels.index(samples.x, inverse(fitted.products)).T
    out[:, _XS_QS:] = join(q.reshape(x.shape), 4, _RUN)


def unpack_mxfp4(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the numbers of MXFP4 blocks to ``out``."""
    values = _E2M1_INT[split(blocks[:, 1:], 4, _RUN)]
    np.multiply(values, half_power(blocks[:, :1]), out=out)


def fit_mxfp4(x: Floats, weights: Floats | None, out: NDArray[np.uint8]) -> None:
    """Write numbers to ``out`` as MXFP4 blocks of the least squared error."""
    samples, levels = Samples(x, weights, BLOCK), TableLevels(E2M1)
    # The power of two that puts the farthest number just within the values, or 1 to 3 steps on.
    _, power = np.frexp(np.abs(farthest(samples.x)) / E2M1.max())
    best = np.full(power.shape, -np.inf, np.float32)
    exponents = np.zeros(power.shape, np.int32)
    for step in _POWERS:
        tried = np.clip(power + step + 128, 0, 255)
        scale = half_power(tried)
        xq, qq = samples.products(levels.nearest(samples.x, inverse(scale), samples.work))
        gain = scale * (2 * xq - scale * qq)
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(exponents, tried, where=better)
    out[:, 0] = exponents
    out[:, 1:] = join(levels.index(samples.x, inverse(half_power(exponents))).T, 4, _RUN)


def half_power(exponents: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return ``2^(e - 128)``, half of what E8M0 means, since the values are twice theirs."""
    return np.ldexp(np.float32(1.0), exponents.astype(np.int32) - 128).astype(np.float32)


@cache
def _non_linear() -> TableLevels:
    return TableLevels(NON_LINEAR)
