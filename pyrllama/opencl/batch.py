"""A batch as the words that the kernels read; ``kernels/common.cl`` has their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import Batch, Chunk
    from pyrllama.model_config import ModelConfig

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

    def __init__(
        self,
        config: ModelConfig,
        n_blocks: int,
        max_tokens: int,
        max_seq_len: int,
        words: NDArray[np.int32],
    ) -> None:
        self._vocab_size = config.vocab_size
        self._n_blocks = n_blocks
        self.max_tokens = max_tokens
        self._max_seq_len = max_seq_len
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
        if not 1 <= batch.n_tokens <= self.max_tokens:
            raise BackendError(
                f"a batch of {batch.n_tokens} tokens; this model takes 1 to {self.max_tokens}"
            )
        t = o = table = 0
        for chunk in batch.chunks:
            self._check(chunk)
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

    def _check(self, chunk: Chunk) -> None:
        n_tokens, end = len(chunk.tokens), chunk.start + len(chunk.tokens)
        if not n_tokens or not 0 <= chunk.outputs <= n_tokens:
            raise BackendError(f"{chunk.outputs} outputs are wanted of {n_tokens} tokens")
        if min(chunk.tokens) < 0 or max(chunk.tokens) >= self._vocab_size:
            raise BackendError(f"token ids must be from 0 to {self._vocab_size - 1}")
        if chunk.start < 0 or end > min(self._max_seq_len, len(chunk.blocks) * BLOCK_TOKENS):
            raise BackendError(
                f"positions {chunk.start} to {end} in {len(chunk.blocks)} cache blocks of "
                f"{BLOCK_TOKENS}; the context holds {self._max_seq_len}"
            )
        if len(chunk.blocks) > self._n_blocks:
            raise BackendError(f"{len(chunk.blocks)} cache blocks; there are {self._n_blocks}")
        if min(chunk.blocks) < 0 or max(chunk.blocks) >= self._n_blocks:
            raise BackendError(f"cache blocks must be from 0 to {self._n_blocks - 1}")
