"""Fitting super-blocks: block scales that are themselves small integers times one shared scale.

First every block is fitted by itself (``fitting``).  The shared scale is then searched so that
the integers leave the least error, an error of a block's scale counting by the curvature of the
block's squared error.  At last the integers' neighbours are tried on the numbers themselves, and
the shared scales fitted to the levels that came out: rounding, the integers and the shared
scales in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.quants.fitting import (
    Moments,
    Samples,
    affine_levels,
    as_half,
    farthest,
    fit_affine,
    fit_scale,
    inverse,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.quants.fitting import Floats, Levels

_SHARED_TRIES = 16
"""Candidates for a shared scale."""
_SINGULAR = 1e-9
"""Determinant, as a share of the diagonal's product, under which equations are taken as one."""


class Scales(NamedTuple):
    """Shared scales ``(n,)`` and the integers ``(n, blocks)``: the scale is their product."""

    d: Floats
    integers: Floats

    @property
    def products(self) -> Floats:
        """The scale of each block: ``(n * blocks,)``."""
        return (self.d[:, None] * self.integers).ravel()


class Limits(NamedTuple):
    """The lowest and the highest integer that a block's scale can be."""

    low: int
    high: int


def fit_scales(
    samples: Samples,
    levels: Levels,
    ends: Sequence[float],
    limits: Limits,
    blocks: int,
    neighbours: Sequence[int],
) -> Scales:
    """Return the scales of super-blocks of ``blocks`` blocks whose numbers are ``scale * q``.

    ``ends`` as in ``fit_scale``; ``neighbours`` are the steps from an integer to the others
    that are tried in its place.
    """
    wanted = fit_scale(samples, levels, ends)
    levels_of_wanted = levels.nearest(samples.x, inverse(wanted), samples.work)
    _, curvature = samples.products(levels_of_wanted)
    scales = _share(wanted.reshape(-1, blocks), curvature.reshape(-1, blocks), limits)
    return _settle_scales(samples, levels, scales, limits, neighbours)


def _share(wanted: Floats, curvature: Floats, limits: Limits) -> Scales:
    """Return shared scales and integers whose products are nearest to the wanted scales.

    The scale farthest from zero becomes the end of the integers that reaches farther, or lies
    up to an eighth beyond or before it.
    """
    end = limits.low if -limits.low > limits.high else limits.high
    per_end = farthest(wanted.T)
    best = np.full(len(wanted), np.inf, np.float32)
    d = np.zeros_like(per_end)
    for tried_end in end * np.linspace(1.02, 0.86, _SHARED_TRIES, dtype=np.float32):
        tried = as_half(per_end / tried_end)
        rest = wanted - tried[:, None] * _integers(wanted, tried, limits)
        error = np.einsum("ij,ij,ij->i", curvature, rest, rest)
        better = error < best
        np.copyto(best, error, where=better)
        np.copyto(d, tried, where=better)
    return Scales(d, _integers(wanted, d, limits))


def _integers(wanted: Floats, d: Floats, limits: Limits) -> Floats:
    whole: Floats = np.rint(wanted * inverse(d)[:, None])
    return np.clip(whole, np.float32(limits.low), np.float32(limits.high), out=whole)


def _settle_scales(
    samples: Samples, levels: Levels, scales: Scales, limits: Limits, neighbours: Sequence[int]
) -> Scales:
    """Try neighbours of the integers, then fit the shared scale to what came out."""
    best = np.full(scales.integers.shape, -np.inf, np.float32)
    integers, xqs, qqs = (np.zeros_like(scales.integers) for _ in range(3))
    for step in neighbours:
        tried = np.clip(scales.integers + np.float32(step), limits.low, limits.high)
        product = (scales.d[:, None] * tried).ravel()
        q = levels.nearest(samples.x, inverse(product), samples.work)
        xq, qq = (sums.reshape(best.shape) for sums in samples.products(q))
        product = product.reshape(best.shape)
        gain = product * (2 * xq - product * qq)
        better = gain > best
        for kept, new in ((best, gain), (integers, tried), (xqs, xq), (qqs, qq)):
            np.copyto(kept, new, where=better)
    fitted = (integers * xqs).sum(axis=1) * inverse((integers * integers * qqs).sum(axis=1))
    return Scales(as_half(fitted), integers)


