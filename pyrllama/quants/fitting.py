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
_FLAT = np.float32(1e-5)
"""Spread of levels, as a share of their squares, under which they are all the same."""
AFFINE_REFITS = 2
_REFITS = 2
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
        cells = self._cell(x, inverse, out)
        np.take(self._value, cells, out=out, mode="clip")
        return out

    def index(self, x: Floats, inverse: Floats) -> NDArray[np.uint8]:
        """Return which of the values is nearest to each ``x * inverse``."""
        index: NDArray[np.uint8] = self._index[self._cell(x, inverse, np.empty_like(x))]
        return index

    @staticmethod
    def _cell(x: Floats, inverse: Floats, work: Floats) -> NDArray[np.intp]:
        np.multiply(x, inverse * np.float32(2), out=work)
        work += np.float32(_TABLE_HALF)
        return np.clip(work, 0, 2 * _TABLE_HALF - 1, out=work).astype(np.intp)


def inverse(x: Floats) -> Floats:
    """Return ``1 / x``, and 0 where ``x`` is too small to have a finite inverse."""
    inverted: Floats = np.reciprocal(x)
    inverted[~np.isfinite(inverted)] = 0.0
    return inverted


def as_half(x: Floats) -> Floats:
    """Round to half precision, which is how scales are stored."""
    return x.astype(np.float16).astype(np.float32)


def farthest(x: Floats) -> Floats:
    """Return, with its sign, the number of each column that is farthest from zero."""
    high, low = x.max(axis=0), x.min(axis=0)
    far: Floats = np.where(high > -low, high, low)
    return far


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
    best = np.full(low.shape, -np.inf, np.float32)
    scale, offset = np.zeros_like(low), low.copy()
    for step in range(len(ends) + AFFINE_REFITS):
        first = step < len(ends)
        tried = per_end * np.float32(ends[step]) if first else inverse(scale)
        moments.take(affine_levels(samples, tried, low if first else offset, top))
        fitted, moved, gain = moments.line(below_zero=below_zero)
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(scale, fitted, where=better)
        np.copyto(offset, moved, where=better)
    return scale, offset


def affine_levels(samples: Samples, inverted: Floats, offset: Floats, top: int) -> Floats:
    """Return the levels, 0 to ``top``, nearest to ``(x - offset) * inverted``."""
    q = np.multiply(samples.x, inverted, out=samples.work)
    q -= offset * inverted
    np.rint(q, out=q)
    return np.clip(q, np.float32(0), np.float32(top), out=q)


class Moments:
    """Sums over each block, ``(blocks,)``, from which lines through its numbers follow."""

    def __init__(self, samples: Samples) -> None:
        x = samples.x
        self._samples = samples
        self.w = (
            np.full(x.shape[1], len(x), np.float32)
            if samples.weights is None
            else samples.weights.sum(axis=0)
        )
        self._per_w = inverse(self.w)
        self.x = samples.weighted.sum(axis=0)
        self._mean_gain = self.x * self.x * self._per_w
        self.q = self.qq = self.xq = self.x

    def take(self, q: Floats) -> None:
        """Take the sums with levels ``q``."""
        self.xq, self.qq = self._samples.products(q)
        self.q = self._samples.total(q)

    @property
    def spread(self) -> Floats:
        """By how much a scale's error counts where the offset follows it."""
        spread: Floats = self.qq - self.q * self.q * self._per_w
        return spread

    def line(self, *, below_zero: bool) -> tuple[Floats, Floats, Floats]:
        """Return scale and offset of the least-squares line, and by how much it lowers the error.

        Blocks whose numbers are all at one level get an offset alone.
        """
        mean = self.q * self._per_w
        spread = self.qq - self.q * mean
        spread[spread <= _FLAT * self.qq] = np.inf
        along = self.xq - self.x * mean
        scale = along / spread
        offset = (self.x - scale * self.q) * self._per_w
        gain = self._mean_gain + along * scale
        if below_zero:
            (above,) = np.nonzero(offset > 0)
            offset[above] = 0.0
            scale[above] = self.xq[above] * inverse(self.qq[above])
            gain[above] = scale[above] * self.xq[above]
        return scale, offset, gain

    def offset(self, scale: Floats) -> Floats:
        """Return the best offset at or under zero for scales and the levels taken last."""
        best: Floats = (self.x - scale * self.q) * self._per_w
        return np.minimum(best, np.float32(0))

    def gain(self, scale: Floats, offset: Floats) -> Floats:
        """Return by how much a line through the levels taken last lowers the squared error."""
        along_x = 2 * self.xq - scale * self.qq
        along_one = 2 * self.x - offset * self.w - 2 * scale * self.q
        gain: Floats = scale * along_x + offset * along_one
        return gain
