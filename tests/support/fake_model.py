"""A model whose next token is a pure function of the text that its KV cache really holds."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.model_config import ModelConfig
from pyrllama.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.core import Batch, Chunk

BOS = 256
EOS = 257
VOCAB_SIZE = 258


def next_token(text: Sequence[int]) -> int:
    """Return the token that the fake model finds likeliest after ``text``: a printable byte."""
    return 32 + zlib.crc32(np.array(text, np.int64).tobytes()) % 95


class FakeModel:
    """Stores token ids where keys and values would be, and hashes what it reads back.

    Any wrong position or block of the engine changes every token that follows.
    ``script`` replaces the hash: the tokens to give, by length of the text.
    """

    def __init__(
        self,
        n_blocks: int = 8,
        max_batch_tokens: int = 16,
        *,
        script: dict[int, int] | None = None,
    ) -> None:
        self.config = ModelConfig(
            "fake", VOCAB_SIZE, 4, 1, 1, 1, 4, 4, 1e-5, 10_000.0, context_length=4096
        )
        self.n_blocks = n_blocks
        self.max_batch_tokens = max_batch_tokens
        self.weight_bytes = 1000
        self.decode_bytes = 900
        self.kv_bytes_per_token = 8
        self.batches: list[Batch] = []
        self.closed = False
        self.error: BaseException | None = None
        self._script = script or {}
        self._cache = np.full((n_blocks, BLOCK_TOKENS), -1)

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Return logits that are 100 at the next token and 0 elsewhere."""
        self.batches.append(batch)
        if self.error is not None:
            raise self.error
        assert 0 < batch.n_tokens <= self.max_batch_tokens
        written = [block for chunk in batch.chunks for block in chunk.blocks[_first(chunk) :]]
        for chunk in batch.chunks:
            others = chunk.blocks[: _first(chunk)]
            assert not set(others) & set(written), "a block is written that another one reads"
        assert len(set(written)) == len(written), "two sequences write to a block"
        rows = [row for chunk in batch.chunks for row in self._chunk(chunk)]
        return np.array(rows, np.float32).reshape(-1, VOCAB_SIZE)

    def _chunk(self, chunk: Chunk) -> list[NDArray[np.float32]]:
        end = chunk.start + len(chunk.tokens)
        assert len(chunk.blocks) * BLOCK_TOKENS >= end
        slots = self._cache[list(chunk.blocks)].reshape(-1)
        slots[chunk.start : end] = chunk.tokens
        self._cache[list(chunk.blocks)] = slots.reshape(-1, BLOCK_TOKENS)
        return [self._row(slots[: end - back]) for back in reversed(range(chunk.outputs))]

    def _row(self, text: NDArray[np.int64]) -> NDArray[np.float32]:
        row = np.zeros(VOCAB_SIZE, np.float32)
        row[self._script.get(len(text), next_token(text.tolist()))] = 100
        return row

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


def _first(chunk: Chunk) -> int:
    """Return which of a chunk's blocks is the first that it writes to."""
    return chunk.start // BLOCK_TOKENS


class CopyingModel(FakeModel):
    """A fake model whose blocks can be read and written; it counts both."""

    block_format = "fake"

    n_read = 0
    n_written = 0

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return the token ids of a block as bytes."""
        self.n_read += 1
        return np.frombuffer(self._cache[block].tobytes(), np.uint8)

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block with token ids."""
        self.n_written += 1
        self._cache[block] = data.view(np.int64)


class ByteTokenizer(Tokenizer):
    """One token for every byte, then BOS and EOS."""

    vocab_size = VOCAB_SIZE
    eos_id = EOS
    stop_ids = frozenset({EOS})
    kind = "bytes"

    def __init__(self, *, bos_id: int | None = BOS, add_bos: bool = True) -> None:
        self.bos_id = bos_id
        self.add_bos = add_bos

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(text.encode())

    def _token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < BOS else b""