def fit_affine_scales(
    samples: Samples,
    top: int,
    ends: Sequence[float],
    limits: Limits,
    blocks: int,
    neighbours: Sequence[int],
) -> tuple[Scales, Scales]:
    """Return scales and minimums of super-blocks whose numbers are ``scale * q - minimum``."""
    scale, offset = fit_affine(samples, top, ends, below_zero=True)
    moments = Moments(samples)
    moments.take(affine_levels(samples, inverse(scale), offset, top))
    shape = (-1, blocks)
    scales = _share(scale.reshape(shape), moments.spread.reshape(shape), limits)
    wanted = -moments.offset(scales.products)
    mins = _share(wanted.reshape(shape), moments.w.reshape(shape), limits)
    for steps in (neighbours, (0,)):
        scales, mins = _settle_affine(samples, moments, top, scales, mins, limits, steps)
    return scales, mins


def _settle_affine(
    samples: Samples,
    moments: Moments,
    top: int,
    scales: Scales,
    mins: Scales,
    limits: Limits,
    neighbours: Sequence[int],
) -> tuple[Scales, Scales]:
    """Try neighbours of the scales' integers with their best minimums, then fit d and dmin."""
    shape = scales.integers.shape
    best = np.full(shape, -np.inf, np.float32)
    kept = np.zeros((5, *shape), np.float32)
    for step in neighbours:
        tried = np.clip(scales.integers + np.float32(step), limits.low, limits.high)
        product = (scales.d[:, None] * tried).ravel()
        moments.take(affine_levels(samples, inverse(product), -mins.products, top))
        low = _integers(-moments.offset(product).reshape(shape), mins.d, limits)
        gain = moments.gain(product, -(mins.d[:, None] * low).ravel()).reshape(shape)
        better = gain > best
        np.copyto(best, gain, where=better)
        sums = (each.reshape(shape) for each in (moments.xq, moments.qq, moments.q))
        for row, new in zip(kept, (tried, low, *sums), strict=True):
            np.copyto(row, new, where=better)
    return _fit_shared(moments, *kept)


def _fit_shared(
    moments: Moments, scale: Floats, low: Floats, xq: Floats, qq: Floats, q: Floats
) -> tuple[Scales, Scales]:
    """Return the d and dmin of least error for integers and sums of levels."""
    w, x = (sums.reshape(scale.shape) for sums in (moments.w, moments.x))
    # Normal equations of  x = d * (scale * q) + dmin * (-min)  over the super-block.
    a = np.einsum("ij,ij,ij->i", scale, scale, qq, dtype=np.float64)
    b = -np.einsum("ij,ij,ij->i", scale, low, q, dtype=np.float64)
    c = np.einsum("ij,ij,ij->i", low, low, w, dtype=np.float64)
    xa = np.einsum("ij,ij->i", scale, xq, dtype=np.float64)
    xb = -np.einsum("ij,ij->i", low, x, dtype=np.float64)
    d, dmin = _solve(a, b, c, xa, xb)
    return Scales(d, scale), Scales(dmin, low)


def _solve(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    xa: NDArray[np.float64],
    xb: NDArray[np.float64],
) -> tuple[Floats, Floats]:
    """Solve ``[[a, b], [b, c]] (d, dmin) = (xa, xb)``; where singular, for one of the two."""
    determinant = a * c - b * b
    regular = determinant > _SINGULAR * a * c
    d = np.where(regular, (c * xa - b * xb) / determinant, np.where(a > 0, xa / a, 0.0))
    alone = np.where((a == 0) & (c > 0), xb / c, 0.0)
    dmin = np.where(regular, (a * xb - b * xa) / determinant, alone)
    return as_half(d.astype(np.float32)), as_half(dmin.astype(np.float32))
