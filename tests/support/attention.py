"""Running the attention kernels by themselves: one layer, queries and keys given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.kernels import Guarded, read_record, use_isa
from support.tiny_models import tiny_config

from pyrllama.core import BLOCK_TOKENS, Batch, Chunk
from pyrllama.cpu.kv_memory import KvMemory
from pyrllama.cpu.records import ACTIVATIONS, LAYER, SPAN, STEP, Records
from pyrllama.cpu.scratch import round_up
from pyrllama.cpu.spans import Spans, attends_to_itself
from pyrllama.models.rope import rope_table
from pyrllama.reference import ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.cpu.target import Isa
    from pyrllama.model_config import ModelConfig
    from pyrllama.tensors import TensorType

    Floats = NDArray[np.float32]

MAX_SEQ_LEN = 800


def shape(n_heads: int, n_kv_heads: int, head_dim: int) -> ModelConfig:
    """Return a model of one layer with these heads."""
    return tiny_config(
        n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, n_layers=1,
        context_length=MAX_SEQ_LEN,
    )  # fmt: skip


class Tokens:
    """Queries, keys and values of a sequence, ``(tokens, heads or kv_heads, head_dim)``."""

    def __init__(self, config: ModelConfig, n_tokens: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        heads, kv_heads, size = config.n_heads, config.n_kv_heads, config.head_dim
        self.q = rng.normal(0, 1, (n_tokens, heads, size)).astype(np.float32)
        self.k = rng.normal(0, 1, (n_tokens, kv_heads, size)).astype(np.float32)
        self.v = rng.normal(0, 1, (n_tokens, kv_heads, size)).astype(np.float32)

    def expected(self, config: ModelConfig) -> Floats:
        """Return what the reference says, ``(tokens, heads, head_dim)``."""
        cos, sin = np.moveaxis(rope_table(config, len(self.q), None), -1, 0)
        return ops.attention(ops.rope(self.q, cos, sin), ops.rope(self.k, cos, sin), self.v, 0)


class Attention:
    """A cache of one layer, and the kernels and records that attend over it.

    ``threads`` only decides how work is cut; the pieces run one after another.
    """

    def __init__(
        self,
        isa: Isa,
        config: ModelConfig,
        kv_type: TensorType,
        *,
        threads: int = 1,
        max_tokens: int = MAX_SEQ_LEN,
    ) -> None:
        self.config, self._isa = config, isa
        with pytest.MonkeyPatch.context() as patch:
            use_isa(patch, isa)
            self.memory = KvMemory(
                config, kv_type, 3 * MAX_SEQ_LEN // BLOCK_TOKENS, config.n_layers
            )
        self.memory.blocks[:] = 0xFF  # what was never stored is no number, and large
        stride = self.memory.head_stride
        self.spans = Spans(config, stride, max_tokens, MAX_SEQ_LEN, threads)
        self._layers = Records(LAYER, config.n_layers)  # no norms of heads
        self._work = Guarded(self.spans.work_bytes, np.uint8)
        self._rope = np.zeros((MAX_SEQ_LEN, 2, stride), np.float32)
        table = rope_table(config, MAX_SEQ_LEN, None)
        signs = np.array([-1, 1], np.float32)
        self._rope[:, 0, : config.head_dim] = np.repeat(table[:, :, 0], 2, axis=1)
        self._rope[:, 1, : config.head_dim] = np.repeat(table[:, :, 1], 2, axis=1) * np.tile(
            signs, config.head_dim // 2
        )

    def forward(self, batch: Batch, rows: Sequence[Tokens], *, seed: int = 0) -> Floats:
        """Store and attend for a batch whose chunk ``i`` is of the sequence ``rows[i]``.

        Returns ``(tokens, heads, head_dim)``.  Pieces run in an order that ``seed`` shuffles.
        """
        config, n = self.config, batch.n_tokens
        parts = [slice(c.start, c.start + len(c.tokens)) for c in batch.chunks]
        q, k, v = (
            _padded([getattr(r, name)[p] for r, p in zip(rows, parts, strict=True)])
            for name in ("q", "k", "v")
        )
        tables = [np.array(chunk.blocks, np.int64) for chunk in batch.chunks]
        lengths = [len(chunk.tokens) for chunk in batch.chunks]
        positions = np.concatenate([np.arange(p.start, p.stop) for p in parts])
        addresses = np.repeat([table.ctypes.data for table in tables], lengths)
        out = Guarded((n, config.q_dim), np.float32)
        attended, step = Records(ACTIVATIONS), Records(STEP)
        attended.set(x=out.address, x_stride=4 * config.q_dim)
        step.set(
            n_heads=config.n_heads, n_kv_heads=config.n_kv_heads, head_dim=config.head_dim,
            rope=self._rope.ctypes.data, positions=positions.ctypes.data,
            tables=addresses.ctypes.data, q=q.ctypes.data, q_stride=q.strides[0],
            k=k.ctypes.data, v=v.ctypes.data, kv_stride=k.strides[0],
            attended=attended.address, query_rows=self.spans.query_rows,
            window=self.spans.window, layers=self._layers.address, **self.memory.fields(),
        )  # fmt: skip
        self._run(batch, step.address, np.random.default_rng(seed))
        out.check()
        self._work.check()
        return out.array.reshape(n, config.n_heads, config.head_dim).copy()

    def _run(self, batch: Batch, step: int, rng: np.random.Generator) -> None:
        """Store what must be there before, and attend for every span and KV head."""
        store, attend, work = self.memory.store, self.memory.attend, self._work.address
        n_heads = self.config.n_kv_heads
        if attends_to_itself(batch):
            for item in range(batch.n_tokens * n_heads):
                store.call(step, 0, item // n_heads, item % n_heads, work)
        for item in rng.permutation(self.spans.plan(batch) * n_heads).tolist():
            address, head = self.spans.address + item // n_heads * SPAN.n_bytes, item % n_heads
            span = read_record(SPAN, address)
            if span["stores"]:
                store.call(step, 0, span["token"], head, work)
            attend.call(step, 0, address, head, work)


def _padded(pieces: list[Floats]) -> Floats:
    """Return rows of all heads with zeros behind each, as kernels read whole vectors."""
    rows = np.concatenate(pieces)
    n = rows[0].size
    padded = np.zeros((len(rows), round_up(n, 32) + 32), np.float32)
    padded[:, :n] = rows.reshape(len(rows), n)
    return padded


def chunk(start: int, end: int, first: int = 0) -> Chunk:
    """Return tokens ``start`` to ``end`` of a sequence in every third block, downwards.

    ``first`` is the last one of these blocks: 0, 1 and 2 have none in common.
    """
    n_blocks = MAX_SEQ_LEN // BLOCK_TOKENS
    blocks = tuple(3 * (n_blocks - 1 - i) + first for i in range(n_blocks))
    return Chunk((0,) * (end - start), start, blocks, 0)
