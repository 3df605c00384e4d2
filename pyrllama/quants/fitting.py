"""Choosing scales: the search for those that leave the least weighted squared error.

Blocks stand side by side as columns, ``x`` is ``(numbers a block, blocks)``, so that every
step works on all blocks at once.  The candidates for a scale put the number farthest from zero
(or the range of numbers) at and around the end of the levels.  With the levels ``q`` that a
candidate rounds to, the best scale is the least-squares one, ``sum(w x q) / sum(w q q)``; the
candidate that leaves the least error wins, and rounding and fitting are then repeated in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_TABLE_HALF = 256
"""Half steps to either side of zero that a table of levels covers."""
_REFITS = 3
"""How often rounding and fitting are repeated after the search."""


class Samples:
    """The numbers of blocks and their weights: all ``(numbers a block, blocks)``."""

    def __init__(self, x: Floats, weights: Floats | None, width: int) -> None:
        """Take numbers, and the weights of their squared errors, in rows of whole blocks."""
        self.x = np.ascontiguousarray(x.reshape(-1, width).T)
        self.weights = (
            None if weights is None else np.ascontiguousarray(weights.reshape(-1, width).T)
        )
        self.weighted = self.x if self.weights is None else self.x * self.weights
        self.work = np.empty_like(self.x)

    def products(self, q: Floats) -> tuple[Floats, Floats]:
        """Return ``sum(w x q)`` and ``sum(w q q)`` of every block."""
        squares = (
            self._sum(q, q)
            if self.weights is None
            else np.einsum("ij,ij,ij->j", self.weights, q, q)
        )
        return self._sum(self.weighted, q), squares

    def total(self, q: Floats) -> Floats:
        """Return ``sum(w q)`` of every block."""
        return q.sum(axis=0) if self.weights is None else self._sum(self.weights, q)

    @staticmethod
    def _sum(a: Floats, b: Floats) -> Floats:
        products: Floats = np.einsum("ij,ij->j", a, b)
        return products


class Levels(Protocol):
    """The values that stand for numbers once they are divided by the scale."""

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""

    def nearest(self, x: Floats, inverse: Floats, out: Floats) -> Floats:
        """Write the level nearest to each ``x * inverse`` to ``out`` and return it."""


@dataclass(frozen=True, slots=True)
class WholeLevels:
    """All whole numbers from ``low`` to ``high``."""

    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return self.low, self.high

    def nearest(self, x: Floats, inverse: Floats, out: Floats) -> Floats:
        """Round, and hold within the ends."""
        np.multiply(x, inverse, out=out)
        np.rint(out, out=out)
        return np.clip(out, np.float32(self.low), np.float32(self.high), out=out)


class TableLevels:
    """Values between which the middle is a whole number of halves, so that a table tells them."""

    def __init__(self, values: Floats) -> None:
        halves = np.arange(-_TABLE_HALF, _TABLE_HALF) / 2 + 0.25  # in the middle of each half
        index = np.abs(halves[:, None] - values).argmin(axis=1)
        self._index = index.astype(np.uint8)
        self._value = values[index]
        self.ends = float(values.min()), float(values.max())

    def nearest(self, x: Floats, inverse: Floats, out: Floats) -> Floats:
        """Look each number up."""
        return np.take(self._value, self._cell(x, inverse, out), out=out, mode="clip")

    def index(self, x: Floats, inverse: Floats) -> NDArray[np.uint8]:
        """Return which of the values is nearest to each ``x * inverse``."""
        return self._index[self._cell(x, inverse, np.empty_like(x))]

    @staticmethod
    def _cell(x: Floats, inverse: Floats, work: Floats) -> NDArray[np.intp]:
        np.multiply(x, inverse * np.float32(2), out=work)
        work += np.float32(_TABLE_HALF)
        return np.clip(work, 0, 2 * _TABLE_HALF - 1, out=work).astype(np.intp)


def inverse(x: Floats) -> Floats:
    """Return ``1 / x``, and 0 where ``x`` is too small to have a finite inverse."""
    inverted = np.reciprocal(x)
    inverted[~np.isfinite(inverted)] = 0.0
    return inverted


def as_half(x: Floats) -> Floats:
    """Round to half precision, which is how scales are stored."""
    return x.astype(np.float16).astype(np.float32)


def farthest(x: Floats) -> Floats:
    """Return, with its sign, the number of each column that is farthest from zero."""
    high, low = x.max(axis=0), x.min(axis=0)
    return np.where(high > -low, high, low)


def fit_scale(samples: Samples, levels: Levels, ends: Sequence[float]) -> Floats:
    """Return the scale of each block.

    ``ends`` are the levels, whole or not, of either sign, at which the number farthest from
    zero is tried.
    """
    per_end = inverse(farthest(samples.x))
    best, scale = np.zeros_like(per_end), np.zeros_like(per_end)
    for step in range(len(ends) + _REFITS):
        tried = per_end * np.float32(ends[step]) if step < len(ends) else inverse(scale)
        q = levels.nearest(samples.x, tried, samples.work)
        xq, qq = samples.products(q)
        fitted = xq * inverse(qq)
        gain = fitted * xq
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(scale, fitted, where=better)
    return scale


def fit_affine(
    samples: Samples, top: int, ends: Sequence[float], *, below_zero: bool
) -> tuple[Floats, Floats]:
    """Return scale and offset of each block: numbers are ``scale * q + offset``, q 0 to ``top``.

    ``ends`` are the levels at which the highest number is tried while the lowest one is at 0;
    ``below_zero`` keeps offsets from being positive.
    """
    x = samples.x
    moments = Moments(samples)
    low, high = x.min(axis=0), x.max(axis=0)
    if below_zero:
        low = np.minimum(low, np.float32(0))
    per_end = inverse(high - low)
    best = np.full(low.shape, np.inf)
    scale, offset = np.zeros_like(low), low.copy()
    for step in range(len(ends) + _REFITS):
        first = step < len(ends)
        tried = per_end * np.float32(ends[step]) if first else inverse(scale)
        q = affine_levels(samples, tried, low if first else offset, top)
        fitted, moved = moments.line(q, below_zero=below_zero)
        error = moments.error(fitted, moved)
        better = error < best
        np.copyto(best, error, where=better)
        np.copyto(scale, fitted, where=better, casting="same_kind")
        np.copyto(offset, moved, where=better, casting="same_kind")
    return scale, offset


def affine_levels(samples: Samples, inverted: Floats, offset: Floats, top: int) -> Floats:
    """Return the levels, 0 to ``top``, nearest to ``(x - offset) * inverted``."""
    q = np.multiply(samples.x, inverted, out=samples.work)
    q -= offset * inverted
    np.rint(q, out=q)
    return np.clip(q, np.float32(0), np.float32(top), out=q)


class Moments:
    """Sums over each block from which lines through its numbers, and their errors, follow.

    In float64: an error is a small difference of large sums.
    """

    def __init__(self, samples: Samples) -> None:
        x, weighted = samples.x, samples.weighted
        self._samples = samples
        ones = (
            float(len(x))
            if samples.weights is None
            else samples.weights.sum(axis=0, dtype=np.float64)
        )
        self.w = np.broadcast_to(ones, x.shape[1:])
        self.x = weighted.sum(axis=0, dtype=np.float64)
        self.xx = np.einsum("ij,ij->j", weighted, x).astype(np.float64)
        self.q = self.qq = self.xq = self.x

    def take(self, q: Floats) -> None:
        """Take the sums with levels ``q``."""
        xq, qq = self._samples.products(q)
        self.xq, self.qq = xq.astype(np.float64), qq.astype(np.float64)
        self.q = self._samples.total(q).astype(np.float64)

    def line(
        self, q: Floats, *, below_zero: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return scale and offset of the least-squares line through levels ``q``."""
        self.take(q)
        spread = self.w * self.qq - self.q * self.q
        scale = (self.w * self.xq - self.x * self.q) / spread
        flat = ~(spread > 0)  # all numbers at one level
        scale[flat] = 0.0
        offset = (self.x - scale * self.q) / self.w
        if below_zero:
            above = offset > 0
            through_zero = np.where(self.qq > 0, self.xq / self.qq, 0.0)
            scale, offset = np.where(above, through_zero, scale), np.where(above, 0.0, offset)
        return scale, np.where(self.w > 0, offset, 0.0)

    def offset(self, scale: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the best offset at or under zero for scales and the levels taken last."""
        offset = (self.x - scale * self.q) / self.w
        return np.where(offset < 0, offset, 0.0)

    def error(
        self, scale: NDArray[np.floating], offset: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Return the weighted squared error of a line through the levels taken last."""
        fixed = self.xx + offset * (offset * self.w - 2 * self.x)
        error: NDArray[np.float64] = fixed + scale * (
            scale * self.qq + 2 * (offset * self.q - self.xq)
        )
        return error
