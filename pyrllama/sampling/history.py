"""The tokens of a text so far, as the penalties look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Counts = NDArray[np.int64]

ALL = -1
"""A window that is the whole text."""


class History:
    """A text that grows by one token at a time; the prompt is its beginning."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: Ids = np.array(prompt, np.int64)
        self._size = self._tokens.size
        self._counts: Counts = np.bincount(self._tokens)
        self._distinct: Ids = np.flatnonzero(self._counts)

    def append(self, token: int) -> None:
        """Add a token."""
        if self._size == self._tokens.size:
            self._tokens = np.resize(self._tokens, max(64, 2 * self._size))
        self._tokens[self._size] = token
        self._size += 1
        if token >= self._counts.size:
            self._counts = np.pad(self._counts, (0, token + 1 - self._counts.size))
        if self._counts[token] == 0:
            self._distinct = np.insert(
                self._distinct, np.searchsorted(self._distinct, token), token
            )
        self._counts[token] += 1

    @property
    def n_distinct(self) -> int:
        """How many different tokens there are."""
        return self._distinct.size

    def last(self, n: int) -> Ids:
        """Return the last ``n`` tokens, ``ALL`` of them, or as many as there are."""
        start = 0 if n == ALL else max(0, self._size - n)
        return self._tokens[start : self._size]

    def counts(self, n: int = ALL) -> tuple[Ids, Counts]:
        """Return the tokens among the last ``n``, rising, and how often each stands there."""
        if n != ALL:
            return np.unique(self.last(n), return_counts=True)
        return self._distinct, self._counts[self._distinct]
