"""The LLaMA forward pass in NumPy float32: the specification of every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import BackendError
from pyrllama.models.llama import OUTPUT, ROPE_FACTORS, TOKEN_EMBEDDING, rope_table
from pyrllama.quants import dequantize
from pyrllama.reference import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import DTypeLike, NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import Batch, Chunk, ModelConfig

    Matrix = NDArray[np.float32]
    Matmul = Callable[[Matrix, Matrix], Matrix]


def load_weights(checkpoint: Checkpoint) -> dict[str, Matrix]:
    """Return every tensor of a checkpoint in float32, by GGUF name."""
    weights = {}
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.read(name)
        values = dequantize(info.type, tensor.data, info.shape[-1])
        weights[name] = np.array(values, np.float32).reshape(info.shape)
        checkpoint.release(name)
    return weights


class ReferenceModel:
    """LLaMA over a paged KV cache, with a step for every line of the paper.

    ``weights`` are float32 by GGUF name, matrices ``(outputs, inputs)``.  ``kv_dtype`` float16
    rounds keys and values as a backend with a half-precision cache stores them, and
    ``matmul`` may be ``ops.matmul_int8``, the product of the kernels for quantised weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Matrix],
        n_blocks: int,
        *,
        kv_dtype: DTypeLike = np.float32,
        matmul: Matmul = ops.matmul,
    ) -> None:
        self.config = config
        self.n_blocks = n_blocks
        self._weights = weights
        self._matmul = matmul
        n_slots = n_blocks * BLOCK_TOKENS
        cache_shape = (config.n_layers, n_slots, config.n_kv_heads, config.head_dim)
        self._keys = np.zeros(cache_shape, kv_dtype)
        self._values = np.zeros(cache_shape, kv_dtype)
        self._rope = rope_table(config, n_slots, weights.get(ROPE_FACTORS))

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, n_blocks: int, **options: Any
    ) -> ReferenceModel:
        """Load every weight in float32; ``options`` are the constructor's."""
        return cls(checkpoint.config, load_weights(checkpoint), n_blocks, **options)

    def close(self) -> None:
        """Do nothing: there is nothing but arrays to give back."""

    def forward(self, batch: Batch) -> Matrix:
        """Return the logits of the last ``outputs`` tokens of each chunk, chunk after chunk.

        The shape is ``(batch.n_outputs, vocab)``.  Keys and values of all tokens of the batch
        are left in the cache blocks that their chunks name.
        """
        x = self.final_states(batch)[_output_rows(batch)]
        return self._matmul(x, self._weights.get(OUTPUT, self._weights[TOKEN_EMBEDDING]))

    def final_states(self, batch: Batch) -> Matrix:
        """Return the normalised states of all tokens after the last layer, ``(tokens, dim)``."""
        eps = self.config.norm_eps
        tokens = [token for chunk in batch.chunks for token in chunk.tokens]
        x = self._weights[TOKEN_EMBEDDING][tokens]  # (tokens, dim)
        for layer in range(self.config.n_layers):
            h = ops.rms_norm(x, self._weight(layer, "attn_norm"), eps)
            x = x + self._attention(layer, h, batch)
            h = ops.rms_norm(x, self._weight(layer, "ffn_norm"), eps)
            x = x + self._feed_forward(layer, h)
        return ops.rms_norm(x, self._weights["output_norm.weight"], eps)

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of the keys and then the values of a block, as bytes."""
        both = np.stack([self._keys[:, _slots_of(block)], self._values[:, _slots_of(block)]])
        return both.view(np.uint8).reshape(-1)

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block with what ``read_block`` gave; raises ``BackendError`` for another size."""
        part = self._keys[:, _slots_of(block)]
        if data.shape != (2 * part.nbytes,):
            raise BackendError(f"a block has {2 * part.nbytes} bytes, but {data.size} are given")
        both = data.view(part.dtype).reshape(2, *part.shape)
        self._keys[:, _slots_of(block)], self._values[:, _slots_of(block)] = both

    def _weight(self, layer: int, name: str) -> Matrix:
        return self._weights[f"blk.{layer}.{name}.weight"]

    def _attention(self, layer: int, h: Matrix, batch: Batch) -> Matrix:
        q, k, v = (
            self._matmul(h, self._weight(layer, name)).reshape(len(h), -1, self.config.head_dim)
            for name in ("attn_q", "attn_k", "attn_v")
        )  # (tokens, heads or kv_heads, head_dim)
        gathered = np.empty_like(q)
        row = 0
        for chunk in batch.chunks:
            rows = slice(row, row + len(chunk.tokens))
            gathered[rows] = self._attend(layer, chunk, q[rows], k[rows], v[rows])
            row = rows.stop
        return self._matmul(gathered.reshape(len(h), -1), self._weight(layer, "attn_output"))

    def _attend(self, layer: int, chunk: Chunk, q: Matrix, k: Matrix, v: Matrix) -> Matrix:
        """Store a chunk's keys and values, then attend to all positions of its sequence."""
        slots = _slots(chunk)
        cos, sin = np.moveaxis(self._rope[chunk.start : len(slots)], -1, 0)
        self._keys[layer, slots[chunk.start :]] = ops.rope(k, cos, sin)
        self._values[layer, slots[chunk.start :]] = v
        keys = self._keys[layer, slots].astype(np.float32)  # (positions, kv_heads, head_dim)
        values = self._values[layer, slots].astype(np.float32)
        return ops.attention(ops.rope(q, cos, sin), keys, values, chunk.start)

    def _feed_forward(self, layer: int, h: Matrix) -> Matrix:
        gate = self._matmul(h, self._weight(layer, "ffn_gate"))
        up = self._matmul(h, self._weight(layer, "ffn_up"))
        return self._matmul(ops.swiglu(gate, up), self._weight(layer, "ffn_down"))


def _slots_of(block: int) -> slice:
    """Return where the positions of a block lie."""
    return slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)


def _slots(chunk: Chunk) -> NDArray[np.intp]:
    """Return where in the cache each position of the sequence up to the chunk's end lies."""
    positions = np.arange(chunk.start + len(chunk.tokens))
    blocks = np.array(chunk.blocks, np.intp)
    return blocks[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS


def _output_rows(batch: Batch) -> list[int]:
    """Return the rows of the batch whose logits are wanted."""
    rows: list[int] = []
    end = 0
    for chunk in batch.chunks:
        end += len(chunk.tokens)
        rows += range(end - chunk.outputs, end)
    return rows
