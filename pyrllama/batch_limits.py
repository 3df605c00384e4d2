"""What a batch may ask of a model: kernels check nothing, so all of it is checked before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from pyrllama.core import Batch, Chunk


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The sizes of a model and of its memory."""

    vocab_size: int
    n_blocks: int
    """Of the KV cache."""
    max_tokens: int
    """Of a batch."""
    max_seq_len: int

    def check(self, batch: Batch) -> None:
        """Raise ``BackendError`` for anything that would lead a kernel out of its memory."""
        if not 1 <= batch.n_tokens <= self.max_tokens:
            raise BackendError(
                f"a batch of {batch.n_tokens} tokens; this model takes 1 to {self.max_tokens}"
            )
        for chunk in batch.chunks:
            self._check(chunk)

    def _check(self, chunk: Chunk) -> None:
        n_tokens, end = len(chunk.tokens), chunk.start + len(chunk.tokens)
        if not n_tokens or not 0 <= chunk.outputs <= n_tokens:
            raise BackendError(f"{chunk.outputs} outputs are wanted of {n_tokens} tokens")
        if min(chunk.tokens) < 0 or max(chunk.tokens) >= self.vocab_size:
            raise BackendError(f"token ids must be from 0 to {self.vocab_size - 1}")
        if chunk.start < 0 or end > min(self.max_seq_len, len(chunk.blocks) * BLOCK_TOKENS):
            raise BackendError(
                f"positions {chunk.start} to {end} in {len(chunk.blocks)} cache blocks of "
                f"{BLOCK_TOKENS}; the context holds {self.max_seq_len}"
            )
        if len(chunk.blocks) > self.n_blocks:
            raise BackendError(f"{len(chunk.blocks)} cache blocks; there are {self.n_blocks}")
        if min(chunk.blocks) < 0 or max(chunk.blocks) >= self.n_blocks:
            raise BackendError(f"cache blocks must be from 0 to {self.n_blocks - 1}")
