"""The tokens that may still be chosen, which the stages of the chain narrow down one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.sampling.selection import divide, largest_first, run_sums, softmax_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.sampling.selection import Ids, Row


class Candidates:
    """Tokens with their logits; at first the whole vocabulary, then what a stage left of it.

    With ``ids`` only the greatest logits of it are given, the greatest first.

    Nothing is computed over the vocabulary before a stage needs it: the temperature is a
    divisor that waits, and the exponentials are taken once, of what is left.
    """

    def __init__(self, logits: Row, ids: Ids | None = None) -> None:
        self.logits = logits
        """``(candidates,)``, still to be divided by the temperature."""
        self.ids = ids
        """The tokens, by id unless ``falling``; None is the whole vocabulary."""
        self.temperature = 1.0
        self.falling = ids is not None
        """Whether the largest logit comes first."""
        self.before_top_k: Row | None = None
        """The logits of all of which top-k left some."""
        self._weights: Row | None = None
        self._has_holes = False
        self._owned = False

    def __len__(self) -> int:
        return self.logits.size

    def weights(self) -> Row:
        """Return ``e^((x - largest) / t)`` of every candidate; 0 for one that a stage dropped."""
        if self._weights is None:
            self._weights = softmax_weights(self.logits, self.temperature)
        return self._weights

    def shares(self) -> NDArray[np.float64]:
        """Return the probability of each candidate among them."""
        weights = self.weights()
        return np.asarray(weights / run_sums(weights).sum())

    def editable(self) -> Row:
        """Return the logits, divided by the temperature, to be changed in place."""
        self._put_in_order()
        if self.temperature != 1.0:
            self.logits = divide(self.logits, self.temperature)
            self.temperature = 1.0
        elif not self._owned:
            self.logits = self.logits.copy()
        self._owned = True
        self._weights = None
        return self.logits

    def heat(self, temperature: float) -> None:
        """Divide the logits by a temperature from here on."""
        self.close_up()
        self.temperature = temperature
        self._weights = None

    def keep(self, which: Ids | slice, *, falling: bool | None = None) -> None:
        """Keep the candidates at some positions, in that order."""
        if self.ids is None:
            self.ids = np.arange(self.logits.size)[which] if isinstance(which, slice) else which
        else:
            self.ids = self.ids[which]
        self.logits = self.logits[which]
        if self._weights is not None:
            self._weights = self._weights[which]
        self._owned = not isinstance(which, slice)
        self.falling = self.falling if falling is None else falling

    def keep_weights(self, weights: Row) -> None:
        """Take weights that are 0 for the candidates that go, and drop these when need be."""
        self._weights = weights
        self._has_holes = True

    def close_up(self) -> None:
        """Drop the candidates whose weight ``keep_weights`` made 0."""
        if self._has_holes:
            self._has_holes = False
            self.keep(np.flatnonzero(self.weights()))

    def sort(self) -> None:
        """Put the largest logit first and, between equals, the lowest id."""
        if not self.falling:
            self.keep(largest_first(np.arange(self.logits.size), self.logits), falling=True)

    def positions(self, tokens: Ids) -> tuple[Ids, Ids]:
        """Return where tokens, rising and each once, are among the candidates, and which they are.

        The second array says which of ``tokens`` stands at each position; some may have no logit.
        """
        self._put_in_order()
        if self.ids is None:
            known = int(np.searchsorted(tokens, self.logits.size))
            return tokens[:known], np.arange(known)
        where = np.minimum(np.searchsorted(tokens, self.ids), max(tokens.size - 1, 0))
        found = np.flatnonzero(tokens[where] == self.ids) if tokens.size else tokens
        return found, where[found]

    def _put_in_order(self) -> None:
        """Put the candidates in the order of their ids, which equals are told apart by."""
        self.close_up()
        if self.falling and self.ids is not None:
            self.keep(np.argsort(self.ids), falling=False)
