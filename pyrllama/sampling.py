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
"""Logits of which only the largest is looked at first when the top ones are searched."""
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


def softmax(logits: Row, temperature: float = 1.0) -> Row:
    """Return the probabilities of logits of which the largest is finite."""
    divisor = np.float32(np.clip(temperature, FLOAT32.tiny, FLOAT32.max))
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf
        scaled = (logits - np.max(logits)) / divisor
    exponentials = np.exp(scaled)
    return np.asarray(exponentials / np.float32(exponentials.sum(dtype=np.float64)))


def top_k(logits: Row, k: int) -> Ids:
    """Return the ids of the ``k`` largest logits, the largest first; for 0 all, by id."""
    if k == 0 or k >= logits.size:
        return np.arange(logits.size)
    ids = np.flatnonzero(logits >= _reached_by(logits, k))
    return _largest_first(ids, logits)[:k]


def _reached_by(logits: Row, k: int) -> np.float32:
    """Return a number that at least ``k`` logits reach, and hardly more.

    Of the maxima of short runs, ``k`` reach the one of rank ``k``; finding them costs one pass
    over the vocabulary, a tenth of what it costs to part all of it at rank ``k``.
    """
    n_runs = logits.size // RUN
    if n_runs < k:
        return np.float32(np.partition(logits, logits.size - k)[logits.size - k])
    maxima = logits[: n_runs * RUN].reshape(n_runs, RUN).max(axis=1)
    return np.float32(np.partition(maxima, n_runs - k)[n_runs - k])


def top_p(ids: Ids, probabilities: Row, p: float) -> Ids:
    """Return the most probable of the ids until their mass reaches ``p``; for 1 all of them.

    Only tokens of at least ``(1 - p) / vocab`` are sorted: all others of the vocabulary
    together have less than ``1 - p``, so the mass is reached before the first of them.
    """
    if p == 1.0:
        return ids
    likely = probabilities[ids] >= (1.0 - p) / probabilities.size
    ids = _largest_first(ids[likely], probabilities)
    mass = np.cumsum(probabilities[ids], dtype=np.float64)
    return ids[: np.searchsorted(mass, p - MASS_TOLERANCE) + 1]


def _largest_first(ids: Ids, values: Row) -> Ids:
    """Sort ids by falling value and, between equals, by rising id.

    Value and id become one integer each, which NumPy sorts several times as fast as it makes
    a stable order.  A float's bits rise with it where it is positive and fall where negative.
    """
    bits = (values[ids] + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return np.asarray(np.sort(-rising << 32 | ids) & 0xFFFFFFFF)


def _candidates(penalised: Row, sampling: Sampling) -> tuple[Ids, NDArray[np.float64]]:
    """Apply steps 2 to 6: return the tokens that may be chosen and their probabilities."""
    ids = top_k(penalised, sampling.top_k)
    if sampling.top_p == 1.0:  # what stays is scaled in the end: the others need no exponential
        kept = softmax(penalised[ids], sampling.temperature).astype(np.float64)
    else:
        probabilities = softmax(penalised, sampling.temperature)
        ids = top_p(ids, probabilities, sampling.top_p)
        kept = probabilities[ids].astype(np.float64)
    kept /= kept.sum()
    return ids, kept


def _check(logits: Row) -> None:
    """Raise ``BackendError`` for logits of which none is the largest finite one."""
    largest = np.max(logits)  # NaN if any is
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
    _check(logits)
    penalised = penalise(logits, sampling.repetition_penalty, occurrences)
    probabilities = np.zeros(penalised.size)
    if sampling.temperature == 0.0:
        probabilities[np.argmax(penalised)] = 1.0
    else:
        ids, chances = _candidates(penalised, sampling)
        probabilities[ids] = chances
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
        _check(logits)
        self._reserve(logits.size)
        sampling = self.sampling
        occurrences = self._occurrences[: logits.size]
        penalised = penalise(logits, sampling.repetition_penalty, occurrences)
        if sampling.temperature == 0.0:
            token = int(np.argmax(penalised))
            # ln softmax of the largest logit: -ln sum e^(x - largest)
            shifted = np.exp(penalised - penalised[token])
            return token, -math.log(shifted.sum(dtype=np.float64))
        ids, probabilities = _candidates(penalised, sampling)
        picked = _pick(probabilities, self._random.random())
        return int(ids[picked]), math.log(probabilities[picked])

    def accept(self, token: int) -> None:
        """Count a token as part of the text: it is then subject to the repetition penalty."""
        self._reserve(token + 1)
        self._occurrences[token] += 1

    def _reserve(self, size: int) -> None:
        """Make room to count tokens under ``size``, which becomes known with the logits."""
        missing = size - self._occurrences.size
        if missing > 0:
            self._occurrences = np.pad(self._occurrences, (0, missing))


def _pick(probabilities: NDArray[np.float64], uniform: float) -> int:
    """Return the index whose share of the sum holds ``uniform``, a number in [0, 1)."""
    cumulative = np.cumsum(probabilities)
    picked = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    # The product may round up to the whole sum: the last index of any probability holds it.
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    return min(picked, last)
