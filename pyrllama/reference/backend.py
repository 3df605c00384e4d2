"""The reference as a backend: the specification, run where the kernels would be."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.core import InputSquares, blocks_for
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING, is_router
from pyrllama.quants import block_size, dequantize, quantize
from pyrllama.reference import ops
from pyrllama.reference.model import ReferenceModel, load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import Batch
    from pyrllama.model_config import ModelConfig
    from pyrllama.tensors import TensorType

MAX_BATCH_TOKENS = 64


class _Count(NamedTuple):
    """What one matrix has multiplied: sums of squares by column, and how many rows, ``(1,)``."""

    sums: NDArray[np.float64]
    rows: NDArray[np.int64]

    def add(self, x: NDArray[np.float32]) -> None:
        self.sums[:] += np.square(x, dtype=np.float64).sum(axis=0)
        self.rows[:] += len(x)


class ReferenceBackend:
    """A ``ReferenceModel`` with the figures that the engine asks of a backend.

    ``weight_type`` rounds the matrices as the type would store them; the computation stays in
    float32.  A matrix whose rows are no whole number of the type's blocks keeps its values.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_seq_len: int,
        weight_type: TensorType | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        weights = load_weights(checkpoint)
        if weight_type is not None:
            weights = {
                name: x if is_router(name) else _rounded(x, weight_type)
                for name, x in weights.items()
            }
        self.config = checkpoint.config
        self.n_blocks = blocks_for(max(cache_tokens or 0, max_seq_len))
        self.max_batch_tokens = MAX_BATCH_TOKENS
        self.weight_bytes = sum(x.nbytes for x in weights.values())
        # One row of the embedding is looked up; all of it is read only where it is the output.
        unread = weights["token_embd.weight"].nbytes if OUTPUT in weights else 0
        self.decode_bytes = self.weight_bytes - unread - _unchosen_bytes(self.config, weights)
        cached_numbers = 2 * self.config.n_layers * self.config.kv_dim  # keys and values
        self.kv_bytes_per_token = cached_numbers * np.dtype(np.float32).itemsize
        self.block_format = f"reference float32 {self.config.n_layers}x{self.config.kv_dim}"
        self._weights = weights
        self._counts: dict[int, _Count] = {}
        self._model = ReferenceModel(
            self.config,
            weights,
            self.n_blocks,
            matmul=self._multiply,
            router_matmul=self._multiply,
            max_seq_len=max_seq_len,
        )

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Return the logits that the batch asks for, ``(n_outputs, vocab)``."""
        with np.errstate(over="ignore", invalid="ignore"):  # whoever takes logits looks for NaN
            return self._model.forward(batch)

    def final_states(self, batch: Batch) -> NDArray[np.float32]:
        """Return the normalised states of all tokens after the last layer, ``(tokens, dim)``."""
        return self._model.final_states(batch)

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of a block's keys and values; see ``backend.Model``."""
        return self._model.read_block(block)

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block with what ``read_block`` gave."""
        self._model.write_block(block, data)

    @contextmanager
    def input_squares(self) -> Iterator[InputSquares]:
        """Add up the squares of every matrix's inputs; see ``collecting.SquareCounter``."""
        unread = TOKEN_EMBEDDING if OUTPUT in self._weights else None
        matrices = {n: w for n, w in self._weights.items() if w.ndim > 1 and n != unread}
        sums = {name: np.zeros((*w.shape[:-2], w.shape[-1])) for name, w in matrices.items()}
        tokens = {n: np.zeros(len(w), np.int64) for n, w in matrices.items() if w.ndim == 3}
        for name, w in matrices.items():
            rows = tokens.get(name, np.zeros(1, np.int64))
            by_matrix = sums[name].reshape(len(rows), -1)
            for i, matrix in enumerate(w.reshape(len(rows), -1, w.shape[-1])):
                self._counts[matrix.ctypes.data] = _Count(by_matrix[i], rows[i : i + 1])
        try:
            yield InputSquares(sums, tokens)
        finally:
            self._counts = {}

    def _multiply(self, x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply, and count the inputs where that is wanted."""
        if self._counts:
            self._counts[w.ctypes.data].add(x)
        return ops.matmul(x, w)

    def close(self) -> None:
        """Close the model."""
        self._model.close()


def _unchosen_bytes(config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> int:
    """Return the bytes of the experts that a token does not choose."""
    if config.experts is None:
        return 0
    of_experts = sum(x.nbytes for x in weights.values() if x.ndim == 3)
    return of_experts // config.experts.count * (config.experts.count - config.experts.used)


def _rounded(x: NDArray[np.float32], weight_type: TensorType) -> NDArray[np.float32]:
    cols = x.shape[-1]
    if x.ndim < 2 or cols % block_size(weight_type):
        return x
    stored = quantize(weight_type, x.reshape(-1, cols))
    return dequantize(weight_type, stored, cols).reshape(x.shape)
