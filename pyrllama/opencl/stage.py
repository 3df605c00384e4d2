"""A run of layers on one device: its weights, its part of the KV cache, and its launches.

All kernels are made and their arguments set when the stage is; a step writes the batch into one
buffer, enqueues the launches, and waits only for what it returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.models.rope import ROPE_FACTORS, rope_table
from pyrllama.opencl.ahead import Ahead, may_follow
from pyrllama.opencl.batch import BatchWords, word_count
from pyrllama.opencl.choice import can_choose, choice_bytes
from pyrllama.opencl.device import device_errors, pyopencl
from pyrllama.opencl.experts import feed_forward_bytes
from pyrllama.opencl.heads import has_extras, head_extras
from pyrllama.opencl.layout import BLOCK, ROW_ALIGN, round_up
from pyrllama.opencl.outputs import Outputs
from pyrllama.opencl.parts import block_bytes, stage_stacks
from pyrllama.opencl.persistent import can_persist, n_barriers, persistent_source, places
from pyrllama.opencl.program import OPTIONS, UNOPTIMISED, Program, model_source
from pyrllama.opencl.steps import Steps
from pyrllama.opencl.transfers import Transfers
from pyrllama.opencl.tuning import (
    PHASE_MARKS,
    WIDE_TOKENS,
    default_tuning,
    defines,
    local_memory,
    norm_stride,
    tensor_attention,
)
from pyrllama.opencl.weights import DeviceMemory, Matrix, read_vector, upload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import Batch, LogitRow
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.parts import Part, Sizes
    from pyrllama.opencl.tuning import Tuning
    from pyrllama.opencl.weights import Stack
    from pyrllama.tensors import TensorType

GRID_WORDS = 4
"""Of a barrier across the grid; see ``kernels/primitives.cl``."""


class Stage:
    """Layers on a device; ``forward`` takes and gives hidden states or tokens and logits."""

    def __init__(
        self,
        device: Device,
        checkpoint: Checkpoint,
        part: Part,
        sizes: Sizes,
        *,
        wanted: TensorType | None,
        progress: Callable[[int], None],
        tuning: Tuning | None = None,
    ) -> None:
        cl = pyopencl()
        self.device, self.part = device, part
        self.config = config = checkpoint.config
        self._sizes = sizes
        with device_errors(device, "loading the model"):
            self._context = cl.Context([device.handle])
            self._queue = cl.CommandQueue(self._context)
            groups = stage_stacks(checkpoint, part, wanted)
            self._matrices = self._load(checkpoint, groups, progress)
            self._constants = {
                "norms": self._filled(self._norms(checkpoint)),
                "rope": self._filled(self._rope(checkpoint)),
            }
            if has_extras(config):
                extras = head_extras(checkpoint, part.layers)
                self._constants["head_extras"] = self._filled(extras)
            self._transfers = Transfers(self._context, self._queue)
            n_words = word_count(sizes.n_blocks, sizes.max_tokens)
            words = self._transfers.pinned((n_words,), np.int32)
            self._outputs = Outputs(self, self._transfers)
            self._ahead = Ahead(self._transfers)
            rows = 0 if part.embeds and part.ends else sizes.max_tokens
            states = rows, round_up(config.dim, BLOCK)
            self._states = self._transfers.pinned(states, np.float32)
        self.batch = BatchWords(config, sizes.n_blocks, sizes.max_tokens, sizes.max_seq_len, words)
        self.tune(tuning or default_tuning(device, config, self._kinds()))

    def tune(self, tuning: Tuning) -> None:
        """Build the kernels, anew if need be, in other sizes; the cache becomes empty."""
        self.tuning = tuning
        self._ahead.drop()
        self._buffers: dict[str, Any] = {}
        with device_errors(self.device, "building the kernels"):
            self._buffers = self._allocate()
            options = OPTIONS if tuning.optimise else (*OPTIONS, UNOPTIMISED)
            program = Program(self.device, self._context, self._source(), options)
            self._steps = Steps(self, program)
            self._queue.finish()

    # --- loading ------------------------------------------------------------------------------

    def _source(self) -> str:
        kinds = self._kinds()
        memory = local_memory(self.device, self.config, self.tuning)
        sizes = self._sizes
        words = defines(
            self.tuning,
            self.config,
            memory,
            kv_type=sizes.kv_type,
            max_tokens=sizes.max_tokens,
            max_seq_len=sizes.max_seq_len,
        )
        if not self.persists:
            return model_source(words, kinds)
        words["GROUPS"] = self.tuning.groups
        after = persistent_source(
            self._matrices,
            self.config,
            self.part,
            n_buffers=len(self.weight_buffers),
            copies=self.tuning.copies,
            activation_bytes=memory.n_bytes(kinds),
        )
        return model_source(words, kinds, after)

    def _kinds(self) -> set[TensorType]:
        """Return the types in which the matrices are held."""
        return {m.extent.kind for parts in self._matrices.values() for m in parts}

    @property
    def persists(self) -> bool:
        """Whether a step of one token is one kernel."""
        n_buffers = len(self.weight_buffers)
        return self.tuning.persistent and can_persist(self._matrices, self.part, n_buffers)

    @property
    def attends_on_tensor_cores(self) -> bool:
        """Whether rows of a prompt attend on Tensor Cores."""
        return tensor_attention(self.tuning, self._sizes.kv_type)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of this stage's part of the KV cache."""
        return block_bytes(self.config, len(self.part.layers), self._sizes.kv_type)

    @property
    def weight_buffers(self) -> list[Any]:
        """The large buffers that hold the matrices."""
        return self._memory.buffers

    def _load(
        self,
        checkpoint: Checkpoint,
        groups: Mapping[str, list[Stack]],
        progress: Callable[[int], None],
    ) -> dict[str, list[Matrix]]:
        """Place every matrix in the order of a step, then fill them."""
        ordered: dict[tuple[str, ...], Stack] = {}
        for group in groups.values():
            ordered.update((stack.names, stack) for stack in group)
        self._memory = DeviceMemory(self.device, self._context, ordered.values())
        placed: dict[tuple[str, ...], Matrix] = {}
        for i, (names, stack) in enumerate(ordered.items()):
            placed[names] = self._memory.place(i, stack.extent)
            upload(self._queue, placed[names], stack, checkpoint, progress)
        self.weight_bytes = sum(stack.extent.n_bytes for stack in ordered.values())
        return {name: [placed[s.names] for s in group] for name, group in groups.items()}

    def _allocate(self) -> dict[str, Any]:
        """Make the buffers of a step; see ``Steps`` for who reads and writes which."""
        config, sizes, part = self.config, self._sizes, self.part
        rows = sizes.max_tokens
        width = {
            "x": config.dim,
            "qkv": config.q_dim + 2 * config.kv_dim,
            "parts": round_up(config.q_dim, BLOCK) * self.tuning.splits,
            "shares": 2 * config.n_heads * self.tuning.splits,
        }
        buffers = {name: self._buffer(4 * rows * round_up(n, BLOCK)) for name, n in width.items()}
        tiled = 4 * round_up(rows, WIDE_TOKENS)  # bytes of a column of what products read
        buffers["rows"] = self._buffer(tiled * round_up(max(config.dim, config.q_dim), ROW_ALIGN))
        for name, n_bytes in feed_forward_bytes(config, rows).items():
            buffers[name] = self._buffer(n_bytes)
        # One number behind the logits tells whether a group gave up waiting.
        buffers["logits"] = self._buffer(4 * (rows * config.vocab_size * part.ends + 1))
        choice = choice_bytes(config, self.tuning)
        buffers |= {name: self._buffer(n_bytes) for name, n_bytes in choice.items()}
        buffers["words"] = self._buffer(4 * GRID_WORDS)
        if self.tuning.phase_times:
            n_times = (PHASE_MARKS + 2) * self.tuning.groups * (n_barriers(part) + 1)
            buffers["times"] = self._buffer(4 * n_times)
        if self.persists:
            buffers["places"] = self._filled(places(self._matrices, part))
        buffers["cache"] = self._buffer(sizes.n_blocks * self.block_bytes)
        buffers["batch"] = self._buffer(self.batch.n_bytes)
        return buffers | self._constants

    def _rope(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        factors = None
        if ROPE_FACTORS in checkpoint.tensors:
            factors = read_vector(checkpoint, ROPE_FACTORS, self.config.head_dim // 2)
        return rope_table(self.config, self._sizes.max_seq_len, factors)

    def _norms(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """Return the weights of all norms: two a layer, and the last one."""
        names = [f"blk.{i}.{n}.weight" for i in self.part.layers for n in ("attn_norm", "ffn_norm")]
        names += ["output_norm.weight"] if self.part.ends else []
        stride = norm_stride(self.config)
        return np.stack([read_vector(checkpoint, name, stride) for name in names])

    def norm(self, index: int) -> Any:
        """Return the weights of a norm: ``2 * layer`` or the one after, or the last."""
        n_bytes = 4 * norm_stride(self.config)
        return self._constants["norms"].get_sub_region(index * n_bytes, n_bytes)

    def _filled(self, values: NDArray[Any]) -> Any:
        flags = pyopencl().mem_flags
        return pyopencl().Buffer(
            self._context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=values
        )

    def _buffer(self, n_bytes: int) -> Any:
        """Return zeroed memory: what kernels never write are the zeros of a padded row."""
        cl = pyopencl()
        n_bytes = round_up(n_bytes, 16)
        buffer = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, n_bytes)
        cl.enqueue_fill_buffer(self._queue, buffer, np.zeros(4, np.uint32), 0, n_bytes)
        return buffer

    # --- running ------------------------------------------------------------------------------

    def matrices(self, group: str) -> list[Matrix]:
        """Return the matrices of a group, those of one type joined."""
        return self._matrices[group]

    def buffer(self, name: str) -> Any:
        """Return a buffer by name."""
        return self._buffers[name]

    def forward(
        self, batch: Batch, hidden: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Run a batch: return ``(n_outputs, vocab)`` logits or ``(n_tokens, dim)`` hidden states.

        ``hidden`` are what the stage before gave.  Raises ``BackendError`` for a batch that does
        not fit, ``DeviceError`` when the device fails.
        """
        single = batch.n_tokens == 1 and self.persists
        with device_errors(self.device, "running the model"):
            self._start(batch, hidden)
            if self.part.ends:
                return self._outputs.logits(batch.n_outputs, single=single)
            return self._outputs.states(self._states[: batch.n_tokens], single=single)

    def top_logits(
        self, batch: Batch, k: int, hidden: NDArray[np.float32] | None = None
    ) -> Sequence[LogitRow]:
        """Run a batch as ``forward`` does; return the ``k`` greatest logits of rows, or whole rows.

        The last stage of a model does.
        """
        if not can_choose(self.config, self.tuning, k, batch.n_outputs):
            return list(self.forward(batch, hidden))
        with device_errors(self.device, "running the model"):
            chosen = self._ahead.take(batch, k)
            goes_on = self.part.embeds and may_follow(batch, k, self._sizes.max_seq_len)
            if chosen is None:
                self._start(batch, hidden, top=k, goes_on=goes_on)
                chosen = self._outputs.ask_top(batch.n_outputs)
            if goes_on:
                self._steps.enqueue(self._queue, batch, top=k)
                self._ahead.put(batch, chosen, self._outputs.ask_top(1))
            rows = self._outputs.top(chosen, k)
            if goes_on and rows == [None]:  # by now its logits may be those of the step behind it
                return list(self.forward(batch))
            return [row or self._outputs.row(i) for i, row in enumerate(rows)]

    def _start(
        self,
        batch: Batch,
        hidden: NDArray[np.float32] | None,
        top: int = 0,
        *,
        goes_on: bool = False,
    ) -> None:
        """Enqueue a step and what it reads."""
        self._ahead.drop()
        words = self.batch.fill(batch, top, goes_on=goes_on)
        self._transfers.send(self._buffers["batch"], words)
        if hidden is not None:
            states = self._states[: batch.n_tokens]
            states[:, : self.config.dim] = hidden
            self._transfers.send(self._buffers["x"], states)
        self._steps.enqueue(self._queue, batch, top=top)

    def repeat(self, batch: Batch, times: int, top: int = 0) -> None:
        """Run the same batch many times without waiting between, to be timed."""
        self._ahead.drop()
        with device_errors(self.device, "running the model"):
            self._transfers.send(self._buffers["batch"], self.batch.fill(batch, top))
            for _ in range(times):
                self._steps.enqueue(self._queue, batch, top=top)
            self._transfers.wait()

    def timed(self, batch: Batch) -> list[tuple[str, float]]:
        """Run a batch and return the name of every launch and the seconds it took."""
        self._ahead.drop()
        cl, words = pyopencl(), self.batch.fill(batch)
        with device_errors(self.device, "timing the model"):
            profiling = cl.command_queue_properties.PROFILING_ENABLE
            queue = cl.CommandQueue(self._context, properties=profiling)
            cl.enqueue_copy(queue, self._buffers["batch"], words)
            events = [
                (launch.kernel.function_name, launch.enqueue(queue, times))
                for launch, times in self._steps.launches(batch, top=0)
            ]
            queue.finish()
            return [(name, 1e-9 * (e.profile.end - e.profile.start)) for name, e in events]

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of a block of this stage's part of the KV cache."""
        out = np.empty(self.block_bytes, np.uint8)
        with device_errors(self.device, "reading the KV cache"):
            offset = block * self.block_bytes
            pyopencl().enqueue_copy(self._queue, out, self._buffers["cache"], src_offset=offset)
        return out

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block of this stage's part of the KV cache with what ``read_block`` gave."""
        self._ahead.drop()  # it attends to what the cache held before
        with device_errors(self.device, "writing the KV cache"):
            offset = block * self.block_bytes
            pyopencl().enqueue_copy(self._queue, self._buffers["cache"], data, dst_offset=offset)

    def phase_times(self) -> NDArray[np.int32]:
        """Return when groups came to the barriers of the last step of one token, and left them.

        ``(groups, barriers + 1, marks + 2)`` nanoseconds, modulo 2^32: of every phase first its
        marks (``kernels/shares.cl``); the last phase, which has no barrier, is not left.
        """
        shape = self.tuning.groups, n_barriers(self.part) + 1, PHASE_MARKS + 2
        times = np.empty(shape, np.int32)
        with device_errors(self.device, "reading the times of phases"):
            pyopencl().enqueue_copy(self._queue, times, self._buffers["times"])
        return times

    def close(self) -> None:
        """Free the device's memory now, not when Python notices."""
        buffers = {*self._buffers.values(), *self._constants.values(), *self._memory.buffers}
        self._matrices.clear()
        self._buffers.clear()
        self._constants.clear()
        self._memory.buffers.clear()
        self._transfers.close()
        del self._steps
        for buffer in buffers:
            buffer.release()
