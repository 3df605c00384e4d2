"""A batch as the words that the kernels read; ``kernels/common.cl`` has their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.batch_limits import BatchLimits
    from pyrllama.core import Batch

N_TOKENS, N_OUTPUTS, TOP, GOES_ON = 0, 1, 2, 3
"""Words that count the tokens, those whose logits are wanted, and how many of the greatest; and
whether the step makes them those of the next one."""
HEADER = 8
COLUMNS = 6
"""Words for each token before the tables of blocks begin."""


def word_count(n_blocks: int, max_tokens: int) -> int:
    """Return the words of the largest batch."""
    return HEADER + COLUMNS * max_tokens + max_tokens * n_blocks


class BatchWords:
    """The words of one batch at a time, all sizes checked before a kernel sees them.

    They stand in ``words``, int32, of which ``word_count`` tells the number.
    """

    def __init__(self, limits: BatchLimits, words: NDArray[np.int32]) -> None:
        self._limits = limits
        self.max_tokens = max_tokens = limits.max_tokens
        self._tables = HEADER + COLUMNS * max_tokens
        self._words = words
        columns = self._words[HEADER : self._tables].reshape(COLUMNS, max_tokens)
        self._tokens, self._positions, self._starts, self._outputs = columns[:4]

    @property
    def n_bytes(self) -> int:
        """Bytes of the largest batch."""
        return self._words.nbytes

    def fill(self, batch: Batch, top: int = 0, *, goes_on: bool = False) -> NDArray[np.int32]:
        """Write a batch and return the words of it; they are overwritten by the next one.

        ``top`` is how many of the greatest logits are wanted, 0 for all of them.  With
        ``goes_on`` the batch is one token, and the device makes it the one that follows.
        Raises ``BackendError`` for anything that would lead a kernel out of its memory.
        """
        self._limits.check(batch)
        t = o = table = 0
        for chunk in batch.chunks:
            n, outputs = len(chunk.tokens), chunk.outputs
            self._tokens[t : t + n] = chunk.tokens
            self._positions[t : t + n] = np.arange(chunk.start, chunk.start + n)
            self._starts[t : t + n] = table
            self._outputs[o : o + outputs] = np.arange(t + n - outputs, t + n)
            end = self._tables + table + len(chunk.blocks)
            self._words[self._tables + table : end] = chunk.blocks
            t, o, table = t + n, o + outputs, table + len(chunk.blocks)
        self._words[[N_TOKENS, N_OUTPUTS, TOP, GOES_ON]] = t, o, top, goes_on
        return self._words[: self._tables + table]
