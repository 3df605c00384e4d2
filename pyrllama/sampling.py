"""From a row of logits to a token: every setting, in the order in which it applies.

For logits ``x``, and ``n`` the times that a token stands in the text so far, prompt included:

1. **Repetition penalty** ``r``: with ``f = r^n``, ``x`` becomes ``x * f`` where it is over 0
   and ``x / f`` where it is under 0.  Under 1.0 it always penalises and over 1.0 it always
   encourages.  (The original RLLaMA multiplied negative logits too, so that a factor under 1
   rewarded them.)  ``f`` is held within e^-30 and e^30, so that nothing overflows.
2. **Temperature** ``t``: ``x / t``.  As it scales all logits alike, whether it comes before or
   after the penalty makes no difference.  At ``t = 0`` the token with the largest penalised
   logit is taken - greedy - and top-k and top-p have nothing left to do.
3. **Softmax** over the whole vocabulary.
4. **Top-k**: the ``k`` most probable tokens stay; 0 keeps all.
5. **Top-p**: of those, the smallest set of the most probable whose mass reaches ``p`` stays,
   and all where the mass never does; 1 keeps all.  The mass counts probabilities of the whole
   vocabulary: they are not scaled up after top-k.
6. What stays is scaled to a sum of 1, and one uniform number of a PCG64 generator picks the
   token, so that a seed reproduces a text exactly.

Between equal logits the lower token id comes first.  A token's logprob is the natural
logarithm of its probability after step 6; for a greedy token, where that is always 0, it is
that of step 3 at temperature 1.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.core import Sampling

    Row = NDArray[np.float32]
    """One number for each token of the vocabulary: ``(vocab,)``."""
    Ids = NDArray[np.int64]
    Counts = NDArray[np.int64]

MAX_LOG_FACTOR = 30.0
"""Bound of ``n * ln(r)``: beyond it a factor changes no probability that float32 can tell."""
MASS_TOLERANCE = 1e-6
"""A mass this close under ``top_p`` has reached it: float32 logits do not tell them apart."""
RUN = 64
"""Neighbouring weights that are added up first, or logits whose largest is looked at first."""
FIRST_PART = 16
"""The search for the most probable tokens looks at this part of the vocabulary first."""
SORTED_AT_ONCE = 2048
"""Weights that are sorted instead of parted again."""
SEED_BITS = 32
"""Size of a fresh seed: one that can be typed."""
FLOAT32 = np.finfo(np.float32)


def penalise(logits: Row, penalty: float, occurrences: Counts) -> Row:
    """Return the logits after the repetition penalty; a logit of minus infinity stays it."""
    if penalty == 1.0:
        return logits
    ids = np.flatnonzero((occurrences > 0) & (logits > -np.inf))
    exponents = np.clip(occurrences[ids] * math.log(penalty), -MAX_LOG_FACTOR, MAX_LOG_FACTOR)
    said = logits[ids].astype(np.float64)
    said *= np.exp(np.where(said > 0, exponents, -exponents))
    penalised = logits.copy()
    penalised[ids] = np.clip(said, FLOAT32.min, FLOAT32.max)
    return penalised


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


def top_k(logits: Row, k: int) -> Ids:
    """Return the ids of the ``k`` largest logits, the largest first; for 0 all, by id."""
    if k == 0 or k >= logits.size:
        return np.arange(logits.size)
    ids = np.flatnonzero(logits >= _reached_by(logits, k))
    return _largest_first(ids, logits)[:k]


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


def _largest_first(ids: Ids, values: Row) -> Ids:
    """Sort ids by falling value and, between equals, by rising id.

    Value and id become one integer each, which NumPy sorts several times as fast as it makes
    a stable order.  A float's bits rise with it where it is positive and fall where negative.
    """
    bits = (values[ids] + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return np.asarray(np.sort(-rising << 32 | ids) & 0xFFFFFFFF)


def top_p(weights: Row, p: float) -> Row:
    """Return the weights with only the largest left whose mass reaches ``p``; others become 0."""
    bound, count = _reaching(weights, (p - MASS_TOLERANCE) * float(_run_sums(weights).sum()))
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
        upper = larger + float(_run_sums(rising[middle:high].view(np.float32)).sum())
        if upper >= mass:
            low = middle
        else:
            high, larger = middle, upper
    falling = np.sort(rising[low:high])[::-1].view(np.float32)
    masses = larger + np.cumsum(falling, dtype=np.float64)
    last = min(int(np.searchsorted(masses, mass)), falling.size - 1)
    return falling[last], weights.size - high + last + 1


def _run_sums(weights: Row) -> NDArray[np.float64]:
    """Return the sums of runs of ``RUN`` weights: in float32 within a run, to be cheap."""
    whole = weights.size // RUN * RUN
    sums = np.einsum("ij->i", weights[:whole].reshape(-1, RUN)).astype(np.float64)
    return sums if whole == weights.size else np.append(sums, weights[whole:].sum())


def _candidates(penalised: Row, sampling: Sampling) -> tuple[Ids | None, Row]:
    """Apply steps 2 to 5: return tokens and the weights with which they may be chosen.

    Without ids the weights are those of the whole vocabulary, by id.
    """
    if sampling.top_k == 0 or sampling.top_k >= penalised.size:
        weights = softmax_weights(penalised, sampling.temperature)
        return None, weights if sampling.top_p == 1.0 else top_p(weights, sampling.top_p)
    ids = top_k(penalised, sampling.top_k)
    if sampling.top_p == 1.0:  # what stays is scaled in the end: the others need no exponential
        return ids, softmax_weights(penalised[ids], sampling.temperature)
    weights = softmax_weights(penalised, sampling.temperature)
    mass = (sampling.top_p - MASS_TOLERANCE) * float(_run_sums(weights).sum())
    kept = weights[ids]
    count = int(np.searchsorted(np.cumsum(kept, dtype=np.float64), mass)) + 1
    return ids[:count], kept[:count]


def _check(largest: np.float32) -> None:
    """Raise ``BackendError`` for the largest of a row's logits if it is not finite.

    NumPy's largest number of a row is NaN if any is.
    """
    if not np.isfinite(largest):
        raise BackendError(
            f"the largest logit is {largest}: the weights are damaged, or their type cannot hold "
            f"the numbers on the way; check the checkpoint, or load it with --f32"
        )


def distribution(logits: Row, sampling: Sampling, occurrences: Counts) -> NDArray[np.float64]:
    """Return the probability with which each token of the vocabulary is chosen: ``(vocab,)``.

    ``occurrences`` counts how often each token stands in the text so far: ``(vocab,)``.
    Raises ``BackendError`` for logits that hold NaN or infinity, or nothing but its negative.
    """
    _check(np.max(logits))
    penalised = penalise(logits, sampling.repetition_penalty, occurrences)
    probabilities = np.zeros(penalised.size)
    if sampling.temperature == 0.0:
        probabilities[np.argmax(penalised)] = 1.0
    else:
        ids, weights = _candidates(penalised, sampling)
        probabilities[slice(None) if ids is None else ids] = weights / _run_sums(weights).sum()
    return probabilities


class Sampler:
    """Chooses the tokens of one text: its settings, its generator, and what it has said."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.seed = secrets.randbits(SEED_BITS) if sampling.seed is None else sampling.seed
        """What reproduces the text, also when no seed was asked for."""
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._occurrences: Counts = np.bincount(np.array(prompt, np.int64))

    def sample(self, logits: Row) -> tuple[int, float]:
        """Return the id of a token and its logprob, as the module documents them.

        ``logits`` is ``(vocab,)``.  The token does not count as said before ``accept``.
        Raises ``BackendError`` for logits that hold NaN or infinity.
        """
        _check(np.max(logits))
        self._reserve(logits.size)
        sampling = self.sampling
        occurrences = self._occurrences[: logits.size]
        penalised = penalise(logits, sampling.repetition_penalty, occurrences)
        if sampling.temperature == 0.0:
            token = int(np.argmax(penalised))
            # ln softmax of the largest logit: -ln sum e^(x - largest)
            return token, -math.log(_run_sums(softmax_weights(penalised)).sum())
        ids, weights = _candidates(penalised, sampling)
        picked, probability = _pick(weights, self._random.random())
        return picked if ids is None else int(ids[picked]), math.log(probability)

    def accept(self, token: int) -> None:
        """Count a token as part of the text: it is then subject to the repetition penalty."""
        self._reserve(token + 1)
        self._occurrences[token] += 1

    def _reserve(self, size: int) -> None:
        """Make room to count tokens under ``size``, which becomes known with the logits."""
        missing = size - self._occurrences.size
        if missing > 0:
            self._occurrences = np.pad(self._occurrences, (0, missing))


def _pick(weights: Row, uniform: float) -> tuple[int, float]:
    """Return the index whose share of the sum holds ``uniform``, in [0, 1), and the share.

    The run is found first and then the weight in it, so that no sums of all are needed.
    """
    sums = _run_sums(weights)
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
