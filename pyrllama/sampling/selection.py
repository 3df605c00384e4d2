"""Selecting the most probable of a vocabulary's tokens in a pass or two over it.

Sorting 128,000 logits costs several milliseconds, and so does a selection that carries their
positions along.  Everything here first finds a bound, by maxima and sums of short runs, and
then looks only at what reaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Row = NDArray[np.float32]
    """One number for each candidate."""
    Ids = NDArray[np.int64]

MASS_TOLERANCE = 1e-6
"""A mass this close under ``top_p`` has reached it: float32 logits do not tell them apart."""
RUN = 64
"""Neighbouring weights that are added up first, or logits whose largest is looked at first."""
FIRST_PART = 16
"""The search for the most probable tokens looks at this part of the vocabulary first."""
SORTED_AT_ONCE = 2048
"""Weights that are sorted instead of parted again."""
FLOAT32 = np.finfo(np.float32)


def softmax_weights(logits: Row, temperature: float = 1.0) -> Row:
    """Return ``e^((x - largest) / t)``: probabilities but for a factor, 1 for the largest logit.

    The largest logit must be finite.
    """
    divisor = np.float32(np.clip(temperature, FLOAT32.tiny, FLOAT32.max))
    with np.errstate(over="ignore"):  # far apart, or at a tiny temperature, to minus infinity
        weights = logits - np.max(logits)
        if divisor != 1:
            weights /= divisor
    return np.asarray(np.exp(weights, out=weights))


def divide(logits: Row, temperature: float) -> Row:
    """Return the logits divided by a temperature; what float32 cannot hold becomes its largest."""
    divisor = np.float32(np.clip(temperature, FLOAT32.tiny, FLOAT32.max))
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(logits / divisor, FLOAT32.max))


def largest(logits: Row, k: int) -> Ids:
    """Return the positions of the ``k`` largest logits, the largest first."""
    ids = np.flatnonzero(logits >= _reached_by(logits, k))
    return largest_first(ids, logits)[:k]


def _reached_by(logits: Row, k: int) -> np.float32:
    """Return a number that at least ``k`` logits reach, and hardly more.

    Of the maxima of short runs, ``k`` reach the one of rank ``k``; finding them costs one pass
    over the vocabulary, a tenth of what it costs to part all of it at rank ``k``.  A run's
    logits lie far apart, so that the maxima of all runs are taken vector by vector.
    """
    n_runs = logits.size // RUN
    if n_runs < k:
        return np.float32(np.partition(logits, logits.size - k)[logits.size - k])
    maxima = logits[: n_runs * RUN].reshape(RUN, n_runs).max(axis=0)
    return np.float32(np.partition(maxima, n_runs - k)[n_runs - k])


def largest_first(ids: Ids, values: Row) -> Ids:
    """Sort positions by falling value and, between equals, by rising position.

    Value and id become one integer each, which NumPy sorts several times as fast as it makes
    a stable order.  A float's bits rise with it where it is positive and fall where negative.
    """
    bits = (values[ids] + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return np.asarray(np.sort(-rising << 32 | ids) & 0xFFFFFFFF)


def likeliest(weights: Row, p: float) -> Row:
    """Return the weights with only the largest left whose mass reaches ``p``; others become 0."""
    bound, count = _reaching(weights, (p - MASS_TOLERANCE) * float(run_sums(weights).sum()))
    stays = weights >= bound
    surplus = np.count_nonzero(stays) - count  # of those that equal the bound, the last ids
    if surplus:
        stays[np.flatnonzero(weights == bound)[-surplus:]] = False
    return np.asarray(weights * stays)


def _reaching(weights: Row, mass: float) -> tuple[np.float32, int]:
    """Return how many of the largest weights together reach a mass, and the smallest of them.

    The weights are parted again and again at a rank, each time within the part that holds the
    bound, which costs a tenth of sorting them.  A model's mass is in few tokens as a rule, so
    the first part is a small one.
    """
    rising = weights.view(np.int32).copy()  # bits of floats from 0 on rise with them, and
    low, high, larger = 0, weights.size, 0.0  # integers, which cannot be NaN, part faster
    parts = FIRST_PART
    while high - low > SORTED_AT_ONCE:
        middle = high - (high - low) // parts
        parts = 2
        rising[low:high].partition(middle - low)
        upper = larger + float(run_sums(rising[middle:high].view(np.float32)).sum())
        if upper >= mass:
            low = middle
        else:
            high, larger = middle, upper
    falling = np.sort(rising[low:high])[::-1].view(np.float32)
    masses = larger + np.cumsum(falling, dtype=np.float64)
    last = min(int(np.searchsorted(masses, mass)), falling.size - 1)
    return falling[last], weights.size - high + last + 1


def run_sums(weights: Row) -> NDArray[np.float64]:
    """Return the sums of runs of ``RUN`` weights: in float32 within a run, to be cheap."""
    if weights.size < RUN:
        return np.array([weights.sum()], np.float64)
    whole = weights.size // RUN * RUN
    sums = np.einsum("ij->i", weights[:whole].reshape(-1, RUN)).astype(np.float64)
    return sums if whole == weights.size else np.append(sums, weights[whole:].sum())


def sum_of_products(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the sum of ``left * right``, without the threads of BLAS, which cost more here."""
    return float(np.einsum("i,i->", left, right))


def pick(weights: Row, uniform: float) -> tuple[int, float]:
    """Return the index whose share of the sum holds ``uniform``, in [0, 1), and the share.

    The run is found first and then the weight in it, so that no sums of all are needed.
    """
    sums = run_sums(weights)
    cumulative = np.cumsum(sums)
    total = float(cumulative[-1])
    run = _holding(cumulative, uniform * total)
    part = weights[run * RUN : (run + 1) * RUN]
    inside = np.cumsum(part, dtype=np.float64)
    picked = _holding(inside, uniform * total - (cumulative[run] - sums[run]))
    return run * RUN + picked, float(part[picked]) / total


def _holding(cumulative: NDArray[np.float64], target: float) -> int:
    """Return the first index whose sum exceeds a number, or the last that adds anything.

    The number may round up to the whole sum, which none exceeds.
    """
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    return min(int(np.searchsorted(cumulative, target, side="right")), last)
