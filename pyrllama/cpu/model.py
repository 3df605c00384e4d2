"""The CPU backend's model: packed weights, the KV cache, and one forward pass a batch."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.batch_limits import BatchLimits
from pyrllama.core import blocks_for
from pyrllama.cpu import compiler
from pyrllama.cpu.inputs import Inputs
from pyrllama.cpu.kv_memory import KV_PADDING, KvMemory
from pyrllama.cpu.layers import layer_matrices, layer_vectors, matrix_names
from pyrllama.cpu.mixture import MixtureMemory, places_of
from pyrllama.cpu.records import COUNTERS_A_LAYER, LAYER, LINE, STEP, Records
from pyrllama.cpu.scratch import ActivationRows, Rows, panel_bytes, round_up
from pyrllama.cpu.spans import Spans, attends_to_itself
from pyrllama.cpu.square_sums import SQUARE_FIELDS, SquareSums
from pyrllama.cpu.team import Team, fitting_patience, fitting_threads
from pyrllama.cpu.top_logits import LogitRuns
from pyrllama.cpu.weights import Matrices, read_vector
from pyrllama.errors import BackendError, SettingError
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING
from pyrllama.models.rope import ROPE_FACTORS, rope_table
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import Batch, InputSquares, LogitRow
    from pyrllama.model_config import ModelConfig

MAX_BATCH_TOKENS = 512
OUTPUT_NORM = "output_norm.weight"
BARRIERS_A_LAYER = 5
"""Of a step that decodes one token."""


def load_model(
    checkpoint: Checkpoint,
    *,
    type: TensorType | None = None,  # noqa: A002
    kv_type: TensorType = TensorType.F16,
    max_seq_len: int,
    cache_tokens: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    first_layers: int | None = None,
) -> CpuModel:
    """Load a checkpoint's weights into memory in the layout of the kernels.

    ``type`` converts the matrices; None keeps them as they are stored.  ``kv_type`` is that of
    the KV cache, F16, F32 or Q8_0, which holds ``cache_tokens``, by default ``max_seq_len``.
    ``progress`` is called with the bytes packed and their total.
    ``threads`` None takes what the process may use, but no more than a small model can keep
    busy.  ``first_layers`` loads only so many, for another backend to go on from ``hidden``.
    """
    if kv_type not in KV_PADDING:
        names = "one of " + ", ".join(known.name for known in KV_PADDING)
        raise SettingError("kv_type", kv_type.name, names)
    return CpuModel(
        checkpoint,
        type,
        kv_type,
        max_seq_len,
        max(cache_tokens or 0, max_seq_len),
        threads,
        progress,
        first_layers,
    )


class CpuModel:
    """A model whose forward pass runs on a team of threads; see ``backend.Model``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: TensorType | None,
        kv_type: TensorType,
        max_seq_len: int,
        cache_tokens: int,
        threads: int | None,
        progress: Callable[[int, int], None] | None,
        first_layers: int | None = None,
    ) -> None:
        self.config = config = checkpoint.config
        self._n_layers = config.n_layers if first_layers is None else first_layers
        whole = first_layers is None
        self.max_seq_len = max_seq_len
        self.n_blocks = blocks_for(cache_tokens)
        self.max_batch_tokens = min(MAX_BATCH_TOKENS, cache_tokens)
        self._lock = threading.Lock()
        tied = OUTPUT not in checkpoint.tensors
        self._output_name = OUTPUT if whole and not tied else TOKEN_EMBEDDING
        names = matrix_names(config, self._n_layers, output=whole and not tied)
        self._matrices = Matrices(checkpoint, names, kind)
        self.weight_bytes = sum(self._matrices.sizes)
        # One row of the embedding is read for a token; tied, all of it gives the logits.
        read_whole = whole and tied
        unread = 0 if read_whole else self._matrices.sizes[0]
        self.decode_bytes = self.weight_bytes - unread - self._unchosen_bytes()
        self._team = Team(
            fitting_threads(self.weight_bytes) if threads is None else threads,
            fitting_patience(self.weight_bytes, BARRIERS_A_LAYER * max(self._n_layers, 1)),
        )
        try:
            self._matrices.pack_all(self._team, progress)
            self._kv = KvMemory(config, kv_type, self.n_blocks, self._n_layers)
            self.kv_bytes_per_token = self._kv.bytes_per_token
            self.block_format = self._kv.block_format
            self._take_weights(checkpoint, self._output_name)
            self._forward = compiler.load("step.forward")
            self._allocate(config)
        except MemoryError as error:
            self._team.close()
            raise BackendError(
                f"a cache of {cache_tokens} tokens does not fit into memory ({error}); lower "
                f"--max-seq-len"
            ) from error
        except BaseException:
            self._team.close()
            raise

    # --- loading ------------------------------------------------------------------------------

    def _take_weights(self, checkpoint: Checkpoint, output: str) -> None:
        """Fill in the records of the model: its matrices, and its vectors in float32."""
        config, matrices = self.config, self._matrices
        self._vectors: list[NDArray[np.float32]] = []
        self._layers = Records(LAYER, self._n_layers)
        for i in range(self._n_layers):
            layer = f"blk.{i}."
            names = layer_matrices(config)
            self._layers.set(
                i,
                **{field: matrices.address(f"{layer}{name}") for field, name in names.items()},
                **{
                    field: self._vector(checkpoint, f"{layer}{name}")
                    for field, name in layer_vectors(config).items()
                },
            )
        self._step = Records(STEP)
        self._step.set(
            n_layers=self._n_layers,
            layers=self._layers.address,
            embedding=matrices.address(TOKEN_EMBEDDING),
            output=matrices.address(output),
            output_norm=self._vector(checkpoint, OUTPUT_NORM),
            dim=config.dim,
            ffn_dim=config.ffn_dim,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            norm_eps=config.norm_eps,
            rope=self._rope(checkpoint),
        )
        self._output_norm = read_vector(checkpoint, OUTPUT_NORM, config.dim)

    def _unchosen_bytes(self) -> int:
        """Return the bytes of the experts that a token does not choose."""
        if self.config.experts is None:
            return 0
        sizes = self._matrices.sizes_by_name()
        of_experts = sum(size for name, size in sizes.items() if name.endswith("_exps.weight"))
        count, used = self.config.experts.count, self.config.experts.used
        return of_experts // count * (count - used)

    def _vector(self, checkpoint: Checkpoint, name: str) -> int:
        n = checkpoint.tensors[name].shape[0]
        vector = read_vector(checkpoint, name, round_up(n, 32))
        self._vectors.append(vector)
        return vector.ctypes.data

    def _rope(self, checkpoint: Checkpoint) -> int:
        """Make the table of rotations: every cosine twice, every sine twice with its sign."""
        config, factors = self.config, None
        if ROPE_FACTORS in checkpoint.tensors:
            factors = read_vector(checkpoint, ROPE_FACTORS, config.head_dim // 2)
        table = rope_table(config, self.max_seq_len, factors)  # (positions, head_dim/2, 2)
        stride = self._kv.head_stride
        rope = np.zeros((self.max_seq_len, 2, stride), np.float32)
        rope[:, 0, : config.head_dim] = np.repeat(table[:, :, 0], 2, axis=1)
        rope[:, 1, 0 : config.head_dim : 2] = -table[:, :, 1]
        rope[:, 1, 1 : config.head_dim : 2] = table[:, :, 1]
        self._vectors.append(rope.reshape(-1))
        return rope.ctypes.data

    # --- memory of a pass ---------------------------------------------------------------------

    def _allocate(self, config: ModelConfig) -> None:
        rows = max(self.max_batch_tokens, self._team.n_threads)
        threads = self._team.n_threads
        self._x = Rows(rows, config.dim)
        self._q, self._k, self._v = (
            Rows(rows, n) for n in (config.q_dim, config.kv_dim, config.kv_dim)
        )
        self._mixture = MixtureMemory(config, config.experts, rows) if config.experts else None
        n = places_of(config.experts, rows) if config.experts else rows
        self._gate, self._up = Rows(n, config.ffn_dim), Rows(n, config.ffn_dim)
        self._logits = Rows(rows, config.vocab_size)
        self._runs = LogitRuns(rows, config.vocab_size)
        self._spans = Spans(config, self._kv.head_stride, rows, self.max_seq_len, threads)
        self._work = Rows(threads, self._spans.work_bytes // 4)
        self._panels = Rows(threads, panel_bytes() // 4)
        self._normed, self._attended = (ActivationRows(rows, n) for n in (config.dim, config.q_dim))
        self._hidden = (
            self._mixture.hidden if self._mixture else ActivationRows(rows, config.ffn_dim)
        )
        n_counters = COUNTERS_A_LAYER * self._n_layers + 1
        self._counters = np.zeros((n_counters, LINE // 8), np.int64)
        self._inputs = Inputs(
            BatchLimits(config.vocab_size, self.n_blocks, self.max_batch_tokens, self.max_seq_len)
        )
        self._step.set(
            **self._kv.fields(),
            **self._inputs.fields,
            spans=self._spans.address,
            x=self._x.address,
            x_stride=self._x.stride,
            normed=self._normed.address,
            q=self._q.address,
            q_stride=self._q.stride,
            k=self._k.address,
            v=self._v.address,
            kv_stride=self._k.stride,
            attended=self._attended.address,
            gate=self._gate.address,
            up=self._up.address,
            ffn_stride=self._gate.stride,
            hidden=self._hidden.address,
            window=self._spans.window,
            mixture=self._mixture.address if self._mixture else 0,
            work=self._work.address,
            work_stride=self._work.stride,
            query_rows=self._spans.query_rows,
            panels=self._panels.address,
            panels_stride=self._panels.stride,
            logits=self._logits.address,
            logits_stride=self._logits.stride,
            **self._runs.fields,
            n_threads=self._team.n_threads,
            counters=self._counters.ctypes.data,
        )

    # --- running ------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Run a batch and return the logits that it asks for, ``(n_outputs, vocab_size)``.

        Keys and values of its tokens are in the cache afterwards.
        """
        with self._lock:
            return self._logits_of(batch).copy()

    def top_logits(self, batch: Batch, k: int) -> Sequence[LogitRow]:
        """Run a batch and return the ``k`` greatest logits of each row that it asks for.

        See ``output_rows.TopLogitsModel``.
        """
        with self._lock:
            rows = self._logits_of(batch, top_wanted=True)
            return [self._runs.top(i, row, k) for i, row in enumerate(rows)]

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """Run a batch and return the states after the last layer here, ``(n_tokens, dim)``."""
        with self._lock:
            self._run(batch, 0)
            return self._x.values[: batch.n_tokens, : self.config.dim].copy()

    def final_states(self, batch: Batch) -> NDArray[np.float32]:
        """Run a batch and return what the output projection would read, ``(n_tokens, dim)``.

        That is the states after the last layer, normalised as the model does it.
        """
        states = self.hidden(batch)
        mean_square = np.mean(np.square(states), axis=-1, keepdims=True)
        scale = np.float32(1) / np.sqrt(mean_square + np.float32(self.config.norm_eps))
        return np.asarray(states * scale * self._output_norm[: self.config.dim])

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of a block's keys and values; see ``backend.Model``."""
        with self._lock:
            return self._kv.read(block)

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block with what ``read_block`` gave of a model with this ``block_format``."""
        with self._lock:
            self._kv.write(block, data)

    def _logits_of(self, batch: Batch, *, top_wanted: bool = False) -> NDArray[np.float32]:
        """Run a batch and return its logits, which the next one overwrites."""
        self._run(batch, batch.n_outputs, top_wanted=top_wanted)
        return self._logits.values[: batch.n_outputs, : self.config.vocab_size]

    def _run(self, batch: Batch, n_outputs: int, *, top_wanted: bool = False) -> None:
        self._inputs.place(batch)
        self._counters[:] = 0
        self._step.set(
            n_tokens=batch.n_tokens,
            n_outputs=n_outputs,
            top_wanted=top_wanted,
            n_spans=self._spans.plan(batch),
            stored_first=attends_to_itself(batch),
            team=self._team.address,
        )
        self._team.run(self._forward, self._step.address)

    @contextmanager
    def input_squares(self) -> Iterator[InputSquares]:
        """Add up the squares of the inputs of every matrix, column by column, while it is open."""
        counted = SquareSums(self.config, self._output_name)
        off = dict.fromkeys(SQUARE_FIELDS, 0)
        self._count_squares(counted.layers, counted.output)
        try:
            yield counted.squares
        finally:
            self._count_squares([off] * self.config.n_layers, 0)

    def _count_squares(self, layers: Sequence[Mapping[str, int]], output: int) -> None:
        with self._lock:
            for index, fields in enumerate(layers):
                self._layers.set(index, **fields)
            self._step.set(output_squares=output)

    def close(self) -> None:
        """End the threads; the model must not be used any more."""
        self._team.close()
