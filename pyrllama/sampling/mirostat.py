"""Mirostat 2: keeps the surprise of a text near a target by feedback.

Tokens more surprising than ``mu`` bits are dropped, at least one stays, and after each token of
``s`` bits among what was left, ``mu`` moves by ``-eta * (s - tau)``; it starts at ``2 * tau``.

Source: algorithm 2 of Basu et al., "Mirostat", arXiv 2007.14966.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.sampling.selection import run_sums

if TYPE_CHECKING:
    from pyrllama.sampling.candidates import Candidates


class Mirostat:
    """The feedback of one text; ``tau`` bits are the target and ``eta`` is the rate."""

    def __init__(self, tau: float, eta: float) -> None:
        self.mu = 2 * tau
        self._tau = tau
        self._eta = eta

    def truncate(self, candidates: Candidates) -> None:
        """Drop the candidates that would surprise by more than ``mu`` bits."""
        candidates.close_up()
        weights = candidates.weights()
        floor = 2.0 ** -max(self.mu, 0.0) * run_sums(weights).sum()
        candidates.keep(np.flatnonzero(weights >= min(floor, np.max(weights))))

    def learn(self, logprob: float) -> None:
        """Move ``mu`` by the surprise of the token that was accepted."""
        self.mu -= self._eta * (-logprob / math.log(2) - self._tau)
