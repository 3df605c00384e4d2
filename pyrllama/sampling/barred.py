"""What comes before the chain: biases, and tokens that must not come at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.errors import NoTokenLeftError
from pyrllama.sampling.selection import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyrllama.core import Sampling, TokenMatcher, TokenRules
    from pyrllama.sampling.candidates import Candidates
    from pyrllama.sampling.selection import Ids, Row


class Bars:
    """The biases and the barred tokens of one text, whatever it has said."""

    def __init__(self, sampling: Sampling, rules: TokenRules) -> None:
        biases = dict(sampling.logit_bias)
        self._biased = _ids(biases)
        # In float64, what is added cannot overflow before it is cut to float32.
        self._bias = np.array([biases[token] for token in self._biased.tolist()], np.float64)
        self._banned = _ids(sampling.banned_tokens)
        self._stops = _ids(rules.stop_ids)
        self._stops_from = np.inf if sampling.ignore_eos else sampling.min_tokens

    def apply(self, candidates: Candidates, matcher: TokenMatcher | None, n_generated: int) -> None:
        """Leave the candidates that a constraint allows and nothing bars.

        Where a constraint allows nothing but the end, the text ends, whatever its length.
        Raises ``NoTokenLeftError`` when no token is left.
        """
        stops = self._bars_stops(n_generated)
        if matcher is None and not (stops or self._biased.size or self._banned.size):
            return
        if matcher is not None:
            candidates.keep(np.flatnonzero(matcher.allowed(len(candidates))))
        if self._biased.size:
            where, which = candidates.positions(self._biased)
            logits = candidates.editable()
            logits[where] = np.clip(
                logits[where] + self._bias[which],
                np.where(logits[where] == -np.inf, -np.inf, FLOAT32.min),
                FLOAT32.max,
            )
        _bar(candidates, self._banned)
        if stops:
            _bar_stops(candidates, self._stops, matcher)
        if len(candidates) == 0 or np.max(candidates.logits) == -np.inf:
            raise NoTokenLeftError(
                "no token is left to choose: what the schema or grammar allows is banned, or "
                "everything is; take some ids out of banned_tokens"
            )

    def count(self, n_generated: int) -> int:
        """Return how many tokens are barred whatever a constraint allows, with biases off."""
        return self._banned.size + self._stops.size * self._bars_stops(n_generated)

    def _bars_stops(self, n_generated: int) -> bool:
        return n_generated < self._stops_from and self._stops.size > 0


def _bar_stops(candidates: Candidates, stops: Ids, matcher: TokenMatcher | None) -> None:
    if matcher is None or np.any(_others(candidates, stops) > -np.inf):
        _bar(candidates, stops)


def _bar(candidates: Candidates, tokens: Ids) -> None:
    where, _ = candidates.positions(tokens)
    if where.size:
        candidates.editable()[where] = -np.inf


def _others(candidates: Candidates, tokens: Ids) -> Row:
    """Return the logits of all candidates but ``tokens``."""
    where, _ = candidates.positions(tokens)
    return np.delete(candidates.logits, where)


def _ids(tokens: Iterable[int]) -> Ids:
    return np.array(sorted(set(tokens)), np.int64)
