"""The LLaMA forward pass in NumPy float32: the specification of every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import BackendError
from pyrllama.models.llama import OUTPUT, ROUTER, TOKEN_EMBEDDING
from pyrllama.models.rope import ROPE_FACTORS, rope_table
from pyrllama.quants import dequantize
from pyrllama.reference import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import DTypeLike, NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import Batch, Chunk
    from pyrllama.model_config import Experts, ModelConfig

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
    ``matmul`` may be ``ops.matmul_int8``, the product of the kernels for quantised weights; that
    of routers is apart, as neither they nor what they multiply are quantised.
    ``max_seq_len`` is the context for which dynamic RoPE scaling is made, by default all blocks.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Matrix],
        n_blocks: int,
        *,
        kv_dtype: DTypeLike = np.float32,
        matmul: Matmul = ops.matmul,
        router_matmul: Matmul = ops.matmul,
        max_seq_len: int | None = None,
    ) -> None:
        self.config = config
        self.n_blocks = n_blocks
        self._weights = weights
        self._matmul = matmul
        self._router_matmul = router_matmul
        n_slots = n_blocks * BLOCK_TOKENS
        cache_shape = (config.n_layers, n_slots, config.n_kv_heads, config.head_dim)
        self._keys = np.zeros(cache_shape, kv_dtype)
        self._values = np.zeros(cache_shape, kv_dtype)
        self._rope = rope_table(config, n_slots, weights.get(ROPE_FACTORS), max_seq_len)

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
        q, k, v = (self._projected(layer, name, h) for name in ("attn_q", "attn_k", "attn_v"))
        if self.config.qk_norm:
            eps = self.config.norm_eps
            q = ops.rms_norm(q, self._weight(layer, "attn_q_norm"), eps)
            k = ops.rms_norm(k, self._weight(layer, "attn_k_norm"), eps)
        gathered = np.empty_like(q)
        row = 0
        for chunk in batch.chunks:
            rows = slice(row, row + len(chunk.tokens))
            gathered[rows] = self._attend(layer, chunk, q[rows], k[rows], v[rows])
            row = rows.stop
        return self._matmul(gathered.reshape(len(h), -1), self._weight(layer, "attn_output"))

    def _projected(self, layer: int, name: str, h: Matrix) -> Matrix:
        """Return queries, keys or values: ``(tokens, heads, head_dim)``."""
        x = self._matmul(h, self._weight(layer, name))
        if self.config.attention_bias:
            x = x + self._weights[f"blk.{layer}.{name}.bias"]
        return x.reshape(len(h), -1, self.config.head_dim)

    def _attend(self, layer: int, chunk: Chunk, q: Matrix, k: Matrix, v: Matrix) -> Matrix:
        """Store a chunk's keys and values, then attend to all positions of its sequence."""
        slots = _slots(chunk)
        cos, sin = np.moveaxis(self._rope[chunk.start : len(slots)], -1, 0)
        self._keys[layer, slots[chunk.start :]] = ops.rope(k, cos, sin)
        self._values[layer, slots[chunk.start :]] = v
        keys = self._keys[layer, slots].astype(np.float32)  # (positions, kv_heads, head_dim)
        values = self._values[layer, slots].astype(np.float32)
        window = self.config.sliding_window
        return ops.attention(ops.rope(q, cos, sin), keys, values, chunk.start, window)

    def _feed_forward(self, layer: int, h: Matrix) -> Matrix:
        names = ("ffn_gate", "ffn_up", "ffn_down")
        if self.config.experts is not None:
            experts = [self._weight(layer, f"{name}_exps") for name in names]
            return self._mixture(h, self._weight(layer, ROUTER), self.config.experts, experts)
        return self._swiglu_network(h, *(self._weight(layer, name) for name in names))

    def _swiglu_network(self, h: Matrix, gate: Matrix, up: Matrix, down: Matrix) -> Matrix:
        return self._matmul(ops.swiglu(self._matmul(h, gate), self._matmul(h, up)), down)

    def _mixture(self, h: Matrix, router: Matrix, spec: Experts, experts: list[Matrix]) -> Matrix:
        """Return what the experts that each token chooses give it, times their weights."""
        logits = self._router_matmul(h, router)
        chosen, weights = ops.choose_experts(logits, spec.used, normalised=spec.normalised)
        total = np.zeros_like(h)
        for expert in np.unique(chosen):
            tokens, slots = np.nonzero(chosen == expert)
            out = self._swiglu_network(h[tokens], *(matrix[expert] for matrix in experts))
            total[tokens] += out * weights[tokens, slots, None]
        return total


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
