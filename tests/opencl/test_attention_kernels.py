"""Keys and values into the cache, and attention from it, singly and by tiles, kernel by kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.opencl_kernels import MAX_TOKENS, Kernels
from support.tiny_models import chunk_of, tiny_config

from pyrllama.batch_limits import BatchLimits
from pyrllama.core import Batch
from pyrllama.models.rope import rope_table
from pyrllama.opencl.batch import BatchWords, word_count
from pyrllama.opencl.launches import AS_FLOATS
from pyrllama.opencl.layout import ROW_ALIGN, round_up
from pyrllama.opencl.parts import block_bytes
from pyrllama.opencl.tuning import ATTENTION_GROUP, attention_rows
from pyrllama.quants import dequantize, quantize
from pyrllama.reference import ops
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device

    Floats = NDArray[np.float32]

LENGTHS = (45, 1, 38)
"""Of the sequences of a batch: the last rows of a tile are of another sequence."""
N_BLOCKS = 8
LAYER, N_LAYERS = 1, 2
SHAPES = {"grouped": {}, "head_20": {"head_dim": 20, "dim": 80, "ffn_dim": 172, "vocab_size": 31}}
ROUNDING = {TensorType.F32: 1e-5, TensorType.F16: 2e-3, TensorType.Q8_0: 3e-2}


class Attention:
    """A batch of sequences whose queries, keys and values are given, and a cache for them."""

    def __init__(
        self, device: Device, config: ModelConfig, kv_type: TensorType, n_rows: int | None = None
    ) -> None:
        changes: dict[str, Any] = {} if n_rows is None else {"attention_rows": n_rows}
        self.kernels = Kernels(device, config, {TensorType.F16}, kv_type=kv_type, **changes)
        self.config, self._kv_type = config, kv_type
        self.n_rows = sum(LENGTHS)
        width = config.q_dim + 2 * config.kv_dim
        rows = np.random.default_rng(7).normal(0, 1, (self.n_rows, width)).astype(np.float32)
        self._rows = rows
        words = np.zeros(word_count(N_BLOCKS, MAX_TOKENS), np.int32)
        self._words = BatchWords(
            BatchLimits(config.vocab_size, N_BLOCKS, MAX_TOKENS, MAX_TOKENS), words
        )
        kernels, splits = self.kernels, self.kernels.tuning.splits
        self._qkv = kernels.zeros(MAX_TOKENS, round_up(width, 32))
        self._rope = kernels.buffer(rope_table(config, MAX_TOKENS))
        self._cache = kernels.buffer(
            np.zeros(N_BLOCKS * block_bytes(config, N_LAYERS, kv_type), np.uint8)
        )
        self._parts = kernels.zeros(MAX_TOKENS, splits, round_up(config.q_dim, 32))
        self._shares = kernels.zeros(MAX_TOKENS, splits, config.n_heads, 2)
        self._out = kernels.zeros(MAX_TOKENS, round_up(config.q_dim, ROW_ALIGN))

    def arguments(self, rows: slice, batch: Batch) -> tuple[Any, ...]:
        """Return the arguments of attention for some rows as a batch."""
        width = round_up(self._rows.shape[1], 32)
        qkv = np.pad(self._rows[rows], ((0, 0), (0, width - self._rows.shape[1])))
        words = self._words.fill(batch).copy()
        buffers = self._rope, self._cache, words, self._parts, self._shares
        return qkv, *buffers, LAYER, N_LAYERS

    def sequences(self) -> tuple[Any, ...]:
        """Return the arguments of attention for all sequences, each in blocks of its own."""
        chunks = [chunk_of([0] * n, first_block=2 * i) for i, n in enumerate(LENGTHS)]
        return self.arguments(slice(None), Batch(tuple(chunks)))

    @property
    def items(self) -> int:
        """Groups that attend from a row."""
        return self.config.n_heads // self.kernels.tuning.heads * self.kernels.tuning.splits

    def joined(self, n_rows: int) -> Floats:
        """Join what the splits of rows gathered: ``(n_rows, q_dim)``."""
        self.kernels.run("join_rows", n_rows, self._parts, self._shares, self._out, AS_FLOATS)
        return self.attended()[:n_rows]

    def tiled(self, arguments: tuple[Any, ...]) -> Floats:
        """Attend by tiles: ``(tokens, q_dim)``."""
        tiles = -(-self.n_rows // self.kernels.tuning.attention_rows)
        self.kernels.run(
            "attend_tiles", tiles * self.config.n_heads, *arguments, self._out, AS_FLOATS,
            group=ATTENTION_GROUP,
        )  # fmt: skip
        return self.attended()[: self.n_rows]

    def attended(self) -> Floats:
        """Return the rows that the product behind attention reads."""
        shape = MAX_TOKENS, round_up(self.config.q_dim, ROW_ALIGN)
        rows: Floats = self.kernels.read(self._out, shape)
        return rows[:, : self.config.q_dim]

    def expected(self) -> Floats:
        """Return what the reference says of all rows, with keys and values as the cache keeps."""
        rows, start = [], 0
        for n in LENGTHS:
            rows.append(self._expected(self._rows[start : start + n]))
            start += n
        return np.concatenate(rows)

    def _expected(self, rows: Floats) -> Floats:
        config, n = self.config, len(rows)
        cos, sin = np.moveaxis(rope_table(config, n), -1, 0)
        q, k, v = np.split(rows, [config.q_dim, config.q_dim + config.kv_dim], axis=1)
        q = ops.rope(q.reshape(n, -1, config.head_dim), cos, sin)
        k = ops.rope(k.reshape(n, -1, config.head_dim), cos, sin)
        v = v.reshape(n, -1, config.head_dim)
        return ops.attention(q, self._kept(k), self._kept(v), 0).reshape(n, -1)

    def _kept(self, heads: Floats) -> Floats:
        size = self.config.head_dim
        padded = np.pad(heads, ((0, 0), (0, 0), (0, -size % 32))).reshape(len(heads), -1)
        kept = dequantize(self._kv_type, quantize(self._kv_type, padded), padded.shape[1])
        return kept.reshape(*heads.shape[:2], -1)[..., :size]


each_cache = pytest.mark.parametrize("kv_type", ROUNDING, ids=lambda kind: kind.name)
each_shape = pytest.mark.parametrize("shape", SHAPES)


@each_cache
@each_shape
def test_rows_by_tiles_and_the_row_that_is_alone(
    device: Device, shape: str, kv_type: TensorType
) -> None:
    config = tiny_config(**SHAPES[shape])
    attention = Attention(device, config, kv_type)
    assert attention.kernels.tuning.attention_rows == attention_rows(device, config) > 0
    arguments, kernels = attention.sequences(), attention.kernels
    kernels.run("store_batch", attention.n_rows, *arguments)
    kernels.run("attend_rows", attention.n_rows * attention.items, *arguments)
    alone = attention.joined(attention.n_rows)[LENGTHS[0]]
    expected, rounding = attention.expected(), ROUNDING[kv_type]
    np.testing.assert_allclose(alone, expected[LENGTHS[0]], atol=rounding, rtol=0)
    tiled = np.delete(attention.tiled(arguments), LENGTHS[0], axis=0)
    np.testing.assert_allclose(
        tiled, np.delete(expected, LENGTHS[0], axis=0), atol=rounding, rtol=0
    )


def test_all_rows_singly(device: Device) -> None:
    attention = Attention(device, tiny_config(**SHAPES["head_20"]), TensorType.F16, n_rows=0)
    arguments = attention.sequences()
    attention.kernels.run("store_batch", attention.n_rows, *arguments)
    attention.kernels.run("attend_rows", attention.n_rows * attention.items, *arguments)
    np.testing.assert_allclose(
        attention.joined(attention.n_rows), attention.expected(), atol=2e-3, rtol=0
    )


@each_cache
def test_a_fresh_row_attends_and_goes_into_the_cache(device: Device, kv_type: TensorType) -> None:
    """Twice: the second one finds the first in the cache."""
    attention = Attention(device, tiny_config(), kv_type)
    kernels, n = attention.kernels, LENGTHS[0]
    before = Batch((chunk_of([0] * (n - 2)),))
    kernels.run("store_batch", n - 2, *attention.arguments(slice(n - 2), before))
    for row in (n - 2, n - 1):
        batch = Batch((chunk_of([0], start=row),))
        arguments = attention.arguments(slice(row, row + 1), batch)
        kernels.run("attend_fresh", attention.items, *arguments)
        np.testing.assert_allclose(
            attention.joined(1)[0], attention.expected()[row], atol=ROUNDING[kv_type], rtol=0
        )
