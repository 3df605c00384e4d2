"""DRY, "don't repeat yourself": a penalty for going on with a sequence that was said before.

For every place of the text where its last ``n`` tokens stood before, ``n`` at least the allowed
length ``a``, the token that came next there loses ``multiplier * base^(n - a)``; of several
places the longest counts.  A sequence never reaches over a breaker, such as a line's end, so
that forms which must repeat can do so, and a breaker itself is never penalised.

Source: p-e-w's sampler for text-generation-webui (pull request 5677); what happens at breakers
follows llama.cpp.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.sampling.selection import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pyrllama.core import Sampling
    from pyrllama.sampling.candidates import Candidates
    from pyrllama.sampling.history import History, Ids

LARGE_PENALTY = 1e6
"""A logit lowered by this much has no chance left: longer sequences are not looked for."""
MAX_EXPONENT = 1000
"""Tokens over the allowed length that count at most, where the base is close to 1."""


class Breakers:
    """Sequences of tokens over which no repetition reaches; most are one token long."""

    def __init__(self, sequences: Iterable[tuple[int, ...]]) -> None:
        known = list(sequences)
        self._longer = [sequence for sequence in known if len(sequence) > 1]
        alone = np.array([tokens[0] for tokens in known if len(tokens) == 1], np.int64)
        self._alone = np.zeros(int(alone.max(initial=-1)) + 2, np.bool_)  # the last is False
        self._alone[alone] = True

    def among(self, tokens: Ids) -> NDArray[np.bool_]:
        """Return for each token whether it is a breaker by itself."""
        return np.asarray(self._alone[np.minimum(tokens, self._alone.size - 1)])

    def since(self, tokens: Ids) -> int:
        """Return how many tokens a text has behind its last breaker."""
        end = tokens.size
        places = np.flatnonzero(self.among(tokens))
        nearest = end - 1 - int(places[-1]) if places.size else end
        for sequence in self._longer:
            starts = np.flatnonzero(tokens[: max(0, end - len(sequence) + 1)] == sequence[0])
            for offset, token in enumerate(sequence[1:], 1):
                starts = starts[tokens[starts + offset] == token]
            if starts.size:
                nearest = min(nearest, end - int(starts[-1]) - len(sequence))
        return nearest


def dry(candidates: Candidates, text: History, sampling: Sampling, breakers: Breakers) -> None:
    """Lower the logits of tokens that would prolong a repeated sequence."""
    tokens = text.last(sampling.dry_penalty_last_n)
    allowed = sampling.dry_allowed_length
    most = min(breakers.since(tokens), allowed + _most_exponent(sampling))
    if tokens.size <= allowed or most < allowed:
        return
    following, lengths = continuations(tokens, allowed, most)
    penalised = ~breakers.among(following)
    where, which = candidates.positions(following[penalised])
    if where.size:
        logits = candidates.editable()
        excess = lengths[penalised][which] - float(allowed)
        penalty = sampling.dry_multiplier * sampling.dry_base**excess
        low = np.where(np.isinf(logits[where]), -np.inf, FLOAT32.min)
        logits[where] = np.maximum(logits[where] - penalty, low)


def _most_exponent(sampling: Sampling) -> int:
    """Return the exponent from which on a longer sequence makes no difference."""
    if sampling.dry_base <= 1.0:
        return 0
    growth = math.log(LARGE_PENALTY / sampling.dry_multiplier) / math.log(sampling.dry_base)
    return min(MAX_EXPONENT, max(0, math.ceil(growth)))


def continuations(tokens: Ids, shortest: int, longest: int) -> tuple[Ids, Ids]:
    """Return which tokens, rising, would prolong a repetition, and how long it is so far.

    A repetition is a run of ``shortest`` tokens or more that ends the text and stands in it
    before; lengths over ``longest`` are cut to it.
    """
    last = tokens.size - 1
    ends = np.flatnonzero(tokens[:last] == tokens[last])  # where the earlier run ends
    lengths = np.zeros(tokens.size, np.int64)
    for length in range(1, longest + 1):
        lengths[ends] = length
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[last - length]]
        if not ends.size:
            break
    repeated = np.flatnonzero(lengths >= shortest)
    if not repeated.size:
        return repeated, repeated
    following, inverse = np.unique(tokens[repeated + 1], return_inverse=True)
    most = np.zeros(following.size, np.int64)
    np.maximum.at(most, inverse, lengths[repeated])
    return following, most
