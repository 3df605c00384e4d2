"""What a batch brings to a pass: tokens, positions, block tables, and whose logits are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import Batch, Chunk
    from pyrllama.model_config import ModelConfig


class Inputs:
    """Where the kernel reads a batch, of which every size is checked before."""

    def __init__(
        self, max_tokens: int, max_seq_len: int, n_blocks: int, config: ModelConfig
    ) -> None:
        self._max_tokens, self._max_seq_len, self._n_blocks = max_tokens, max_seq_len, n_blocks
        self._vocab_size = config.vocab_size
        self._tokens, self._positions, self._tables, self._outputs = np.zeros(
            (4, max_tokens), np.int64
        )

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a STEP record that tell where they are."""
        return {
            "tokens": self._tokens.ctypes.data,
            "positions": self._positions.ctypes.data,
            "tables": self._tables.ctypes.data,
            "outputs": self._outputs.ctypes.data,
        }

    def place(self, batch: Batch) -> list[NDArray[np.int64]]:
        """Write a batch; return its block tables, which the kernel reads where they are.

        Raises ``BackendError`` for what would lead a kernel out of its memory.
        """
        if not 1 <= batch.n_tokens <= self._max_tokens:
            raise BackendError(
                f"a batch of {batch.n_tokens} tokens; this model takes 1 to {self._max_tokens}"
            )
        tables, t, o = [], 0, 0
        for chunk in batch.chunks:
            n, end = len(chunk.tokens), chunk.start + len(chunk.tokens)
            self._check(chunk)
            table = np.array(chunk.blocks, np.int64)
            self._tokens[t : t + n] = chunk.tokens
            self._positions[t : t + n] = range(chunk.start, end)
            self._tables[t : t + n] = table.ctypes.data
            outputs = chunk.outputs
            self._outputs[o : o + outputs] = range(t + n - outputs, t + n)
            tables.append(table)
            t, o = t + n, o + outputs
        return tables

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
        if min(chunk.blocks) < 0 or max(chunk.blocks) >= self._n_blocks:
            raise BackendError(f"cache blocks must be from 0 to {self._n_blocks - 1}")
