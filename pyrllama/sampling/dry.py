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
    from collections.abc import Sequence

    from pyrllama.core import Sampling
    from pyrllama.sampling.candidates import Candidates
    from pyrllama.sampling.history import History, Ids

MAX_EXPONENT = 1000
"""Longest sequence over the allowed length that is told from a longer one."""


def dry(
    candidates: Candidates,
    text: History,
    sampling: Sampling,
    breakers: Sequence[tuple[int, ...]],
) -> None:
    """Lower the logits of tokens that would prolong a repeated sequence."""
    tokens = text.last(sampling.dry_penalty_last_n)
    allowed = sampling.dry_allowed_length
    most = min(since_breaker(tokens, breakers), allowed + _most_exponent(sampling.dry_base))
    if tokens.size <= allowed or most < allowed:
        return
    following, lengths = continuations(tokens, allowed, most)
    if not following.size:
        return
    single = [breaker[0] for breaker in breakers if len(breaker) == 1]
    penalised = ~np.isin(following, single)
    following, lengths = following[penalised], lengths[penalised]
    where, which = candidates.positions(following)
    if where.size:
        logits = candidates.editable()
        penalty = sampling.dry_multiplier * sampling.dry_base ** (lengths[which] - float(allowed))
        logits[where] = np.maximum(
            logits[where] - penalty, np.where(np.isinf(logits[where]), -np.inf, FLOAT32.min)
        )


def _most_exponent(base: float) -> int:
    """Return the exponent from which on a penalty is as good as infinite."""
    if base <= 1.0:
        return 0
    return min(MAX_EXPONENT, int(math.log(float(FLOAT32.max)) / math.log(base)))


def since_breaker(tokens: Ids, breakers: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens the text has behind its last breaker."""
    end = tokens.size
    nearest = end
    for breaker in breakers:
        starts = np.flatnonzero(tokens[: end - len(breaker) + 1] == breaker[0])
        for offset, token in enumerate(breaker[1:], 1):
            starts = starts[tokens[starts + offset] == token]
        if starts.size:
            nearest = min(nearest, end - int(starts[-1]) - len(breaker))
    return nearest


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
